"""Programs on the emulated device: the numbers of the same module on the CPU, by the rules of the real device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.adapter import Adapter
from orchestrator.program import ProgramInput, ProgramOutput
from orchestrator_neuron.emulated.backend import EmulatedBackend
from orchestrator_neuron.emulated.device import DeviceError
from orchestrator_neuron.ranked import RankedValue
from tests.neuron.programs import Affine, Two, application, emulated_backend, load, program, spec, weightless

PLAIN = program({"x": spec("batch", 4)}, {"output": spec("batch", 3)}, sizes=[{"batch": 2}, {"batch": 8}])
PAIR = program({"a": spec(2, 3), "b": spec(2, 3)}, {"sum": spec(2, 3), "difference": spec(2, 3)})


@pytest.fixture
def backend() -> Iterator[EmulatedBackend]:
    with emulated_backend(tp_degree=2) as backend:
        yield backend


def _affine(backend: EmulatedBackend, path: Path, **more: Any) -> Callable[..., Any]:
    return load(backend, application(Affine(), PLAIN, **more), path)["p"]


def test_it_gives_what_the_module_gives(backend: EmulatedBackend, tmp_path: Path) -> None:
    run, module = _affine(backend, tmp_path), Affine()
    for batch in (2, 8, 2):
        x = torch.randn(batch, 4)
        (handle,) = run(backend.upload(x))
        assert isinstance(handle, RankedValue)
        assert torch.equal(backend.download(handle), module(x))


def test_several_outputs_are_ranked_values_each(backend: EmulatedBackend, tmp_path: Path) -> None:
    run = load(backend, application(Two(), PAIR, outputs=("sum", "difference")), tmp_path)["p"]
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    handles = run(backend.upload(a), backend.upload(b))
    assert [len(value) for value in handles] == [2, 2]
    for value, reference in zip(handles, (a + b, a - b), strict=True):
        assert torch.equal(backend.download(value), reference)


def test_views_are_fed_by_their_elements(backend: EmulatedBackend, tmp_path: Path) -> None:
    run, x = _affine(backend, tmp_path), torch.randn(4, 4)
    whole = backend.upload(x)
    view = RankedValue([row[0].t().narrow(0, 1, 2)] for row in whole)
    assert torch.equal(backend.download(run(view)[0]), Affine()(x.t()[1:3].contiguous()))


def test_running_again_destroys_the_earlier_output(backend: EmulatedBackend, tmp_path: Path) -> None:
    run, module = _affine(backend, tmp_path), Affine()
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    (early,) = run(backend.upload(first))
    view = backend.part(early, 0, 0, 1)
    assert torch.equal(backend.download(early), module(first))
    run(backend.upload(torch.randn(8, 4)))
    assert torch.equal(backend.download(early), module(first))  # another bucket has a buffer of its own
    (late,) = run(backend.upload(second))
    for handle in (early, late):
        assert torch.equal(backend.download(handle), module(second))
    assert torch.equal(backend.download(view), module(second)[:1])


def test_a_copy_survives(backend: EmulatedBackend, tmp_path: Path) -> None:
    run, x = _affine(backend, tmp_path), torch.randn(2, 4)
    handle = backend.copy(run(backend.upload(x))[0], backend.device)
    run(backend.upload(torch.zeros(2, 4)))
    assert torch.equal(backend.download(handle), Affine()(x))


def test_a_second_route_has_a_buffer_of_its_own(backend: EmulatedBackend, tmp_path: Path) -> None:
    again = program(
        {"x": spec("batch", 4)}, {"output": spec("batch", 3)}, name="q", sizes=PLAIN.sizes, route=1
    )
    both = load(backend, application(Affine(), PLAIN, again), tmp_path)
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    one, other = both["p"](backend.upload(first)), both["q"](backend.upload(second))
    assert torch.equal(backend.download(one[0]), Affine()(first))
    assert torch.equal(backend.download(other[0]), Affine()(second))
    assert backend.measured()["uploads"] == 4  # the route was staged


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bool])
def test_reading_its_own_buffer_gives_nothing_right(
    backend: EmulatedBackend, tmp_path: Path, dtype: torch.dtype
) -> None:
    form = {"x": spec(3, dtype=dtype)}
    step = nn.Identity() if dtype is torch.bool else nn.ReLU()
    run = load(backend, application(step, program(form, {"output": spec(3, dtype=dtype)})), tmp_path)["p"]
    x = torch.ones(3, dtype=dtype)
    (carry,) = run(backend.upload(x))
    assert torch.equal(backend.download(carry), x)
    (garbage,) = run(backend.part(carry, 0, 0, 3))
    assert not torch.equal(backend.download(garbage), x)
    (right,) = run(backend.upload(x))
    assert torch.equal(backend.download(right), x)


def test_warming_up_leaves_nothing_behind(backend: EmulatedBackend, tmp_path: Path) -> None:
    run = _affine(backend, tmp_path)
    stale = [version.outputs()[0] for version in run._versions.values()]  # type: ignore[attr-defined]
    for handle in stale:
        assert backend.download(handle).isnan().all()
    assert backend.measured()["dispatches"] == 0


def test_shapes_are_those_it_was_compiled_for(backend: EmulatedBackend, tmp_path: Path) -> None:
    run = _affine(backend, tmp_path)
    for shape in ((3, 4), (1, 4), (2, 4, 1), (4, 2)):
        with pytest.raises(DeviceError) as excinfo:
            run(backend.upload(torch.zeros(shape)))
        text = str(excinfo.value)
        assert str([list(shape)]) in text
        assert "'stage'" in text
        assert "[[2, 4]]; [[8, 4]]" in text
    with pytest.raises(DeviceError, match=r"not compiled for inputs of the shapes \[\]"):
        run()


def test_an_unused_input_is_part_of_the_route(backend: EmulatedBackend, tmp_path: Path) -> None:
    class First(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a * 2

    form = program({"a": spec(2), "b": spec(5)}, {"output": spec(2)})
    run = load(backend, application(First(), form), tmp_path)["p"]
    a = backend.upload(torch.ones(2))
    assert backend.download(run(a, backend.upload(torch.ones(5)))[0]).tolist() == [2, 2]
    with pytest.raises(DeviceError, match=r"\[\[2\], \[4\]\]"):
        run(a, backend.upload(torch.ones(4)))


def test_dtypes_are_those_it_was_compiled_for(backend: EmulatedBackend, tmp_path: Path) -> None:
    run = _affine(backend, tmp_path)
    for dtype in (torch.float16, torch.bfloat16, torch.int32):
        with pytest.raises(DeviceError, match=r"takes \[2, 4\] float32 as its input 0"):
            run(backend.upload(torch.ones(2, 4).to(dtype)))


def test_only_values_of_this_device_are_taken(backend: EmulatedBackend, tmp_path: Path) -> None:
    run, x = _affine(backend, tmp_path), torch.zeros(2, 4)
    handle = backend.upload(x)
    with emulated_backend(tp_degree=2) as other:
        cases: dict[str, Any] = {
            "'x' .* is a tensor on the host.* upload it first": x,
            "is a tensor on privateuseone:0": handle[0][0],
            "is a value of 1 ranks; this device has 2": RankedValue(handle[:1]),
            "is a list": [list(row) for row in handle],
            "is a NoneType": None,
            "of another rank": RankedValue(handle[::-1]),
            "on another device": other.upload(x),
        }
        for text, value in cases.items():
            with pytest.raises(DeviceError, match=text):
                run(value)


def test_nothing_runs_after_close(tmp_path: Path) -> None:
    with emulated_backend() as backend:
        run, handle = _affine(backend, tmp_path), backend.upload(torch.zeros(2, 4))
    with pytest.raises(DeviceError, match="closed"):
        run(handle)


def test_folded_adapters_run_inside(backend: EmulatedBackend, tmp_path: Path) -> None:
    form = program(
        {"x": spec(1, 6, dtype=torch.float16)},
        {"output": spec(4, 2)},
        before={
            "x": (Adapter("slice", (1, 4)), Adapter("cast", dtype=torch.float32), Adapter("pad", (2, 4), 0))
        },
        after={"output": (Adapter("pad", (4, 3), "repeat_first"), Adapter("slice", (4, 2)))},
    )
    run = load(backend, application(Affine(), form), tmp_path)["p"]
    x = torch.randn(1, 6).half()
    inner = Affine()(torch.cat([x[:, :4].float(), torch.zeros(1, 4)]))
    reference = torch.cat([inner, inner[:1], inner[:1]])[:, :2]
    assert torch.equal(backend.download(run(backend.upload(x))[0]), reference)


def test_a_port_may_leave_raw_and_adapted(backend: EmulatedBackend, tmp_path: Path) -> None:
    form = program({"x": spec(2, 4)}, {"output": spec(2, 3)})
    wide = ProgramOutput("output", spec(2, 5), (Adapter("pad", (2, 5), 7),))
    form = type(form)(form.name, form.inputs, (*form.outputs, wide), form.sizes)
    raw, padded_value = load(backend, application(Affine(), form), tmp_path)["p"](
        backend.upload(torch.ones(2, 4))
    )
    assert backend.download(padded_value)[:, 3:].unique() == 7
    assert torch.equal(backend.download(padded_value)[:, :3], backend.download(raw))


def test_adapters_alone_are_a_program_without_weights(backend: EmulatedBackend, tmp_path: Path) -> None:
    form = program({"value": spec(2)}, {"value": spec(4)}, after={"value": (Adapter("pad", (4,), 1),)})
    run = load(backend, weightless(form), tmp_path)["p"]
    assert backend.download(run(backend.upload(torch.zeros(2)))[0]).tolist() == [0, 0, 1, 1]
    assert backend.open_device.allocated_bytes == [16, 16]


def test_constants_dicts_and_keywords(backend: EmulatedBackend, tmp_path: Path) -> None:
    class Stats(nn.Module):
        def forward(self, x: torch.Tensor, factor: float, *, bias: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"low": x.min() * factor, "all": x * factor + bias}

    plain = program({"x": spec(2), "bias": spec(2)}, {"all": spec(2), "low": spec()}, returns="dict")
    x, bias = plain.inputs
    form = type(plain)(
        "p",
        (x, ProgramInput("factor", None, constant=3.0), bias),
        plain.outputs,
        returns="dict",
        ports=plain.ports,
        keywords=("bias",),
    )
    run = load(backend, application(Stats(), form), tmp_path)["p"]
    arguments = (backend.upload(torch.tensor([1.0, 2.0])), backend.upload(torch.tensor([10.0, 10.0])))
    whole, low = run(*arguments)
    assert backend.download(whole).tolist() == [13, 16]
    assert backend.download(low) == 3


def test_what_the_caller_set_stays_outside(backend: EmulatedBackend, tmp_path: Path) -> None:
    run, x = _affine(backend, tmp_path), torch.randn(2, 4)
    reference, handle = Affine()(x), backend.upload(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(backend.download(run(handle)[0]), reference)
    with torch.inference_mode():
        assert torch.equal(backend.download(run(handle)[0]), reference)
    with torch.enable_grad():
        assert torch.equal(backend.download(run(handle)[0]), reference)


def test_kept_handles_are_valid_until_close(backend: EmulatedBackend, tmp_path: Path) -> None:
    (handle,) = load(backend, application(Affine(), PLAIN), tmp_path)["p"](backend.upload(torch.ones(2, 4)))
    assert torch.equal(backend.download(handle), Affine()(torch.ones(2, 4)))  # its program is gone
