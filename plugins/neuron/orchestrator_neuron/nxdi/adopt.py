"""Stages that users wrote for NxD Inference: their wrappers and applications, as stages of a pipeline.

A user's wrapper names a model class, its config and example inputs. That is all a stage needs: ports come from the
parameters of the model's ``forward``, shapes from the example inputs, flags from the plan. It runs on ``cpu`` and
``neuron-emulated`` too, where its model is a plain module.

NxD Inference's own ``get_model_instance`` and ``forward`` are those of a language model and fail for any other. Where a
wrapper overrides them they are used on ``nxdi``; where it does not, they are filled in. A program into which adapters
are folded, and the second program of a stage, are called directly: a ``forward`` that was written for the stage's own
inputs does not fit them.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from orchestrator.specs import PortSpec
from orchestrator.stage import Stage
from orchestrator_neuron.checkpoint import load_weights
from orchestrator_neuron.nxdi.checks import (
    Row,
    check_dtypes,
    check_modes,
    differences,
    mend_flags,
    row_misfit,
)
from orchestrator_neuron.nxdi.parts import RankParts, read_parts, scaled_row
from orchestrator_neuron.nxdi.rank_files import join_parts, rank_files
from orchestrator_neuron.nxdi.read import (
    Ports,
    config_text,
    copy_of,
    declared_inputs,
    example_rows,
    instance_of,
    load_weights_of,
    options_of,
    overrides,
    port_names,
    source_of,
)
from orchestrator_neuron.options import NeuronSettings, normalize
from orchestrator_neuron.wrapper import NeuronWrapper

__all__ = ["CACHE", "AdoptedStage"]


#: The port of what submodels of an application keep on the device.
CACHE = "cache"


class _UserObjects:
    """A user's own wrapper and application, which all copies of a stage share: a loaded one cannot be copied.

    Attributes:
        parts: What each of so many ranks has a part of.
        forms: What each of so many ranks, of a world, runs.
        is_reviewed: A plan has said where the weights come from.
    """

    def __init__(self, wrapper: Any, application: Any) -> None:
        self.wrapper, self.application = wrapper, application
        self.parts: dict[int, RankParts] = {}
        self.forms: dict[tuple[int, int], AdoptedStage] = {}
        self.is_reviewed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> _UserObjects:
        return self


class _WrapperCheckpoint(dict[str, Any]):
    """A state_dict that copies of a stage share: it is the user's, and large."""

    @classmethod
    def of(cls, checkpoint: Any) -> Any:
        """Returns a state_dict as one, and a path as it is."""
        return cls(checkpoint) if isinstance(checkpoint, Mapping) else checkpoint

    def __deepcopy__(self, memo: dict[int, Any]) -> _WrapperCheckpoint:
        return self


