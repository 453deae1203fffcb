"""Compiling for the emulated device: what cannot be, and why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.adapter import Adapter
from orchestrator.errors import CompileError
from orchestrator.stage import ModelWrapper
from orchestrator_neuron.emulated.backend import EmulatedBackend
from tests.neuron.programs import Affine, Two, application, emulated_backend, load, program, spec, weightless

FORM = program({"x": spec(2, 4)}, {"output": spec(2, 3)})
SQUARE = program({"x": spec(2, 4)}, {"output": spec(2, 4)})


@pytest.fixture
def backend() -> Iterator[EmulatedBackend]:
    with emulated_backend() as backend:
        yield backend


@torch.library.custom_op("neuron_tests::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def _branches(x: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return x
    return -x


def _picks(x: torch.Tensor) -> torch.Tensor:
    rows = x.nonzero()
    return rows.sum() + x


def _masks(x: torch.Tensor) -> torch.Tensor:
    return x[x > 0]


def _reads(x: torch.Tensor) -> torch.Tensor:
    return x * x.max().item()


def _asks(x: torch.Tensor) -> torch.Tensor:
    return opaque(x)


def _clashes(x: torch.Tensor) -> torch.Tensor:
    return x @ x


class _Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), _Unique())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class _Unique(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.unique(x)


CASES: dict[str, tuple[Any, str, str]] = {
    "branch": (_branches, "", "if x.sum() > 0:"),
    "nonzero": (_picks, "aten.nonzero.default", "rows = x.nonzero()"),
    "mask": (_masks, "aten.index.Tensor", "return x[x > 0]"),
    "item": (_reads, "aten.item.default", "return x * x.max().item()"),
    "unique": (_Deep(), "aten._unique2.default", "return torch.unique(x)"),
    "custom": (_asks, "neuron_tests.opaque.default", "return opaque(x)"),
    "shape": (_clashes, "aten.mm.default", "return x @ x"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_exported_is_named(
    backend: EmulatedBackend, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    target, operation, line = CASES[name]
    with pytest.raises(CompileError) as excinfo:
        load(backend, application(target, SQUARE, name="crops"), tmp_path)
    text = str(excinfo.value)
    assert "program 'p' of stage 'crops'" in text
    assert operation in text
    assert excinfo.value.operation == operation  # type: ignore[attr-defined]
    assert "at test_emulated_compile.py:" in text
    assert line in text
    assert "device='host'" in text
    assert ("depends on data" in text) == (name not in ("custom", "shape"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore")
def test_packed_weights_are_named_and_no_line_of_python(backend: EmulatedBackend, tmp_path: Path) -> None:
    module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), dtype=torch.qint8)
    with pytest.raises(CompileError, match="torch's 'LinearPackedParamsBase', as quantized") as excinfo:
        load(backend, application(module, SQUARE, inputs=("x",)), tmp_path)
    assert "contextlib" not in str(excinfo.value)


def _reads_text(x: torch.Tensor) -> torch.Tensor:
    return x * json.loads("{")


def test_the_line_is_the_users_and_not_of_python(backend: EmulatedBackend, tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"at test_emulated_compile.py:\d+: return x \* json.loads"):
        load(backend, application(_reads_text, SQUARE), tmp_path)


def test_a_stage_that_cannot_be_built_is_named(backend: EmulatedBackend, tmp_path: Path) -> None:
    class Unbuildable(ModelWrapper):
        model_cls = nn.Linear

        def make_model(self) -> Any:
            raise OSError("the weights are not there")

    with pytest.raises(CompileError, match="'stage' cannot be built: OSError: the weights") as excinfo:
        load(backend, application(Unbuildable(), FORM, inputs=("x",)), tmp_path)
    assert isinstance(excinfo.value.__cause__, OSError)


def test_outputs_are_compared_with_the_plan(backend: EmulatedBackend, tmp_path: Path) -> None:
    form = program({"x": spec(2, 4)}, {"output": spec(2, 4)})
    with pytest.raises(CompileError, match=r"gives \[2, 3\] float32 .* the plan says \[2, 4\] float32"):
        load(backend, application(Affine(), form), tmp_path)


def test_the_dtype_of_outputs_is_compared_where_an_adapter_makes_it(
    backend: EmulatedBackend, tmp_path: Path
) -> None:
    form = program(
        {"x": spec(2, 4)}, {"output": spec(2, 3)}, after={"output": (Adapter("cast", dtype=torch.float16),)}
    )
    with pytest.raises(CompileError, match=r"gives \[2, 3\] float16 at its output 'output'"):
        load(backend, application(Affine(), form), tmp_path)


def test_programs_the_router_cannot_tell_apart_are_refused(backend: EmulatedBackend, tmp_path: Path) -> None:
    both = {"a": spec(2, 3), "b": spec(2, 3)}
    sum_only = program(both, {"sum": spec(2, 3)}, name="one", ports=("sum", "difference"), returns="tuple")
    other = program(
        both, {"difference": spec(2, 3)}, name="two", ports=("sum", "difference"), returns="tuple"
    )
    two_outputs = application(Two(), sum_only, other, outputs=("sum", "difference"))
    with pytest.raises(CompileError) as excinfo:
        load(backend, two_outputs, tmp_path)
    for part in ("'one'", "'two'", "[[2, 3], [2, 3]]", "silently"):
        assert part in str(excinfo.value)
    with_route = application(
        Two(), sum_only, dataclasses.replace(other, route=1), outputs=("sum", "difference")
    )
    assert set(load(backend, with_route, tmp_path)) == {"one", "two"}


def test_a_route_may_not_look_like_an_input(backend: EmulatedBackend, tmp_path: Path) -> None:
    plain = program({"a": spec(2), "b": spec(3, dtype=torch.int32)}, {"output": spec(2)}, name="one")
    with_route = program({"a": spec(2)}, {"output": spec(2)}, name="two", route=3)
    with pytest.raises(CompileError, match=r"\[\[2\], \[3\]\]"):
        load(backend, application(lambda a, b=None: a * 2, plain, with_route), tmp_path)


def test_buckets_that_end_in_one_shape_are_refused(backend: EmulatedBackend, tmp_path: Path) -> None:
    form = program(
        {"value": spec(4)},
        {"value": spec("tokens")},
        sizes=[{"tokens": 8}, {"tokens": 16}],
        after={"value": (Adapter("pad", ("tokens",), 0),)},
    )
    with pytest.raises(CompileError, match=r"at tokens=8 and .* at tokens=16 take inputs of the same shapes"):
        load(backend, weightless(form), tmp_path)


def test_sizes_a_program_does_not_depend_on_make_no_second_one(
    backend: EmulatedBackend, tmp_path: Path
) -> None:
    sizes = [{"batch": batch, "other": other} for batch in (2, 4) for other in (1, 2, 3)]
    form = program({"x": spec("batch", 4)}, {"output": spec("batch", 3)}, sizes=sizes)
    run = load(backend, application(Affine(), form), tmp_path)["p"]
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2
    assert backend.download(run(backend.upload(torch.zeros(4, 4)))[0]).shape == (4, 3)


def test_every_program_and_bucket_goes_through_the_compiler(
    backend: EmulatedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def compiler(data: bytes) -> bytes:
        sizes.append(len(data))
        return data

    monkeypatch.setattr(EmulatedBackend, "COMPILER", staticmethod(compiler))
    form = program({"x": spec("b", 4)}, {"output": spec("b", 3)}, sizes=[{"b": 1}, {"b": 2}])
    load(backend, application(Affine(), form, dataclasses.replace(form, name="q", route=1)), tmp_path)
    assert len(sizes) == 4


def test_damaged_and_strange_folders_are_refused(backend: EmulatedBackend, tmp_path: Path) -> None:
    affine = application(Affine(), FORM)
    backend.build(affine, tmp_path)
    manifest = tmp_path / "manifest.json"
    whole = manifest.read_text()
    data = json.loads(whole)
    cases: dict[str, Callable[[], object]] = {
        "has format 99": lambda: manifest.write_text(json.dumps({**data, "format": 99})),
        "cannot be read": lambda: manifest.write_text("{"),
        r"2 weights .* e\.g\. 'gone'": lambda: manifest.write_text(whole.replace('"scale"', '"gone"')),
        "cannot be read from": lambda: (
            manifest.write_text(whole),
            (tmp_path / "0.safetensors").write_bytes(b"x"),
        ),
        r"cannot be read .*FileNotFound": manifest.unlink,
    }
    for text, damage in cases.items():
        damage()
        with pytest.raises(CompileError, match=text):
            backend.load_application(affine, tmp_path)
        assert backend.open_device.allocated_bytes == [0]
