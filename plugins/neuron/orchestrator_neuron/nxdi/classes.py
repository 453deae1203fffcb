"""NxD Inference's base classes, filled in for programs. Importing this module imports NxD Inference.

For all stages that share weights there is one :class:`StageApplication`: one set of weights, one compile folder. It
holds a wrapper for each program, and each wrapper is traced through a :class:`ProgramInstance` at every combination of
sizes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from neuronx_distributed.trace.model_builder import BaseModelInstance  # type: ignore[import-not-found]
from neuronx_distributed_inference.models.application_base import (  # type: ignore[import-not-found]
    NeuronApplicationBase,
)
from neuronx_distributed_inference.models.config import (  # type: ignore[import-not-found]
    InferenceConfig,
    NeuronConfig,
)
from neuronx_distributed_inference.models.model_wrapper import (  # type: ignore[import-not-found]
    EncoderModelInstance,
    ModelWrapper,
)

from orchestrator.errors import CompileError
from orchestrator.program import Application, Program
from orchestrator_neuron.checkpoint import rank_weights
from orchestrator_neuron.module import PREFIX, ApplicationModule, ProgramModule, example_inputs
from orchestrator_neuron.options import NeuronSettings
from orchestrator_neuron.state import check_state

__all__ = [
    "EncoderModelInstance",
    "InferenceConfig",
    "ModelWrapper",
    "ModuleForBucket",
    "ModuleSource",
    "NeuronApplicationBase",
    "NeuronConfig",
    "ProgramInstance",
    "ProgramWrapper",
    "StageApplication",
    "StatelessInstance",
]

#: From bucket to what an application runs.
ModuleForBucket: TypeAlias = Callable[[int], ApplicationModule]
#: Makes it anew: NxD throws weights away once it has traced a program of one bucket.
ModuleSource: TypeAlias = Callable[[], ModuleForBucket]


class ProgramInstance(BaseModelInstance):  # type: ignore[misc]
    """Hands NxD the module of one program, another for each combination of sizes, over the same weights.

    Args:
        source: Makes what the application runs anew.
        application: The application.
        program: The program.
        sizes: Its combinations of sizes, in the order of the example inputs.
    """

    def __init__(
        self,
        source: ModuleSource,
        application: Application,
        program: Program,
        sizes: Sequence[Mapping[str, int]],
    ) -> None:
        self._source, self._application = source, application
        self._program, self._sizes = program, tuple(sizes)
        self._module_for_bucket: ModuleForBucket | None = None

    def load_module(self) -> None:
        """Builds what the application runs; NxD calls it inside its parallel state."""
        self._module_for_bucket = self._source()

    def get(self, bucket_rank: int, **_: Any) -> tuple[torch.nn.Module, dict[Any, int]]:
        """Returns the module of one combination of sizes, and its states with the place of each among its outputs.

        Raises:
            CompileError: It keeps state of its own.
        """
        application_module = (self._module_for_bucket or self._source())(bucket_rank)
        program, sizes = self._program, self._sizes[bucket_rank]
        target = application_module.target(self._application, program)
        states = self._application.states
        module = ProgramModule(target, application_module.owner, program, sizes, states=states).eval()
        if bucket_rank == 0 and target is not None:
            where = f"The program {program.name!r}"
            check_state(where, program.name, module, example_inputs(program, sizes))
        # NxD makes the memory of states for the first program alone, so that every program gives all of them back.
        first = len(program.results)
        return module, {state: first + number for number, state in enumerate(module.states)}


class StatelessInstance(BaseModelInstance):  # type: ignore[misc]
    """A user's model instance, refused where its model keeps state on the device.

    Args:
        instance: The user's.
        name: Of the user's wrapper, for messages.
        dtypes: What the model takes, by place; empty: as it comes. Integers of 64 bits arrive in 32.
    """

    def __init__(self, instance: Any, name: str, dtypes: Sequence[torch.dtype] = ()) -> None:
        self._instance, self._name, self._dtypes = instance, name, tuple(dtypes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_instance"], name)

    def load_module(self) -> None:
        """Builds the model."""
        self._instance.load_module()

    def get(self, bucket_rank: int, **options: Any) -> tuple[torch.nn.Module, dict[Any, int]]:
        """Returns the model of one bucket.

        Raises:
            CompileError: It keeps state on the device.
        """
        module, aliases = self._instance.get(bucket_rank, **options)
        if aliases or getattr(module, "kv_mgr", None) is not None:
            raise CompileError(
                f"The model of {self._name} keeps state on the device (input_output_aliases or kv_mgr). NxD "
                f"Inference starts such state at zero, whatever the checkpoint holds, and carries it from request to "
                f"request. Make the state an input and an output of the stage instead.",
                wrapper=self._name,
            )
        if torch.int64 in self._dtypes and self._widen not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(self._widen)
        return module, {}

    def _widen(self, _module: torch.nn.Module, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Gives the model the integers that it was written for."""
        wide = [
            value.to(dtype) if dtype is torch.int64 else value
            for value, dtype in zip(values, self._dtypes, strict=False)
        ]
        return (*wide, *values[len(wide) :])