class AdoptedStage(NeuronWrapper):
    """A user's NxD Inference wrapper, or application, as a stage; see :func:`orchestrator_neuron.from_nxdi`.

    Its ports state whole values, also those of which each rank takes a part.

    Attributes:
        rows: Specs of its example inputs on one rank, a row for each bucket.
        neuron_options: Its ``NeuronConfig``, as options of the stage.
    """

    is_whole = True

    def __init__(
        self,
        wrapper: Any,
        application: Any = None,
        inputs: Ports | None = None,
        outputs: Ports | None = None,
        checkpoint: Any = None,
        rows: list[Row] | None = None,
    ) -> None:
        super().__init__(wrapper.config, wrapper.model_cls, wrapper.tag or type(wrapper).__name__)
        self._user = _UserObjects(wrapper, application)
        self._arguments = mend_flags(wrapper)
        check_modes(wrapper)
        if rows is None:
            rows = example_rows(wrapper)
            check_dtypes(wrapper, rows)
        self.rows = rows
        self._degrees = (1, 1)
        self.outputs = outputs if outputs is not None else {}
        self.neuron_options = options_of(wrapper)
        self._draws_weights = isinstance(checkpoint, str) and checkpoint == "random"
        if checkpoint is not None and not self._draws_weights:
            self.neuron_options |= normalize({"checkpoint": _WrapperCheckpoint.of(checkpoint)}, self.tag)
        # As they are now: loading an application writes into its objects.
        self._sources = [
            source_of(wrapper),
            source_of(application),
            config_text(self.config),
            wrapper.compiler_args,
        ]
        self.inputs = declared_inputs(self._whole_rows(), port_names(wrapper, application), inputs)
        model = wrapper.model if application is None else None
        self._has_model = isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule)
        if self._has_model:
            self._model = model

    def key_parts(self) -> list[object]:
        """Returns sources, config and arguments: an application is the same stage before it is loaded and after."""
        return [
            self.tag,
            self.config,
            self.model_cls,
            self._arguments,
            self.rows,
            {name: value for name, value in self.neuron_options.items() if name != "checkpoint"},
            self._sources,
        ]

    @property
    def nxdi_wrapper(self) -> Any:
        """The user's wrapper; it is never written to, except where it is part of an application."""
        return self._user.wrapper

    @property
    def application(self) -> Any:
        """The user's application, if the stage is one."""
        return self._user.application

    @property
    def model(self) -> Any:
        """The model as a plain module; that of an application has the weights of its checkpoint."""
        if self.__dict__.get("_model") is None:
            model = self.make_model()
            if self._degrees == (1, 1):
                self._fill(model)
            self._model = model
        return self._model

    def _fill(self, model: torch.nn.Module) -> None:
        """Gives the whole model its weights."""
        checkpoint = self.neuron_options.get("checkpoint")
        if self.application is not None:
            load_weights_of(model, self.application)
        elif checkpoint is None and not (self._draws_weights or self._user.is_reviewed):
            warnings.warn(
                f"The weights of {self.tag!r} are drawn at random, since from_nxdi(..., checkpoint=...) gives none; "
                f"checkpoint='random' says that this is meant.",
                stacklevel=3,
            )
        elif checkpoint is not None:
            model.load_state_dict(self._whole_weights(model, checkpoint), strict=False, assign=True)

    def _whole_weights(self, model: torch.nn.Module, checkpoint: Any) -> Mapping[str, torch.Tensor]:
        """The weights of the whole model, where a checkpoint is cut already those of all ranks joined."""
        files = rank_files(self.tag, checkpoint)
        if files is None:
            return load_weights(self.tag, model, NeuronSettings(checkpoint=checkpoint))
        rank_model = self.weightless(len(files))
        each = [NeuronSettings(checkpoint=str(file)) for file in files]
        parts = [load_weights(self.tag, rank_model, settings) for settings in each]
        return join_parts(self.tag, parts, rank_model, model)

    def make_model(self) -> Any:
        """Builds a new model, whole, as NxD Inference builds that of a rank; in a form, that of a rank."""
        return self._build(*self._degrees)

    def _build(self, degree: int, world: int, has_content: bool = True) -> torch.nn.Module:
        # Here, not above: NxD is imported for it, and `require` has made sure that it can be.
        from orchestrator_neuron.nxdi.models import build_model

        return build_model(self.nxdi_wrapper, self._arguments, self.rows, degree, world, has_content)

    def weightless(self, degree: int) -> torch.nn.Module:
        """Builds the model of one of so many ranks with weights on the meta device, which say how they are cut."""
        return self._build(degree, degree, False)

    def _whole_rows(self) -> list[Row]:
        """Example inputs with the parts of all ranks joined, as ports state values."""
        degree = self.neuron_options["tp_degree"]
        if degree == 1 or len(self.rows) != 1:
            return self.rows
        # What cannot be built says so when it is planned.
        with contextlib.suppress(Exception):
            return [scaled_row(self.rows[0], self.parts(degree).inputs, degree)]
        return self.rows

    def parts(self, degree: int) -> RankParts:
        """Returns what each of so many ranks has a part of.

        Raises:
            PlanError: The model cannot be built for so many, or gives no parts of what the whole one gives.
        """
        # Example inputs are of one rank at the wrapper's own degree; dims are the same at any other.
        own, known = self.neuron_options["tp_degree"], self._user.parts
        degree = own if own > 1 else degree
        if degree not in known:
            row, name = self.rows[0] if self.rows else (), type(self.nxdi_wrapper).__name__
            known[degree] = read_parts(lambda ranks: self._build(ranks, ranks), row, degree, name)
        return known[degree]

    def rank_form(self, degree: int, world: int) -> AdoptedStage:
        """Returns the stage as one rank runs it: its model has parts of weights. It serves planning alone."""
        forms = self._user.forms
        if (degree, world) not in forms:
            form = copy.copy(self)
            form._degrees, form._model = (degree, world), None
            forms[degree, world] = form
        return forms[degree, world]

    @property
    def keeps_memory(self) -> bool:
        """Whether it reads or writes memory that its application keeps on the device."""
        return False

    @property
    def has_forward(self) -> bool:
        """The user's wrapper has a ``forward`` of its own."""
        return overrides(self.nxdi_wrapper, "forward")

    def neuron_review(
        self, stage: Stage, settings: NeuronSettings, inputs: Mapping[str, PortSpec]
    ) -> Iterator[str]:
        """Yields warnings about the stage on a Neuron device.

        Raises:
            PlanError: Its ``NeuronConfig`` contradicts the plan, or the plan feeds it other shapes than
                it is compiled for.
        """
        own = self.application is not None
        self._user.is_reviewed = True
        yield f"Weights of {stage.name!r}: {self._weight_source(settings)}."
        yield from differences(stage.name, self.nxdi_wrapper, settings, own)
        error = row_misfit(stage.name, self.rows, inputs) if own else None
        if error is not None:
            raise error

    def _weight_source(self, settings: NeuronSettings) -> str:
        """Where the weights come from, for a person."""
        checkpoint = settings.checkpoint or self.neuron_options.get("checkpoint")
        if self.application is not None:
            return f"the checkpoint of its application, {str(self.application.model_path)!r}"
        if checkpoint is not None:
            return f"the checkpoint {checkpoint!r}" if isinstance(checkpoint, str) else "a state_dict"
        if self._has_model:
            return "the model of its wrapper"
        drawn = "drawn at random, others each time that it is loaded"
        return (
            drawn
            if self._draws_weights
            else f"{drawn}, since no checkpoint is given: from_nxdi(..., checkpoint=...)"
        )

    def instance(self, config: Any) -> Any:
        """Returns the model instance that NxD traces: the user's own where there is one."""
        return instance_of(self.nxdi_wrapper, self._arguments, config)

    def complete(self) -> None:
        """Gives the wrapper of an application a model instance, and a ``forward`` for any stage where it has none."""
        wrapper, arguments = self.nxdi_wrapper, self._arguments
        dtypes = [spec.dtype for spec in self.rows[0]] if self.rows else []
        wrapper.get_model_instance = lambda: instance_of(wrapper, arguments, wrapper.config, dtypes)
        if torch.int64 in dtypes:
            rows = [wrapper.convert_int64_to_int32(*row) for row in type(wrapper).input_generator(wrapper)]
            wrapper.input_generator = lambda: [tuple(row) for row in rows]
        if not self.has_forward:
            wrapper.forward = lambda *values: wrapper._forward(*wrapper.convert_int64_to_int32(*values))

    def model_for_bucket(self, config: Any) -> Callable[[int], torch.nn.Module]:
        """Builds the user's model for tracing; NxD calls it inside its parallel state.

        Returns:
            A function from bucket to the model of it.

        Raises:
            CompileError: The model keeps state on the device.
        """
        instance = self.instance(config)
        instance.load_module()
        return lambda bucket: instance.get(bucket)[0]

    def program_wrapper(
        self, config: Any, tag: str, instance: Any, examples: Any, arguments: Any, to_host: bool
    ) -> Any:
        """Returns a copy of the user's wrapper, set up for a program; its ``forward`` is the user's."""
        wrapper = copy_of(self.nxdi_wrapper, config)
        wrapper.tag, wrapper.model = tag, None
        wrapper.pipeline_execution, wrapper.return_ranked_to_cpu = True, to_host
        wrapper.get_model_instance = lambda: instance
        wrapper.input_generator = lambda: examples
        if arguments is not None:
            wrapper.compiler_args = arguments
        return wrapper
