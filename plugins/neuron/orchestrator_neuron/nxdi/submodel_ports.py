"""What the submodels of an application take and give: names, buckets and pad values of their ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from orchestrator.errors import GraphError
from orchestrator.specs import Dim, PortSpec, TensorSpec
from orchestrator_neuron.nxdi.checks import Row
from orchestrator_neuron.nxdi.read import Ports, port_names

__all__ = ["CONTEXT", "FILLINGS", "is_language_model", "output_specs", "port_specs", "row_names"]

#: Inputs of a language model of NxD Inference that its own ``forward`` fills in.
FILLINGS = ("seq_ids", "sampling_params", "prev_hidden", "adapter_ids")

#: Tag of the submodel that reads a prompt.
CONTEXT = "context_encoding_model"


def is_language_model(application: Any) -> bool:
    """Tells whether NxD Inference's own ``forward`` of language models is that of an application."""
    from neuronx_distributed_inference.models.model_base import (  # type: ignore[import-not-found]
        NeuronBaseForCausalLM,
    )

    return isinstance(application, NeuronBaseForCausalLM)


def row_names(wrapper: Any, rows: Sequence[Row], inputs: Ports | None) -> list[str]:
    """Names of all that a submodel takes: those of its model's parameters, or those that the user gives."""
    count = len(rows[0])
    names = port_names(wrapper, None)[:count]
    if inputs is not None and not set(inputs) <= set(names):
        names = list(inputs)
    if len(names) != count:
        raise GraphError(
            f"The submodel {wrapper.tag!r} has {count} example inputs, but its model names {names}; name all of them: "
            f"inputs={{{wrapper.tag!r}: ('a', 'b')}}.",
            submodel=wrapper.tag,
        )
    return names


def port_specs(
    wrapper: Any, rows: Sequence[Row], names: Sequence[str], for_language: bool
) -> dict[str, TensorSpec]:
    """What each port takes: sizes that differ between rows are buckets.

    Those of a language model are padded as its own ``forward`` does it: prompts with the token for padding, masks with
    0, positions with 1.
    """
    pads: dict[str, float] = {}
    sequences: set[tuple[str, int]] = set()
    if for_language:
        context = wrapper.tag == CONTEXT
        pads = {"attention_mask": 0}
        if context:
            pads |= {"input_ids": wrapper.config.pad_token_id, "position_ids": 1}
        sequences = {(name, 1) for name in pads}
    specs: dict[str, TensorSpec] = {}
    for place, name in enumerate(names):
        shapes = [row[place].dims for row in rows]
        dims: list[int | Dim] = []
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            buckets = tuple(sorted({size for size in sizes if isinstance(size, int)}))
            is_named = len(buckets) > 1 or (name, axis) in sequences
            dims.append(Dim(_dim_name(wrapper.tag, rows, buckets), buckets) if is_named else buckets[0])
        specs[name] = TensorSpec(tuple(dims), rows[0][place].dtype, pad=pads.get(name))
    return specs


def _dim_name(tag: str, rows: Sequence[Row], buckets: tuple[int, ...]) -> str:
    """A name for sizes that change together: all of a submodel's that have these buckets."""
    return f"{tag.removesuffix('_model')}_{buckets[-1]}" if len(rows) > 1 else tag.removesuffix("_model")


def output_specs(
    wrapper: Any, rows: Sequence[Row], for_language: bool, outputs: Ports | None
) -> Mapping[str, PortSpec | None]:
    """What a submodel hands over, as the user says it, or as language models of NxD Inference do.

    Raises:
        GraphError: Nothing says it.
    """
    if isinstance(outputs, Mapping):
        return outputs
    if not for_language:
        raise GraphError(
            f"What the submodel {wrapper.tag!r} gives is not known: say it with names and specs, "
            f"outputs={{{wrapper.tag!r}: {{'output': TensorSpec(...)}}}}, without what stays on the device.",
            submodel=wrapper.tag,
        )
    neuron, config = wrapper.config.neuron_config, wrapper.config
    batch = rows[0][0].dims[0]
    count = 1 if wrapper.tag == CONTEXT else rows[0][0].dims[1]
    logits = TensorSpec((batch, count, config.vocab_size))
    if neuron.on_device_sampling_config is None:
        return {"logits": logits}
    tokens = TensorSpec((batch,), torch.int32)
    return {"tokens": tokens, "logits": logits} if neuron.output_logits else {"tokens": tokens}
