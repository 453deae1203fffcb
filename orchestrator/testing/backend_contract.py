"""The contract of a backend; see :mod:`orchestrator.testing.contracts` for its use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.adapter import Adapter, apply
from orchestrator.backend import Backend, Capabilities, CompilingBackend, EagerBackend, Handle
from orchestrator.errors import CompileError
from orchestrator.stage import ModelWrapper, Stage, make_stage
from orchestrator.store import ArtifactStore
from orchestrator.testing.compare import assert_same
from orchestrator.testing.run_stage import application_key, run_stage
from orchestrator.testing.stages import Add, Linear, SeededLinear, SplitHalves, TotalAndShift

__all__ = ["BackendCase", "BackendContract"]

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)
SHAPES = ((), (0,), (1,), (7,), (3, 4), (2, 0, 5), (2, 3, 4))
ADAPTERS = (
    Adapter("pad", (4, 6), 0),
    Adapter("pad", ("batch", 5), 1.5, to_bucket=True),
    Adapter("pad", (4, 6), "repeat_first"),
    Adapter("pad", (3, 4), None),
    Adapter("slice", (3, 2)),
    Adapter("slice", (3, 4)),
    Adapter("cut", ("real", 4)),
    Adapter("cast", dtype=torch.float16),
    Adapter("cast", dtype=torch.float32),
)
SIZES = {"batch": 8, "real": 2}


@dataclass(frozen=True)
class BackendCase:
    """A backend and what it is tried with.

    Attributes:
        kind: The backend's class.
        device: A device that is there, in any spelling.
        options: Options of the backend.
        absent: A device of the family that is not there; empty: there is none.
        other: A second device that is there; empty: there is none.
        computes: Stages really run and values keep their content; else only forms are compared.
        in_place: A module made on the host is on the device already, and is used as it is.
        exact: Stages give bit for bit what they give on the host.
        dtypes: Element types that the device holds.
    """

    kind: type[Backend]
    device: str
    options: Mapping[str, Any] = field(default_factory=dict)
    absent: str = ""
    other: str = ""
    computes: bool = True
    in_place: bool = False
    exact: bool = True
    dtypes: tuple[torch.dtype, ...] = DTYPES

    def make(self, device: str = "") -> Backend:
        """Makes a backend object; no device is touched."""
        return self.kind(device or self.device, dict(self.options))

    def assert_like(self, result: torch.Tensor, reference: torch.Tensor, exact: bool = True) -> None:
        """Compares values, or only their forms where nothing computes."""
        if self.computes:
            assert_same(result, reference, exact=exact)
        else:
            assert (tuple(result.shape), result.dtype) == (tuple(reference.shape), reference.dtype)


def _read(backend: Backend, handle: Handle) -> torch.Tensor:
    """A value on the host, there for reading."""
    value = backend.download(handle)
    if backend.capabilities.deferred:
        backend.synchronize()
    return value


def _sample(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 50
    return values.abs().to(dtype) if dtype is torch.uint8 else values.to(dtype)


def _name(target: object) -> str:
    return type(target).__name__


class _Unbuildable(ModelWrapper):
    def make_model(self) -> Any:
        raise OSError("the weights are not there")

    model_cls = SeededLinear


class BackendContract:
    """What every backend keeps; subclass it and give it a fixture ``case`` that returns a :class:`BackendCase`."""

    @pytest.fixture
    def case(self) -> BackendCase:
        """The backend to try; override it."""
        raise NotImplementedError("Override the fixture `case`.")

    @pytest.fixture
    def backend(self, case: BackendCase) -> Iterator[Backend]:
        """A backend object whose device is in use."""
        backend = case.make()
        backend.open()
        with torch.no_grad():
            yield backend
        backend.close()

    @pytest.fixture
    def store(self, tmp_path: Path) -> ArtifactStore:
        """An empty store."""
        return ArtifactStore(tmp_path / "store")

    def test_a_device_has_one_spelling(self, case: BackendCase) -> None:
        """The canonical spelling is its own, is accepted, and is that of the object."""
        spelling = case.kind.canonical(case.device)
        assert case.kind.canonical(spelling) == spelling
        assert case.kind.accepts(case.device)
        assert case.kind.accepts(spelling)
        assert case.make().device == spelling
        assert spelling != "host"

    def test_a_strange_device_is_not_accepted(self, case: BackendCase) -> None:
        """A string that names no device is refused without an error."""
        for strange in ("", "no such device", f"{case.device}:what"):
            assert not case.kind.accepts(strange)

    def test_capabilities_never_change(self, case: BackendCase) -> None:
        """They are the same before and after opening, and for every object with these options."""
        backend = case.make()
        before = backend.capabilities
        assert isinstance(before, Capabilities)
        backend.open()
        assert backend.capabilities == before == case.make().capabilities
        backend.close()
        assert backend.capabilities == before
        assert before.ranks >= 1
        assert before.link.source

    def test_options_are_typed(self, case: BackendCase) -> None:
        """Every option in use is declared with its type."""
        for name, value in case.options.items():
            assert isinstance(value, case.kind.option_types[name])

    def test_planning_needs_no_device(self, case: BackendCase) -> None:
        """An object for a device that is not there can be made and asked; opening it says what is wrong."""
        if not case.absent:
            pytest.skip("every device of this family is there")
        backend = case.make(case.absent)
        assert backend.capabilities.ranks >= 1
        with pytest.raises(CompileError) as error_info:
            backend.open()
        assert backend.device in str(error_info.value)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_values_survive_the_round_trip(
        self, case: BackendCase, backend: Backend, shape: tuple[int, ...]
    ) -> None:
        """Up and down again: bit for bit, for every dtype."""
        for dtype in case.dtypes:
            value = _sample(shape, dtype)
            handle = backend.upload(value)
            case.assert_like(_read(backend, handle), value)
            self._free(backend, handle)

    def test_views_survive_the_round_trip(self, case: BackendCase, backend: Backend) -> None:
        """A tensor that is no contiguous block is read by its elements."""
        whole = _sample((4, 6), torch.float32)
        for view in (whole.t(), whole[1:3, ::2], whole[:1].expand(3, 6)):
            case.assert_like(_read(backend, backend.upload(view)), view.contiguous())

    def test_a_value_can_be_read_twice(self, case: BackendCase, backend: Backend) -> None:
        """Downloading does not use a value up, and what was downloaded is the caller's own."""
        value = _sample((3, 4), torch.float32)
        handle = backend.upload(value)
        first = _read(backend, handle)
        if case.computes and not backend.capabilities.host_memory:
            first.zero_()
        case.assert_like(_read(backend, handle), value)

    @pytest.mark.parametrize("adapter", ADAPTERS, ids=str)
    def test_an_adapter_does_what_it_says(
        self, case: BackendCase, backend: Backend, adapter: Adapter
    ) -> None:
        """A pad, slice, cut or cast gives what :func:`orchestrator.backend.apply` gives, and leaves its source."""
        value = _sample((3, 4), torch.float32)
        handle = backend.upload(value)
        adapted = backend.adapt(adapter)(handle, SIZES)
        case.assert_like(_read(backend, adapted), apply(adapter, value, SIZES))
        case.assert_like(_read(backend, handle), value)

    @pytest.mark.parametrize("dim", [0, 1, 2])
    def test_parts_join_to_the_whole(self, case: BackendCase, backend: Backend, dim: int) -> None:
        """Chunks along any dim, joined in order, are the value they were taken from."""
        value = _sample((5, 6, 7), torch.float32)
        handle = backend.upload(value)
        parts = [backend.part(handle, dim, start, size) for start, size in ((0, 2), (2, 2), (4, 1))]
        case.assert_like(_read(backend, parts[1]), value.narrow(dim, 2, 2))
        case.assert_like(_read(backend, backend.join(parts, dim)), value.narrow(dim, 0, 5))

    def test_a_value_goes_to_another_device(self, case: BackendCase, backend: Backend) -> None:
        """A copy has the same content, and the source stays as it was."""
        if not case.other or not backend.capabilities.peer_copy:
            pytest.skip("there is one device, or none reaches another")
        other = case.make(case.other)
        other.open()
        value = _sample((3, 4), torch.float32)
        handle = backend.upload(value)
        case.assert_like(_read(other, other.copy(handle, other.device)), value)
        case.assert_like(_read(backend, handle), value)
        other.close()

    def test_an_empty_value_has_its_form(self, backend: Backend) -> None:
        """Undefined content, but shape and dtype as asked; no items are allowed."""
        for shape in ((0, 4), (3, 4), ()):
            value = _read(backend, backend.empty(shape, torch.float32))
            assert (tuple(value.shape), value.dtype) == (shape, torch.float32)

    def test_freeing_one_value_leaves_others(self, case: BackendCase, backend: Backend) -> None:
        """Also where one was made from the other by a view."""
        value = _sample((4, 4), torch.float32)
        whole = backend.upload(value)
        part = backend.part(whole, 0, 1, 2)
        cut = backend.adapt(Adapter("cut", ("real", 4)))(whole, SIZES)
        self._free(backend, whole)
        case.assert_like(_read(backend, part), value[1:3])
        case.assert_like(_read(backend, cut), value[:2])

    @pytest.mark.parametrize(
        "target", [SeededLinear(4, 3), Linear(), SplitHalves(), TotalAndShift(), Add()], ids=_name
    )
    def test_a_stage_gives_what_it_gives_by_hand(
        self, case: BackendCase, backend: Backend, store: ArtifactStore, target: Any
    ) -> None:
        """In the form it gives it: a value, a tuple, or a dict."""
        value = _sample((2, 4), torch.float32)
        stage = make_stage("stage", target)
        self._try(case, backend, store, stage, {stage.inputs[0].name: value}, target(value))

    def test_a_stage_takes_ports_by_name_and_plain_values(
        self, case: BackendCase, backend: Backend, store: ArtifactStore
    ) -> None:
        """Optional ports may be left out, and constants that are no tensors come as they are."""
        value = _sample((2, 4), torch.float32)
        stage = make_stage("stage", Add())
        self._try(case, backend, store, stage, {"a": value, "b": value}, value + value)
        self._try(case, backend, store, stage, {"a": value, "b": 2.0}, value + 2.0)

    def test_a_module_is_left_alone(self, case: BackendCase, backend: Backend, store: ArtifactStore) -> None:
        """Loading moves a copy, never the user's own; one that is on the device already is used as it is."""
        module = SeededLinear()
        before = [(id(tensor), tensor.device, tensor._version) for tensor in module.parameters()]
        stage, value = make_stage("stage", module), _sample((2, 4), torch.float32)
        self._try(case, backend, store, stage, {"x": value}, module(value))
        assert [(id(tensor), tensor.device, tensor._version) for tensor in module.parameters()] == before
        if isinstance(backend, EagerBackend):
            assert (backend.load(stage, [{}]) is module) == case.in_place

    def test_what_cannot_be_built_is_a_compile_error(
        self, case: BackendCase, backend: Backend, store: ArtifactStore
    ) -> None:
        """The error names the stage and keeps the cause."""
        if not case.computes:
            pytest.skip("it builds nothing")
        stage, value = make_stage("stage", _Unbuildable()), _sample((2, 4), torch.float32)
        with pytest.raises(CompileError, match="stage") as error_info:
            run_stage(backend, store, stage, {"x": value}, value)
        assert isinstance(error_info.value.__cause__, OSError)

    def test_artifacts_are_keyed_by_content(self, backend: Backend) -> None:
        """Equal stages share a key, whatever their weights hold; another form, config, size or adapter has its own."""
        if not isinstance(backend, CompilingBackend):
            pytest.skip("it compiles nothing, so nothing has a key")

        def key(
            target: Any, sizes: Mapping[str, int], adapters: tuple[Adapter, ...] = (), **more: Any
        ) -> str:
            return application_key(backend, make_stage("stage", target, **more), sizes, adapters)

        # What weights hold is no part of a program: the same one runs with any checkpoint of that form.
        base = key(SeededLinear(4, 3), {"batch": 2})
        assert base == key(SeededLinear(4, 3), {"batch": 2})
        assert base == key(SeededLinear(4, 3, seed=5), {"batch": 2})
        # Whatever changes the code that runs, or the shapes that it runs at, is another program.
        others = [
            key(SeededLinear(4, 5), {"batch": 2}),
            key(SeededLinear(4, 3).double(), {"batch": 2}),
            key(SeededLinear(4, 3), {"batch": 4}),
            key(SeededLinear(4, 3), {"batch": 2}, (Adapter("pad", (4, 4), 0),)),
            key(SeededLinear(4, 3), {"batch": 2}, (Adapter("pad", (4, 4), 1),)),
            key(Linear({"features_out": 3}), {"batch": 2}),
            key(Linear({"features_out": 7}), {"batch": 2}),
            key(torch.relu, {"batch": 2}, inputs=("x",)),
        ]
        assert len({base, *others}) == 1 + len(others)

    def _try(
        self,
        case: BackendCase,
        backend: Backend,
        store: ArtifactStore,
        stage: Stage,
        arguments: Mapping[str, Any],
        reference: Any,
    ) -> None:
        """Runs a stage and compares what it gives."""
        self._compare(case, backend, run_stage(backend, store, stage, arguments, reference), reference)

    def _free(self, backend: Backend, handle: Handle) -> None:
        if not backend.capabilities.refcounted:
            backend.free(handle)

    def _compare(self, case: BackendCase, backend: Backend, outputs: Any, reference: Any) -> None:
        if isinstance(reference, Mapping):
            assert set(outputs) == set(reference)
            for name, value in reference.items():
                case.assert_like(_read(backend, outputs[name]), value, case.exact)
        elif isinstance(reference, tuple):
            for handle, value in zip(outputs, reference, strict=True):
                case.assert_like(_read(backend, handle), value, case.exact)
        else:
            case.assert_like(_read(backend, outputs), reference, case.exact)
