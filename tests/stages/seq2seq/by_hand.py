"""The tokens of an encoder-decoder model by the stages of its pipeline, called one after another without a plan."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from orchestrator import Dim, TensorSpec
from orchestrator_stages.generation.processors import HostProcessors
from orchestrator_stages.generation.sampling import SampleNoise, SeedState
from orchestrator_stages.generation.token_step import TokenStep
from orchestrator_stages.seq2seq.decoding import Decoder, Decoding
from orchestrator_stages.seq2seq.families import family_of
from orchestrator_stages.seq2seq.host import FinishSequences, FinishSpeech
from orchestrator_stages.seq2seq.options import read_beginning
from orchestrator_stages.seq2seq.trial import Trial, try_model
from tests.stages.tiny_models import generated, tiny

ROWS, SEED = Dim("batch", buckets=(4,)), 3
LENGTHS = {"speech_to_text": 40, "moonshine": 4000}


def new_trial(model: Any, name: str, slots: int) -> tuple[Trial, Dim | int]:
    """What a model gave on fake tensors, and the dim of what it reads."""
    length: Any = LENGTHS.get(name) or Dim("tokens", buckets=(16,))
    specs = family_of(model).inputs(model, ROWS, length)
    length = length if len(specs) > 1 else 0
    return try_model(model, specs, ROWS, length, slots), length


@functools.cache
def trial_of(name: str, slots: int, dtype: torch.dtype) -> tuple[Trial, Dim | int]:
    """The same of a tiny model, once for all tests."""
    return new_trial(tiny(name).to(dtype), name, slots)


class ByHand:
    """The stages of a pipeline.

    Args:
        name: Of a model of `tiny_models`.
        options: Options of `generate()`.
        user: The model whose generation config counts; None: itself.
        dtype: Of its weights.
        is_other: Its weights and modules are the user's, too.
    """

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        user: Any = None,
        dtype: torch.dtype = torch.float32,
        *,
        is_other: bool = False,
    ) -> None:
        user = tiny(name) if user is None else user
        self.family = family_of(user)
        self.beginning, self.selection = read_beginning(user, self.family, options)
        slots = len(self.beginning.ids) - 1 + self.selection.new
        self.trial, length = new_trial(user, name, slots) if is_other else trial_of(name, slots, dtype)
        self.beginning.check(self.trial.vocabulary)
        decoder = Decoder(self.trial, self.beginning, self.selection, ROWS, length)
        tokens = length if self.family.modality == "text" else None
        self.decoding = Decoding(decoder, ROWS, self.trial.vocabulary, tokens)

    def begin(self, request: dict[str, Tensor], filler: int = 0) -> dict[str, Tensor]:
        """What is there before the first token; a text gets rows and columns of padding."""
        if "input_ids" in request:
            request = {
                key: torch.nn.functional.pad(value, (0, 2 * (filler > 0), 0, filler))
                for key, value in request.items()
            }
        values = request | self.trial.encoder(*request.values())
        return values | self.decoding.decoder.begin(*(values[key] for key in self.trial.readings))

    def decode(self, state: dict[str, Tensor], decode: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of one token, and what is carried."""
        decoder = self.decoding.decoder
        ports = ("token", *(("origin",) if self.selection.has_beams else ()), *self.decoding.loop.taken)
        result = (decode or decoder.decode)(*(state[port] for port in ports))
        return result.pop("logits"), result

    def run(self, request: dict[str, Tensor], filler: int = 1) -> Tensor:
        """The tokens."""
        # Lanes are spread before the loop; each iteration runs a token and chooses the next one.
        selection, decoder, loop = self.selection, self.decoding.decoder, self.decoding.loop
        state, lanes, rows = self.begin(request, filler), selection.lanes, len(next(iter(request.values())))
        dims = {
            name: spec.dims.index(ROWS) if ROWS in spec.dims else None for name, spec in loop.taken.items()
        }
        for port, dim in dims.items():
            if lanes > 1 and dim is not None:
                state[port] = state[port].repeat_interleave(lanes, dim).unflatten(dim, (-1, lanes))
        state |= {"before": state["ids"], "is_over": torch.tensor([False])}
        random = SeedState().forward(SEED)
        several = TokenStep(decoder, dims, selection)
        names = (*(("filler",) if selection.has_beams else ()), *loop.specs, *loop.choice.ports)
        for _ in range(selection.new):
            logits, carried = self.decode(state, decoder.decode if lanes == 1 else several)
            if loop.processors is None:
                logits = self._process(logits, state, request, rows)
            if selection.is_sampling:
                noise = SampleNoise(TensorSpec((1, *[lanes] * (lanes > 1), self.trial.vocabulary)))
                drawn, random = noise.forward(random, next(iter(request.values())))
                state["noise"] = torch.cat([drawn, torch.ones(len(logits) - rows, *drawn.shape[1:])])
            state |= carried | loop.choice(logits, *(state[port] for port in names))
            if bool(state["done"]):
                break
        prompt = [token for token in self.beginning.ids if token is not None]
        finish: Any = FinishSequences(selection, ROWS, prompt)
        if self.family.speech:
            finish = FinishSpeech(selection, ROWS, self.beginning)
        tokens: Tensor = finish.forward(*(state[port][:rows] for port in loop.results))[0]
        return tokens

    def _process(
        self, logits: Tensor, state: dict[str, Tensor], request: dict[str, Tensor], rows: int
    ) -> Tensor:
        """Logits of the rows of the request as the host changes them; the rest is what it was."""
        selection, lanes = self.selection, self.selection.lanes
        spec = TensorSpec((ROWS, self.trial.vocabulary))
        host = HostProcessors(
            selection.processors,
            spec,
            lanes,
            selection.before,
            is_normal=selection.has_beams,
            is_encoded=True,
        )
        own = {port: state[port] if port == "step" else state[port][:rows] for port in host.ports[:3]}
        scores = host.forward(logits[:rows], *own.values(), request.get("input_ids", own["ids"]))
        rest = logits[rows:] if logits.dim() == scores.dim() else logits[rows:, None].expand(-1, lanes, -1)
        return torch.cat([scores, rest])


@torch.no_grad()
def by_hand(name: str, request: dict[str, Tensor], user: Any = None, **options: Any) -> Tensor:
    """The tokens of a model of `tiny_models`, in a batch that is filled up."""
    return ByHand(name, options, user).run(request)


def after_seed(model: Any, request: dict[str, Tensor], **options: Any) -> Tensor:
    """The tokens of ``generate()``, drawn from the seed of :func:`by_hand`."""
    torch.manual_seed(SEED)
    return generated(model, request, **options)
