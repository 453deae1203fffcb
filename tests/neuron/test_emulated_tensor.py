"""Tensors on the emulated device: moves and views, and nothing else."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from orchestrator.errors import StageError
from orchestrator_neuron.emulated.backend import EmulatedBackend
from orchestrator_neuron.emulated.device import DeviceError
from orchestrator_neuron.emulated.tensor import EmulatedTensor
from orchestrator_neuron.ranked import RankedValue, is_ranked, split_outputs
from tests.neuron.programs import emulated_backend


@pytest.fixture
def backend() -> Iterator[EmulatedBackend]:
    with emulated_backend(tp_degree=2) as backend:
        yield backend


@pytest.fixture
def value() -> torch.Tensor:
    return torch.arange(6.0).reshape(2, 3)


def test_a_value_is_a_list_of_lists_of_device_tensors(backend: EmulatedBackend, value: torch.Tensor) -> None:
    handle = backend.upload(value)
    assert isinstance(handle, list)
    assert [len(row) for row in handle] == [1, 1]
    assert [str(row[0].device) for row in handle] == ["privateuseone:0", "privateuseone:1"]
    assert (handle.shape, handle.dtype) == (value.shape, value.dtype)
    assert repr(handle[1][0]) == "EmulatedTensor([2, 3] float32, device='privateuseone:1')"
    assert repr(handle) == "RankedValue(2 x [2, 3] float32 on privateuseone)"


def test_an_upload_is_a_copy(backend: EmulatedBackend, value: torch.Tensor) -> None:
    handle = backend.upload(value)
    value.zero_()
    assert backend.download(handle).sum() == 15
    backend.download(handle).zero_()
    assert backend.download(handle).sum() == 15


def test_what_is_ranked() -> None:
    with emulated_backend() as backend:
        handle = backend.upload(torch.zeros(1))
        assert is_ranked(handle)
        assert is_ranked([list(row) for row in handle])
        assert is_ranked(tuple(tuple(row) for row in handle))
    for other in (
        None,
        [],
        [[]],
        (),
        [()],
        torch.zeros(1),
        [torch.zeros(1)],
        [[torch.zeros(1)]],
        [[1]],
        "ab",
    ):
        assert not is_ranked(other)


def test_outputs_are_split_by_rank(backend: EmulatedBackend) -> None:
    a, b = (backend.upload(torch.full((1,), number)) for number in (1.0, 2.0))
    first, second = split_outputs([[a[rank][0], b[rank][0]] for rank in range(2)])
    assert (type(first), first[1][0], second[0][0].shape) == (RankedValue, a[1][0], (1,))
    assert backend.download(second) == 2
    with pytest.raises(ValueError, match="longer"):
        split_outputs([[a], [a, b]])


def test_handles_compare_by_identity(backend: EmulatedBackend, value: torch.Tensor) -> None:
    one, other = backend.upload(value), backend.upload(value)
    assert one == one
    assert one != other
    assert other in [one, other]
    assert len({one, other, one}) == 2


VIEWS: dict[str, Callable[[Any], Any]] = {
    "view": lambda x: x.view(6),
    "reshape": lambda x: x.reshape(3, 2),
    "select": lambda x: x[1],
    "slice": lambda x: x[:, 1:],
    "step": lambda x: x[:, ::2],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "transpose": lambda x: x.t(),
    "permute": lambda x: x.permute(1, 0),
    "unsqueeze": lambda x: x.unsqueeze(0).squeeze(0),
    "expand": lambda x: x[:1].expand(4, 3),
    "as_strided": lambda x: x.as_strided((2, 2), (1, 1)),
    "detach": lambda x: x.detach(),
    "flatten": lambda x: x.flatten(),
    "diagonal": lambda x: x.diagonal(),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_allowed(backend: EmulatedBackend, value: torch.Tensor, name: str) -> None:
    tensor = backend.upload(value)[1][0]
    before = list(backend.open_device.allocated_bytes)
    view = VIEWS[name](tensor)
    assert isinstance(view, EmulatedTensor)
    assert backend.open_device.allocated_bytes == before
    assert torch.equal(view.cpu(), VIEWS[name](value))
    tensor.copy_(value + 1)
    assert torch.equal(view.cpu(), VIEWS[name](value + 1))


def test_split_and_iteration_are_views(backend: EmulatedBackend, value: torch.Tensor) -> None:
    tensor = backend.upload(value)[0][0]
    parts = [*tensor.split(2, 1), *tensor.unbind(0), *tensor, *tensor.chunk(3, 1)]
    host_parts = [*value.split(2, 1), *value.unbind(0), *value, *value.chunk(3, 1)]
    for part, host_part in zip(parts, host_parts, strict=True):
        assert torch.equal(part.cpu(), host_part)


REFUSALS: dict[str, Callable[[Any], Any]] = {
    "aten.add.Tensor": lambda x: x + 1,
    "aten.mul.Tensor": lambda x: x * x,
    "aten.clone.default": lambda x: x.clone(),
    "aten.cat.default": lambda x: torch.cat([x, x]),
    "aten.zero_.default": lambda x: x.zero_(),
    "aten.fill_.Scalar": lambda x: x.__setitem__(0, 1.0),
    "aten.eq.Tensor": lambda x: x == x,
    "aten.sum.default": lambda x: x.sum(),
    "aten.zeros_like.default": torch.zeros_like,
    "conversion to torch.float16": lambda x: x.half(),
    "numpy": lambda x: x.numpy(),
    "tolist": lambda x: x.tolist(),
    "item": lambda x: x[0, 0].item(),
    "item() or bool()": lambda x: bool(x[0, 0]),
    "A copy": copy.deepcopy,
    "A pickle": pickle.dumps,
    "ranks": lambda x: x.to("privateuseone:0"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_nothing_is_computed_outside_programs(
    backend: EmulatedBackend, value: torch.Tensor, name: str
) -> None:
    tensor = backend.upload(value)[1][0]
    with pytest.raises(RuntimeError) as excinfo:
        REFUSALS[name](tensor)
    text = str(excinfo.value)
    assert isinstance(excinfo.value, (DeviceError, StageError))
    assert name in text
    assert "privateuseone:1" in text
    assert "the host" in text


def test_host_and_device_do_not_mix(backend: EmulatedBackend, value: torch.Tensor) -> None:
    tensor = backend.upload(value)[0][0]
    for mix in (
        lambda: tensor + value,
        lambda: value @ tensor.t(),
        lambda: torch.add(value, value, out=tensor),
    ):
        with pytest.raises(DeviceError, match=r"mixes a tensor on privateuseone:0 .* with one on cpu"):
            mix()


def test_ranks_do_not_mix(backend: EmulatedBackend, value: torch.Tensor) -> None:
    (one,), (other,) = backend.upload(value)
    with pytest.raises(DeviceError, match=r"mixes tensors of the ranks \[0, 1\]"):
        one + other
    with pytest.raises(DeviceError, match="copy from privateuseone:1 to privateuseone:0"):
        one.copy_(other)


def test_host_tensors_go_there_by_to(backend: EmulatedBackend, value: torch.Tensor) -> None:
    tensor = value.to("privateuseone:1")
    assert isinstance(tensor, EmulatedTensor)
    assert tensor.block.rank == 1
    assert torch.equal(tensor.cpu(), value)
    assert tensor.to("cpu", torch.float16).dtype is torch.float16
    assert torch.equal(torch.empty(2, 3).copy_(tensor), value)
    assert tensor.to("privateuseone:1") is tensor
    counts = backend.measured()
    assert (counts["uploads"], counts["downloads"]) == (1, 3)
    with pytest.raises(DeviceError, match=r"2 ranks, privateuseone:0 to privateuseone:1, not 2"):
        value.to("privateuseone:2")
    with pytest.raises(DeviceError, match="convert it first"):
        tensor.copy_(value.double())


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.complex64])
def test_dtypes_it_does_not_hold_are_refused(backend: EmulatedBackend, dtype: torch.dtype) -> None:
    for move in (backend.upload, lambda value: value.to("privateuseone:0")):
        with pytest.raises(DeviceError, match="does not hold"):
            move(torch.ones(2, dtype=dtype))


def test_two_devices_are_open_one_after_another(value: torch.Tensor) -> None:
    with emulated_backend(tp_degree=4) as outer:
        with emulated_backend() as inner:
            tensor = value.to("privateuseone:0")
            assert inner.measured()["uploads"] == 1
        with pytest.raises(DeviceError, match="closed"):
            tensor.cpu()
        assert value.to("privateuseone:3").cpu().sum() == 15
        assert outer.measured()["uploads"] == 1


def test_torch_is_left_as_it_was(value: torch.Tensor) -> None:
    with emulated_backend():
        torch.random.manual_seed(torch.random.initial_seed())
        with torch.random.fork_rng():
            assert not torch.ones(1).is_pinned()
        assert not torch.accelerator.is_available()
    kernel = ("aten::empty.memory_format", "PrivateUse1")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(*kernel)


def test_kernels_of_somebody_else_are_left_alone(value: torch.Tensor) -> None:
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", lambda *args, **keywords: torch.zeros(()), "PrivateUse1")
    try:
        with emulated_backend() as backend:
            assert torch.equal(backend.download(backend.upload(value)), value)
    finally:
        library._destroy()


def test_nothing_can_be_read_after_close(value: torch.Tensor) -> None:
    with emulated_backend() as backend:
        handle = backend.upload(value)
    for read in (lambda: handle[0][0].cpu(), lambda: handle[0][0][0]):
        with pytest.raises(DeviceError, match="closed"):
            read()
    with pytest.raises(DeviceError, match="not open"):
        backend.download(handle)
    backend.open()
    with pytest.raises(DeviceError, match="closed"):
        backend.download(handle)
    backend.close()


def test_memory_goes_with_the_last_reference(backend: EmulatedBackend, value: torch.Tensor) -> None:
    handle = backend.upload(value)
    part = backend.part(handle, 1, 0, 1)
    del handle
    assert backend.open_device.allocated_bytes == [24, 24]  # a view keeps all of it
    del part
    assert backend.open_device.allocated_bytes == [0, 0]
    assert backend.measured()["peak_bytes"] == 24


def test_memory_is_limited() -> None:
    with emulated_backend(budget=100, tp_degree=2) as backend:
        handle = backend.upload(torch.zeros(20))
        with pytest.raises(DeviceError, match=r"40 bytes of rank 0, but 80 of its 100"):
            backend.upload(torch.zeros(10))
        del handle
        assert backend.upload(torch.zeros(25)).shape == (25,)
        assert backend.open_device.allocated_bytes == [0, 0]


def test_an_empty_value_shows_when_it_is_read(backend: EmulatedBackend) -> None:
    assert backend.download(backend.empty((2,), torch.float32)).isnan().all()
    assert backend.download(backend.empty((2,), torch.int32)).tolist() == [torch.iinfo(torch.int32).max] * 2
    assert backend.measured()["uploads"] == 0


def test_values_of_inference_mode_can_be_used_outside(backend: EmulatedBackend, value: torch.Tensor) -> None:
    with torch.inference_mode():
        handle = backend.upload(value)
    handle[0][0].copy_(value + 1)
    assert handle[0][0].cpu().sum() == 21


def test_uploads_from_threads_are_all_counted(backend: EmulatedBackend, value: torch.Tensor) -> None:
    threads = [threading.Thread(target=backend.upload, args=(value,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert backend.measured()["uploads"] == 16
    assert backend.open_device.allocated_bytes == [0, 0]