class ProgramWrapper(ModelWrapper):  # type: ignore[misc]
    """NxD Inference's wrapper of one program.

    Args:
        config: The application's config.
        tag: Unique in its application.
        instance: Hands out the modules to trace.
        examples: Inputs for each combination of sizes.
        compiler_args: Arguments for the compiler; ``None``: NxD Inference's defaults.
        to_host: Its one output is read on the host only.
    """

    def __init__(
        self,
        config: Any,
        tag: str,
        instance: ProgramInstance,
        examples: list[tuple[torch.Tensor, ...]],
        compiler_args: str | None,
        to_host: bool,
    ) -> None:
        # All by name: given by position, a sixth argument lands in pipeline_execution.
        super().__init__(
            config=config,
            model_cls=ProgramModule,
            tag=tag,
            compiler_args=compiler_args,
            pipeline_execution=True,
            return_ranked_to_cpu=to_host,
        )
        self._instance = instance
        self._examples = examples

    def get_model_instance(self) -> ProgramInstance:
        """Returns the model instance, from which NxD takes the modules to trace."""
        return self._instance

    def input_generator(self) -> list[tuple[torch.Tensor, ...]]:
        """Returns inputs for each combination of sizes."""
        return self._examples

    def forward(self, *values: Any) -> Any:
        """Runs the program on ranked values; see ``ModelWrapper._forward`` for the result."""
        return self._forward(*values)


class StageApplication(NeuronApplicationBase):  # type: ignore[misc]
    """NxD Inference's application of stages that share weights.

    Args:
        folder: Where it is compiled to or loaded from.
        config: The application's config.
        settings: Those in force for the stages.
    """

    def __init__(self, folder: str | os.PathLike[str], config: Any, settings: NeuronSettings) -> None:
        super().__init__(model_path=str(folder), config=config)
        self._settings = settings
        self._weights: Mapping[str, torch.Tensor] = {}
        self._rank_weights: Sequence[Mapping[str, torch.Tensor]] = ()

    def use_weights(
        self, weights: Mapping[str, torch.Tensor], rank_weights: Sequence[Mapping[str, torch.Tensor]] = ()
    ) -> None:
        """Sets the weights that :meth:`load` puts on the device, by their names in the stage's module.

        Args:
            weights: The whole ones.
            rank_weights: In their place those of each rank, where they are cut already.
        """
        self._weights, self._rank_weights = weights, rank_weights

    def forget(self) -> None:
        """Drops the weights on the host, and the builder, which holds the modules, once all is on the device."""
        self._weights, self._rank_weights, self._builder = {}, (), None

    def get_state_dict(self, model_name_or_path: str, config: Any) -> dict[str, torch.Tensor]:
        """Returns the weights by their names in :class:`ProgramModule`: none begins with ``model.``."""
        return _prefixed(self._weights)

    def load_weights(
        self,
        compiled_model_path: str,
        start_rank_id: int | None = None,
        local_ranks_size: int | None = None,
    ) -> None:
        """Puts the weights on the device; those of the option ``shard_weights`` are cut first.

        NxD cuts only its own parallel layers, which ``super()`` does too.
        """
        first = torch.tensor([self._settings.start_rank_id], dtype=torch.int32)
        if self._rank_weights:
            self.traced_model.nxd_model.initialize(list(map(_prefixed, self._rank_weights)), first)
            return
        if not self._settings.shard_weights:
            super().load_weights(compiled_model_path, start_rank_id, local_ranks_size)
            return
        # NxD's sharding first: it leaves these weights whole, as it knows of no layer that they belong to.
        ranks = self.get_builder().shard_checkpoint()
        for rank, row in enumerate(ranks):
            parts = rank_weights(self._weights, self._settings, rank)
            cut = {name: part for name, part in parts.items() if part is not self._weights[name]}
            row.update({f"{PREFIX}{name}": part.contiguous() for name, part in cut.items()})
        self.traced_model.nxd_model.initialize(ranks, first)


def _prefixed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{PREFIX}{name}": tensor for name, tensor in weights.items()}
