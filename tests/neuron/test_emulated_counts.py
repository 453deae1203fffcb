"""What crosses the link, what is taken of memory, and what ranks hold that is not the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from orchestrator.adapter import Adapter
from orchestrator.errors import CompileError
from orchestrator_neuron.emulated.device import DeviceError
from orchestrator_neuron.family import LINK
from tests.kit import refuses
from tests.neuron.programs import Affine, application, emulated_backend, load, program, spec

FORM = program({"x": spec("batch", 4)}, {"output": spec("batch", 3)}, sizes=[{"batch": 2}, {"batch": 8}])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_moves_are_counted_by_tensor_and_rank(tmp_path: Path, ranks: int) -> None:
    with emulated_backend(counting=False, tp_degree=ranks) as backend:
        run = load(backend, application(Affine(), FORM), tmp_path)["p"]
        constant = backend.upload(torch.zeros(1000))
        run(backend.upload(torch.zeros(2, 4)))
        assert not any(backend.measured().values())  # weights, warm-up and constants are part of no request
        backend.begin_counting()
        handle = backend.upload(torch.zeros(8, 4))
        for _ in range(3):
            (result,) = run(handle)
        backend.download(result)
        counts = backend.measured()
        seconds = counts.pop("estimated_seconds")
        assert counts == {
            "uploads": ranks,
            "upload_bytes": ranks * 128,
            "downloads": 1,
            "download_bytes": 96,
            "dispatches": 3,
            "peak_bytes": 128,
        }
        nbytes = ranks * 128 + 96
        assert seconds == pytest.approx(nbytes / LINK.bytes_per_second + 3 * LINK.dispatch_seconds)
        del handle, constant
        backend.begin_counting()
        assert not any(backend.measured().values())


def test_counting_again_forgets_what_is_there() -> None:
    with emulated_backend() as backend:
        old = backend.upload(torch.zeros(100))
        backend.begin_counting()
        assert backend.measured()["peak_bytes"] == 0
        new = backend.upload(torch.zeros(10))
        del old
        backend.upload(torch.zeros(5))
        assert backend.measured()["peak_bytes"] == 60
        assert backend.open_device.allocated_bytes == [40]
        del new


def test_what_goes_over_the_host_is_counted() -> None:
    with emulated_backend(tp_degree=2) as backend:
        value = torch.arange(4.0)
        handle = backend.upload(value)
        padded_value = backend.adapt(Adapter("pad", (6,), 9))(handle, {})
        assert backend.download(padded_value).tolist() == [0, 1, 2, 3, 9, 9]
        whole = backend.join([handle, padded_value], 0)
        assert whole.shape == (10,)
        counts = backend.measured()
        assert (counts["uploads"], counts["downloads"]) == (2 + 2 + 2, 1 + 1 + 2)
        backend.part(whole, 0, 2, 4)
        assert backend.measured() == counts


class _Part(nn.Module):
    """One rank's part of a ``Linear`` that is cut by its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


SHARDS = {"linear.weight": 0, "linear.bias": 0}


def test_every_rank_runs_on_its_own_weights(tmp_path: Path) -> None:
    whole = nn.Linear(4, 6)
    save_file(
        {f"linear.{name}": value for name, value in whole.state_dict().items()},
        tmp_path / "whole.safetensors",
    )
    config = {
        "checkpoint": str(tmp_path / "whole.safetensors"),
        "shard_weights": SHARDS,
        "sharded": {"output": 1},
    }
    form = program({"x": spec(2, 4)}, {"output": spec(2, 3)})
    with emulated_backend(tp_degree=2) as backend:
        run = load(backend, application(_Part(), form, config=config), tmp_path)["p"]
        assert backend.open_device.allocated_bytes == [(3 * 4 + 3) * 4 + 2 * 3 * 4] * 2
        x = torch.randn(2, 4)
        (handle,) = run(backend.upload(x))
        torch.testing.assert_close(backend.gather(handle, 1), whole(x))
        counts = backend.measured()
        assert (counts["downloads"], counts["download_bytes"]) == (2, 48)
        with pytest.raises(DeviceError, match=r"differs between rank 0 and rank 1.*'sharded'"):
            backend.download(handle)
        backend.compares_ranks = False
        torch.testing.assert_close(backend.download(handle), whole(x)[:, :3])


def test_parts_that_pass_for_the_whole_are_refused_at_load(tmp_path: Path) -> None:
    """Of two outputs one is declared; the other one differs between ranks as well."""

    class Both(_Part):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.linear(x), self.linear(x).sum(1)

    whole = {"linear.weight": torch.randn(6, 4), "linear.bias": torch.randn(6)}
    config = {"checkpoint": whole, "shard_weights": SHARDS, "sharded": {"parts": 1}}
    outputs = {"parts": spec(2, 3), "sum": spec(2)}
    item = application(Both(), program({"x": spec(2, 4)}, outputs, returns="tuple"), config=config)
    with emulated_backend(tp_degree=2) as backend:
        refuses(
            CompileError,
            ("The output 'sum'", "differs between rank 0 and rank 1", "{'sharded': {'sum': dim}}"),
            lambda: load(backend, item, tmp_path),
        )


def test_equal_ranks_may_hold_nan(tmp_path: Path) -> None:
    with emulated_backend(tp_degree=2) as backend:
        for dtype in (torch.float32, torch.bfloat16):
            value = torch.tensor([float("nan"), 1.0, float("inf")], dtype=dtype)
            assert backend.download(backend.upload(value)).isnan()[0]
        assert backend.download(backend.upload(torch.tensor(float("nan")))).isnan()
        handle = backend.upload(torch.zeros(2))
        handle[1][0].copy_(torch.tensor([0.0, float("nan")]))
        with pytest.raises(DeviceError, match="differs"):
            backend.download(handle)


def test_memory_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    # On the byte: one less than it takes is refused, empty or with a value on the device, and changes nothing.
    weights, buffers = (12 + 3 + 3 + 3) * 4, (2 * 3 + 8 * 3) * 4
    item = application(Affine(), FORM)
    for in_use in (0, 40):
        with emulated_backend(budget=weights + buffers + in_use - 1, tp_degree=2) as backend:
            handle = backend.upload(torch.zeros(in_use // 4))
            with pytest.raises(CompileError) as excinfo:
                load(backend, item, tmp_path)
            text = str(excinfo.value)
            assert f"takes {weights + buffers} bytes of each rank" in text
            assert f"weights {weights}" in text
            assert f"output buffers of 2 programs {buffers}" in text
            assert f"{in_use} of {weights + buffers + in_use - 1} are taken" in text
            assert backend.open_device.allocated_bytes == [in_use] * 2
            del handle
    with emulated_backend(budget=weights + buffers) as backend:
        programs = load(backend, item, tmp_path)
        assert backend.open_device.allocated_bytes == [weights + buffers]
        with pytest.raises(DeviceError, match=f"{weights + buffers} of its"):
            backend.upload(torch.zeros(1))
        del programs
        assert backend.open_device.allocated_bytes == [0]


def test_a_core_has_the_memory_of_a_real_one() -> None:
    with emulated_backend(logical_nc_config=1) as backend:
        assert backend.open_device.budget == 12_000_000_000
    with emulated_backend() as backend:
        assert backend.open_device.budget == 24_000_000_000
