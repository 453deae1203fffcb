"""The backend of the device ``neuron``: TorchNeuron, a device of torch that compiles each new shape.

Each logical core is a device group, ``neuron:0``, ``neuron:1``. A stage is compiled whole, for all combinations of its
buckets, while it is loaded; adapters are single operations, warmed then too. A stage with operations that the device
does not have runs operation by operation, since these go over the host.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, ClassVar

import torch

from orchestrator.backend import Adapter, Capabilities, Handle, Operation, TensorBackend
from orchestrator.errors import CompileError, PlanError, PlanOptionError
from orchestrator.specs import PortSpec, TensorSpec, show_spec
from orchestrator.stage import Stage
from orchestrator_neuron.family import CORE_MEMORY, DTYPES, LINK
from orchestrator_neuron.modes import check_scripts, training_notes
from orchestrator_neuron.torchneuron import installation
from orchestrator_neuron.torchneuron.compilation import (
    CompileCounter,
    StageOperations,
    StagePrograms,
    dense,
    in_own_modes,
)
from orchestrator_neuron.torchneuron.host_operations import clear_fallbacks, fallbacks, runs_on_host

__all__ = ["TorchNeuronBackend"]

#: What ``fallback`` may be.
FALLBACKS = ("allow", "refuse")


class TorchNeuronBackend(TensorBackend):
    """One logical core under TorchNeuron; see the module.

    Args:
        device: ``neuron``, alone or with the number of a logical core.
        options: ``eager``: stages run operation by operation. ``fallback``: ``"refuse"`` refuses operations that run
            on the host. ``logical_nc_config``: physical cores of a logical one, 1 or 2.

    Raises:
        PlanError: torch has no such device here.
    """

    option_types: ClassVar[Mapping[str, type | tuple[type, ...]]] = {
        "eager": bool,
        "fallback": str,
        "logical_nc_config": int,
    }

    def __init__(self, device: str, options: Mapping[str, Any] | None = None) -> None:
        if not installation.is_known():
            raise PlanError(
                f"torch has no device {device!r} here: TorchNeuron (torch-neuronx {installation.PACKAGE.range_text}) "
                f"is not installed, or TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps torch from loading it. Install it; or "
                f"plan for 'nxdi', NxD Inference, whose cores are one group; or try it on the simulated device of "
                f"orchestrator_neuron.torchneuron.simulated.",
                device=device,
            )
        super().__init__(device, options)
        cores = _choice(self.options, "logical_nc_config", tuple(CORE_MEMORY), 2)
        self._refuses_fallback = _choice(self.options, "fallback", FALLBACKS, "allow") == "refuse"
        self._counter = CompileCounter(installation.DEVICE)
        self._is_warm = False
        # Several cores in one process: no direct way between them is documented, so values go over the host.
        self._capabilities = Capabilities(
            static_shapes=True,
            peer_copy=False,
            falls_back=installation.knows_operations(),
            memory=CORE_MEMORY[cores],
            link=LINK,
        )

    @classmethod
    def accepts(cls, device: str) -> bool:
        """Tells whether it is ``neuron``, or ``neuron:`` and a number."""
        return re.fullmatch(r"neuron(:(0|[1-9][0-9]*))?", device, re.ASCII) is not None

    @classmethod
    def canonical(cls, device: str) -> str:
        """Returns ``neuron:0`` for ``neuron``, and for what torch calls it besides."""
        return f"{installation.DEVICE}:{device.partition(':')[2] or 0}"

    @classmethod
    def substitute(cls, device: str) -> str | None:
        """Returns ``nxdi`` where torch has no such device: the name was NxD Inference's, whose cores are one group."""
        return "nxdi" if device in ("neuron", "neuron:0") and not installation.is_known() else None

    @property
    def capabilities(self) -> Capabilities:
        """Eager at static shapes; memory is that of a logical core of trn2."""
        return self._capabilities

    def review(
        self, stage: Stage, inputs: Mapping[str, PortSpec], outputs: Mapping[str, PortSpec]
    ) -> Iterable[str]:
        """Refuses a script, and a port of a dtype that the device does not compute with.

        Raises:
            PlanError: The stage cannot run here.
        """
        check_scripts(stage, self.device)
        for side, ports in (("input", inputs), ("output", outputs)):
            for port, spec in ports.items():
                # Integers of 64 bits keep their dtype there; floating-point numbers lose digits.
                fits = not isinstance(spec, TensorSpec) or spec.dtype in (*DTYPES, torch.int64)
                if not fits:
                    raise PlanError(
                        f"The {side} port {port!r} of stage {stage.name!r} is {show_spec(spec)}, and TorchNeuron "
                        f"computes 64-bit floating point in 32 bits. Declare it as float32 (a port with "
                        f"allow_cast=True converts), or run the stage on the host or on 'cpu'.",
                        stage=stage.name,
                        port=port,
                    )
        return training_notes(stage, self.device)

    def open(self, budget: int = 0, reserved: int = 0) -> None:
        """Takes the core into use; it warns of versions outside the known range.

        Raises:
            CompileError: The package is for another torch, the core is not there, or it has less memory than planned.
        """
        # Cheapest first, and the device last.
        installation.check_version(self.device)
        for note in installation.version_notes():
            warnings.warn(note, stacklevel=2)
        module = getattr(torch, installation.DEVICE, None)
        index = self._torch_device.index or 0
        memory = 0
        try:
            count = int(module.device_count()) if module is not None else 0
            if index < count:
                torch.empty(0, device=self._torch_device)
                memory = _memory_of(index)
        except Exception as error:
            raise CompileError(
                f"The device {self.device!r} cannot be used: {type(error).__name__}: "
                f"{str(error).partition(chr(10))[0]}",
                device=self.device,
            ) from error
        if index >= count:
            raise CompileError(
                f"The device {self.device!r} is not there: torch sees {count} logical Neuron cores, 'neuron:0' and on. "
                f"Plan for one of these, or run where the device is.",
                device=self.device,
            )
        needs = budget or self.capabilities.memory
        if 0 < memory < needs:
            raise CompileError(
                f"The device {self.device!r} has {memory} bytes of memory, and the plan may use {needs}. Plan with "
                f"memory={{{self.device!r}: {memory}}}, or with logical_nc_config=1 where a core is half as large.",
                device=self.device,
            )

    def load(self, stage: Stage, sizes: Sequence[Mapping[str, int]] = ()) -> Callable[..., Any]:
        """Returns the stage's programs; they are compiled by :meth:`prepare`.

        Raises:
            CompileError: It cannot be built or moved.
        """
        target = super().load(stage, sizes)
        if self.is_eager(stage):
            return StageOperations(stage, target, frozenset())
        return StagePrograms(stage, target, self._counter)

    def with_host_operations(self, function: Callable[..., Any], names: Set[str]) -> Callable[..., Any]:
        """Returns the stage run operation by operation, so that these are all that goes over the host."""
        return StageOperations(function.stage, function.target, names)  # type: ignore[attr-defined]

    def host_operations(self, stage: Stage, operations: Sequence[Operation]) -> Sequence[Operation]:
        """Returns the operations without a kernel; none of a stage that is compiled whole by its own config.

        Raises:
            PlanError: There are such, and ``fallback`` is ``"refuse"``.
        """
        if stage.config.get("eager") is False:
            return ()
        on_host = [operation for operation in operations if runs_on_host(operation)]
        if on_host and self._refuses_fallback:
            names = ", ".join(dict.fromkeys(operation.name for operation in on_host))
            raise PlanError(
                f"Stage {stage.name!r} runs {names}, which TorchNeuron has no kernel for and would run on the host, "
                f"and options={{'fallback': 'refuse'}}. Write it with other operations; place the stage on 'cpu'; or "
                f"compile it whole, with config={{'eager': False}}, where the compiler may know them.",
                stage=stage.name,
                operations=tuple(dict.fromkeys(operation.name for operation in on_host)),
            )
        return on_host

    def is_eager(self, stage: Stage) -> bool:
        """Tells whether a stage runs operation by operation: as its config says, or the plan's option."""
        return bool(stage.config.get("eager", self.options.get("eager", False)))

    def prepare(
        self, function: Callable[..., Any], args: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> None:
        """Compiles a stage for the shapes of these arguments; one that runs eagerly is called.

        Raises:
            CompileError: It cannot be compiled.
        """
        self._is_warm = True
        if isinstance(function, StagePrograms):
            function.compile(args, keywords)
            return
        # What falls back is known for sure only now: a kernel may give up on some arguments.
        clear_fallbacks()
        function(*args, **keywords)
        self.synchronize()
        if isinstance(function, StageOperations):
            self._check_fallbacks(function)

    def _check_fallbacks(self, function: StageOperations) -> None:
        # Those of the plan are counted there; others have copies that nobody counted.
        surprises = [name for name in fallbacks() if name not in function.host_operations]
        if not surprises:
            return
        message = (
            f"Stage {function.stage.name!r} ran {', '.join(surprises)} on the host, which the plan does not say: the "
            f"device has a kernel for it and did not use it, so its copies are not counted."
        )
        if self._refuses_fallback:
            raise CompileError(
                f"{message} The plan has options={{'fallback': 'refuse'}}.",
                stage=function.stage.name,
                operations=tuple(surprises),
            )
        warnings.warn(message, stacklevel=2)

    def upload(self, value: torch.Tensor) -> Handle:
        """Copies a host tensor to the core, dense."""
        return in_own_modes(super().upload, dense(value))

    def adapt(self, adapter: Adapter) -> Callable[[Handle, Mapping[str, int]], Handle]:
        """Returns the eager operation; what it gives is dense."""
        function = super().adapt(adapter)
        return lambda handle, sizes: in_own_modes(lambda: dense(function(handle, sizes)))

    def copy(self, handle: Handle, device: str) -> Handle:
        """Brings a tensor from another core, over the host."""
        return self.upload(self.download(handle))

    def synchronize(self) -> None:
        """Waits for all that the core was asked to do."""
        getattr(torch, installation.DEVICE).synchronize(self._torch_device.index)

    def begin_counting(self) -> None:
        """Compiles nothing from now on, unless it was loaded cold."""
        if self._is_warm:
            self._counter.close()

    def measured(self) -> Mapping[str, Any]:
        """Returns ``compiles``: graphs that were compiled since the device was opened, all at a warm load."""
        return {"compiles": self._counter.compiles}


def _memory_of(index: int) -> int:
    """Bytes of a core's memory, as the package tells; 0: it does not."""
    for place in (getattr(torch, installation.DEVICE), sys.modules.get("torch_neuronx")):
        properties = getattr(place, "get_device_properties", None)
        if properties is not None:
            return int(properties(index).total_memory)
    return 0


def _choice(options: Mapping[str, Any], name: str, choices: tuple[Any, ...], default: Any) -> Any:
    """The value of an option.

    Raises:
        PlanOptionError: It is none of the choices.
    """
    value = options.get(name, default)
    if value not in choices:
        raise PlanOptionError(
            f"Option {name!r} is {' or '.join(map(repr, choices))}, not {value!r}.", option=name
        )
    return value
