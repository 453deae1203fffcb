"""An application of NxD Inference with several submodels: one stage with an entry point for each.

Submodels share the application's weights and the memory that they keep on the device: the keys and values of a language
model, written by context encoding and by each step of token generation. That memory is a port here, ``cache``: an
output of context encoding, a carry of the loop, an input and an output of token generation. On the device nothing
passes by it, and the planner makes sure that nothing has to; on the host it is a tensor that is updated in place.

What NxD Inference's own ``forward`` of a language model does on the host, padding prompts and filling in what nobody
gave, is in the ports: dims with the application's buckets and its pad values, and inputs that may be left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from orchestrator.errors import GraphError, nearest
from orchestrator.specs import PortSpec, TensorSpec
from orchestrator.stage import Stage
from orchestrator_neuron.nxdi.adopt import CACHE, AdoptedStage
from orchestrator_neuron.nxdi.checks import Row, differences, row_misfit
from orchestrator_neuron.nxdi.models import config_of_degree
from orchestrator_neuron.nxdi.parts import RankParts
from orchestrator_neuron.nxdi.read import Ports
from orchestrator_neuron.nxdi.submodel_models import (
    ApplicationWeights,
    HostModel,
    SubmodelMemory,
    meta_model,
    models_of,
    submodel_instance,
)
from orchestrator_neuron.nxdi.submodel_ports import (
    CONTEXT,
    FILLINGS,
    is_language_model,
    output_specs,
    port_specs,
    row_names,
)
from orchestrator_neuron.options import NeuronSettings

__all__ = ["Submodel", "Submodels"]


class Submodels:
    """An application with several submodels; each is an attribute by its tag, for ``Pipeline.add``.

    Args:
        application: The user's application.
        inputs: For a tag names of its input ports, or names to specs.
        outputs: For a tag names to specs of its output ports, or names.

    Raises:
        GraphError: One of them cannot work, or a tag is unknown.
    """

    def __init__(
        self,
        application: Any,
        inputs: Mapping[str, Ports] | None = None,
        outputs: Mapping[str, Ports] | None = None,
    ) -> None:
        wrappers = [wrapper for models in models_of(application) for wrapper in models]
        tags = [wrapper.tag for wrapper in wrappers]
        for word, ports in (("inputs", inputs), ("outputs", outputs)):
            stray = next((tag for tag in ports or () if tag not in tags), None)
            if stray is not None:
                raise GraphError(
                    f"{word}= of {type(application).__name__} is by submodel, and there is none called {stray!r}."
                    f"{nearest(stray, tags)}",
                    application=type(application).__name__,
                )
        self._name = type(application).__name__
        if len(set(tags)) < len(tags):
            raise GraphError(
                f"{self._name} has submodels of one tag: {tags}. NxD Inference keeps what it compiles by tag, so one "
                f"would pass for the other; give each a tag of its own.",
                application=self._name,
            )
        weights = ApplicationWeights(application)
        self.entries: Mapping[str, Submodel] = {
            wrapper.tag: Submodel(
                wrapper,
                application,
                weights,
                (inputs or {}).get(wrapper.tag),
                (outputs or {}).get(wrapper.tag),
            )
            for wrapper in wrappers
        }
        # Now, while nobody plans: it is built outside of the planner's modes.
        _ = weights.holder
        for models in models_of(application):
            self._check_routes([self.entries[wrapper.tag] for wrapper in models])

    def _check_routes(self, entries: Sequence[Submodel]) -> None:
        """Refuses submodels that NxD's router cannot tell apart: it looks at nothing but shapes.

        Raises:
            GraphError: Two of them take inputs of the same shapes.
        """
        tags: dict[tuple[Any, ...], str] = {}
        for entry in entries:
            tag = entry.tag
            for shapes in {tuple(spec.dims for spec in row) for row in entry.rows}:
                other = tags.setdefault(shapes, tag)
                if other != tag:
                    raise GraphError(
                        f"The submodels {other!r} and {tag!r} of {self._name} both take inputs of the shapes "
                        f"{list(map(list, shapes))}. NxD Inference tells submodels apart by nothing else, and would "
                        f"run {tag!r} for both, silently. Make one application for each, or give one of them another "
                        f"size.",
                        application=self._name,
                    )

    def __getattr__(self, tag: str) -> Submodel:
        entries = self.__dict__.get("entries", {})
        if tag not in entries:
            raise AttributeError(
                f"{self.__dict__.get('_name')} has no submodel {tag!r}.{nearest(tag, entries)}",
                name=tag,
                obj=self,
            )
        return entries[tag]  # type: ignore[no-any-return]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.entries]

    def __repr__(self) -> str:
        return f"<{self._name} with the submodels {', '.join(self.entries)}: add one of them>"


class Submodel(AdoptedStage):
    """One submodel of an application; see :class:`Submodels`.

    Its outputs are declared: what keeps state by itself is not tried while planning.

    Attributes:
        row_names: What its model takes, in order.
        memory: What it keeps on the device, if anything.
    """

    opaque = True

    def __init__(
        self,
        wrapper: Any,
        application: Any,
        weights: ApplicationWeights,
        inputs: Ports | None,
        outputs: Ports | None,
    ) -> None:
        # 1. What it takes: all of a row, but for what its application fills in.
        self._examples = [tuple(row) for row in wrapper.input_generator()]
        rows = [tuple(TensorSpec(tuple(value.shape), value.dtype) for value in row) for row in self._examples]
        self.row_names = row_names(wrapper, rows, inputs)
        for_language = is_language_model(application) and any(
            wrapper is other for other in application.models
        )
        if inputs is None:
            empty = [name for name, spec in zip(self.row_names, rows[0], strict=True) if 0 in spec.dims]
            left_out = [*empty, *FILLINGS] if for_language else []
            names = [name for name in self.row_names if name not in left_out]
        else:
            names = [name for name in inputs if name in self.row_names]
        super().__init__(wrapper, application, names, {}, rows=rows)
        own = dict(inputs) if isinstance(inputs, Mapping) else {}
        specs = port_specs(wrapper, rows, self.row_names, for_language)
        self.inputs = {name: own.get(name) or specs[name] for name in names}
        # 2. What it keeps: who reads a prompt begins it, the others update it.
        self._weights = weights
        # Its ports are declared, not read from the model's parameters.
        self.model_cls = None
        self.memory = self._read_memory()
        self.outputs = dict(output_specs(wrapper, rows, for_language, outputs))
        if self.memory is not None:
            cache = TensorSpec((self.memory.size,), self.memory.dtype)
            self.outputs = {**self.outputs, CACHE: cache}
            if not self._begins:
                self.inputs = {**self.inputs, CACHE: cache}
                self.aliases = {CACHE: CACHE}

    def _whole_rows(self) -> list[Row]:
        # Its ports are told one by one.
        return []

    def parts(self, degree: int) -> RankParts:
        """Returns none: what it gives is declared, and whole; its weights are those of a rank in any case."""
        return RankParts()

    @property
    def _begins(self) -> bool:
        """Whether it writes what submodels keep, whatever was there before."""
        return bool(self.tag == CONTEXT)

    @property
    def keeps_memory(self) -> bool:
        """Whether it reads or writes memory that its application keeps on the device."""
        return self.memory is not None

    def key_parts(self) -> list[object]:
        """Returns what it depends on; see :meth:`AdoptedStage.key_parts`."""
        return [*super().key_parts(), self.nxdi_wrapper.model_cls, self.row_names, self.inputs, self.outputs]

    @property
    def model(self) -> Any:
        """The model whole, on the host, with the weights of the application's checkpoint."""
        if self.__dict__.get("_model") is None:
            feeds = [name for name in self.inputs if name != CACHE]
            self._model = HostModel(
                self._weights.load(self.nxdi_wrapper, self.config_on_host()),
                self.memory,
                list(self.inputs),
                [self.row_names.index(name) for name in feeds],
                [tuple(spec.dims for spec in row) for row in self.rows_of(feeds)],
                self.row_fillings(feeds),
            )
        return self._model

    def make_model(self) -> Any:
        """Returns the weights that a rank has, without content: all that a plan needs to know."""
        return self._weights.holder

    def config_on_host(self) -> Any:
        """Returns a copy of its config for one rank, in its own dtype."""
        config = config_of_degree(self.config, self.rows, 1, 1)
        # Models for pictures and text have a config for each in theirs.
        for part, own in (
            (config, self.config),
            *((getattr(config, name), part) for name, part in _parts(self.config)),
        ):
            neuron = part.neuron_config = config_of_degree(own, self.rows, 1, 1).neuron_config
            neuron.torch_dtype, neuron.cast_type = own.neuron_config.torch_dtype, own.neuron_config.cast_type
        return config

    def _read_memory(self) -> SubmodelMemory | None:
        module, aliases = meta_model(self.nxdi_wrapper, self.config_on_host(), 1, 1)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self._weights.check_names(self.tag, names.values())
        pairs = sorted(aliases.items(), key=lambda item: item[1])
        dtypes = {parameter.dtype for parameter, _ in pairs}
        if len(dtypes) > 1:
            raise GraphError(
                f"What {self.tag!r} keeps on the device has several dtypes, {sorted(map(str, dtypes))}; it must be "
                f"of one.",
                submodel=self.tag,
            )
        if not pairs:
            return None
        return SubmodelMemory(
            tuple(names[id(parameter)] for parameter, _ in pairs),
            tuple(place for _, place in pairs),
            tuple(tuple(parameter.shape) for parameter, _ in pairs),
            dtypes.pop(),
        )

    def rows_of(self, ports: Sequence[str]) -> list[Row]:
        """Returns its rows, of these ports alone."""
        places = [self.row_names.index(name) for name in ports]
        return [tuple(row[place] for place in places) for row in self.rows]

    def complete(self) -> None:
        """Gives the wrapper a model instance for any model, where it has none."""
        wrapper = self.nxdi_wrapper
        wrapper.get_model_instance = lambda: submodel_instance(wrapper, wrapper.config)

    def row_fillings(self, ports: Sequence[str]) -> dict[int, torch.Tensor]:
        """Returns what is not fed, as its own example inputs are, by place.

        Args:
            ports: Ports that are fed.
        """
        return {
            place: self._examples[-1][place] for place, name in enumerate(self.row_names) if name not in ports
        }

    def neuron_review(
        self, stage: Stage, settings: NeuronSettings, inputs: Mapping[str, PortSpec]
    ) -> Iterator[str]:
        """Yields warnings about the stage on a Neuron device.

        Raises:
            PlanError: Its ``NeuronConfig`` contradicts the plan, or the plan feeds it other shapes than it is compiled
                for.
        """
        yield f"Weights of {stage.name!r}: the checkpoint of its application, {str(self.application.model_path)!r}."
        yield from differences(stage.name, self.nxdi_wrapper, settings, own=True)
        feeds = {name: spec for name, spec in inputs.items() if name != CACHE}
        error = row_misfit(stage.name, self.rows_of(list(feeds)), feeds)
        if error is not None:
            raise error


def _parts(config: Any) -> list[tuple[str, Any]]:
    """The configs in a config, by name."""
    return [(name, part) for name, part in vars(config).items() if hasattr(part, "neuron_config")]
