"""Read weights in the binary form of CTranslate2, version 6, and name them as transformers does.

The file is a sequence of little-endian fields: version, name of the model's kind, revision; then for each variable its
name, shape, a number for its dtype, its bytes; then pairs of names for the same variable. A name is preceded by its
length, the closing zero byte included. Source: ``serialize`` of ``ctranslate2.specs.model_spec``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_variables", "whisper_state"]

VERSION = 6

#: Numbers to dtypes.
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


class _FieldReader:
    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.place = 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.place)
        self.place += struct.calcsize(f"<{form}")
        return int(value)

    def text(self) -> str:
        length = self.number("H")
        return str(self.octets(length)[:-1], "utf-8")

    def octets(self, count: int) -> memoryview:
        data = self.data[self.place : self.place + count]
        if len(data) != count:
            raise ValueError("the file ends too early")
        self.place += count
        return data


def read_variables(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Returns the kind of the model, and its variables by name.

    Raises:
        ValueError: The file is none of this version, or is cut off.
    """
    reader = _FieldReader(path.read_bytes())
    try:
        version = reader.number("I")
        if version != VERSION:
            raise ValueError(f"its version is {version}, not {VERSION}")
        kind = reader.text()
        reader.number("I")
        return kind, dict(_variables(reader))
    except (struct.error, ValueError, KeyError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a model of CTranslate2: {error}.") from error


def _variables(reader: _FieldReader) -> Iterator[tuple[str, Tensor]]:
    variables = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        dtype = DTYPES[reader.number("B")]
        array = np.frombuffer(reader.octets(reader.number("I")), dtype).reshape(shape)
        variables[name] = torch.from_numpy(array.copy())
    for _ in range(reader.number("I")):
        alias = reader.text()
        variables[alias] = variables[reader.text()]
    yield from variables.items()


#: Parts of a layer to their names in transformers, and the projections that one matrix holds there.
LAYER: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "self_attention/layer_norm": ("self_attn_layer_norm", ()),
    "self_attention/linear_0": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "self_attention/linear_1": ("self_attn.out_proj", ()),
    "attention/layer_norm": ("encoder_attn_layer_norm", ()),
    "attention/linear_0": ("encoder_attn.q_proj", ()),
    "attention/linear_1": ("encoder_attn", ("k_proj", "v_proj")),
    "attention/linear_2": ("encoder_attn.out_proj", ()),
    "ffn/layer_norm": ("final_layer_norm", ()),
    "ffn/linear_0": ("fc1", ()),
    "ffn/linear_1": ("fc2", ()),
}

#: Ends of names.
ENDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}

#: Everything else.
OTHERS = {
    "encoder/conv1": "model.encoder.conv1",
    "encoder/conv2": "model.encoder.conv2",
    "encoder/layer_norm": "model.encoder.layer_norm",
    "decoder/layer_norm": "model.decoder.layer_norm",
    "decoder/embeddings": "model.decoder.embed_tokens",
}


def whisper_state(variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict of a ``WhisperForConditionalGeneration``, float32.

    Raises:
        ValueError: The variables are quantised.
    """
    state: dict[str, Tensor] = {}
    for name, value in variables.items():
        if not value.is_floating_point() and value.ndim:
            raise ValueError(f"{name!r} is quantised ({value.dtype}); only float weights can be read.")
        state.update(_state_entries(name, value.to(torch.float32)))
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def _state_entries(name: str, value: Tensor) -> dict[str, Tensor]:
    # `side/layer_N/part/end`, and a few names without a layer. What is no weight, such as a scale, is left out.
    head, _, end = name.rpartition("/")
    if end == "encodings":
        return {f"model.{head.partition('/')[0]}.embed_positions.weight": value}
    if end not in ENDS:
        return {}
    if head in OTHERS:
        return {f"{OTHERS[head]}.{ENDS[end]}": value}
    side, _, rest = head.partition("/")
    layer, _, part = rest.partition("/")
    if part not in LAYER:
        return {}
    target, projections = LAYER[part]
    place = f"model.{side}.layers.{layer.removeprefix('layer_')}.{target}"
    if not projections:
        return {f"{place}.{ENDS[end]}": value}
    parts = zip(projections, value.chunk(len(projections)), strict=True)
    # Whisper's keys have no bias; the file holds zeros for them.
    return {
        f"{place}.{projection}.{ENDS[end]}": piece.clone()
        for projection, piece in parts
        if not (projection == "k_proj" and end == "bias")
    }
