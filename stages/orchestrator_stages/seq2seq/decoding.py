"""Draw the decoder of a model behind its encoder: what its sequences begin with, and the loop that makes tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator.pipeline import Value
from orchestrator_stages.generation.choose import begin_choice
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.generation.state import slot_number, state_of
from orchestrator_stages.generation.token_loop import TokenLoop
from orchestrator_stages.seq2seq.forward import visible_tokens
from orchestrator_stages.seq2seq.options import Beginning
from orchestrator_stages.seq2seq.trial import Trial

__all__ = ["Decoder", "Decoding"]


class Decoder(nn.Module):
    """Begins sequences and runs a token of each; between two calls it keeps nothing.

    Args:
        trial: What the model gave on fake tensors.
        beginning: What sequences begin with.
        selection: How tokens are chosen.
        rows: The dim of the batch.
        tokens: The dim of what the encoder reads, or its size.

    Attributes:
        aliases: Of what is carried, what :meth:`decode` writes in place: each is itself, updated.
        readings: What is read of the encoder in every iteration: its encoding and masks, and what layers made of it.
    """

    prompt: Tensor
    languages: Tensor

    def __init__(
        self, trial: Trial, beginning: Beginning, selection: Selection, rows: Dim, tokens: Dim | int
    ) -> None:
        super().__init__()
        self.read = trial.decoder
        self.template = trial.template
        self.encodings = trial.readings
        self.selection = selection
        self.has_language = None in beginning.ids
        own = {place.name for place in trial.template.places if not place.cross}
        specs = trial.specs(rows, tokens)
        self.readings = {name: spec for name, spec in specs.items() if name not in own}
        self._carried = {name: spec for name, spec in specs.items() if name in own}
        self.aliases = {name: name for name in self._carried}
        self._names = (*self.readings, *self.specs(rows))
        self._dims = {
            name: spec.dims.index(rows) if rows in spec.dims else None for name, spec in specs.items()
        }
        ids = [-1 if token is None else token for token in beginning.ids]
        self.register_buffer("prompt", torch.tensor([ids]), persistent=False)
        languages = torch.tensor(beginning.languages, dtype=torch.int64)
        self.register_buffer("languages", languages, persistent=False)
        self.train(trial.decoder.model.training)

    def specs(self, rows: Dim) -> dict[str, TensorSpec]:
        """Returns what is carried from token to token; ``rows`` is the dim of the batch."""
        del rows  # it is that of the trial
        return {"position": TensorSpec((1,), torch.int64), **self._carried}

    def begin(self, *encodings: Tensor) -> dict[str, Tensor]:
        """Runs what sequences begin with.

        The loop runs the last token of that again, into the same slot, so that every token comes from an iteration.

        Args:
            encodings: What is read of the encoder. In a mask a row of zeros is a row that fills up the batch.

        Returns:
            ``ids`` ``[batch, before]``; ``is_token``, the same, True; ``filler`` ``[batch]``, bool; ``done`` ``[1]``,
            bool, whether there is nothing to do; ``token``, the last one; ``origin``, the beam it came from;
            ``attention_mask``, if there is one, of which no row is empty; and what the first iteration takes.
        """
        # Which rows are none comes from the mask of a text; the layers of the decoder see something of each.
        values = dict(zip(self.encodings, encodings, strict=True))
        rows, device = values["encoding"].shape[0], values["encoding"].device
        is_filler = torch.zeros(rows, dtype=torch.bool, device=device)
        if "attention_mask" in values:
            is_filler = ~values["attention_mask"].bool().any(1)
            values["attention_mask"] = visible_tokens(values["attention_mask"])
        ids = self.prompt.expand(rows, -1)
        if self.has_language:
            # The most likely language after the first token, as generate() of Whisper finds it out.
            logits, _ = self.read.first(ids[:, :1], values)
            language = self.languages[logits[:, self.languages].argmax(-1)]
            ids = torch.where(ids < 0, language[:, None], ids)
        _, cache = self.read.first(ids, values)
        lanes = self.selection.lanes
        token = ids[:, -1:].expand(-1, lanes) if lanes > 1 else ids[:, -1]
        visible = {name: mask for name, mask in values.items() if name == "attention_mask"}
        return visible | {
            "ids": ids.contiguous(),
            "is_token": torch.ones_like(ids, dtype=torch.bool),
            "filler": is_filler,
            "done": is_filler.all().reshape(1),
            "token": token.contiguous(),
            "origin": torch.arange(lanes, device=device).expand(rows, -1).contiguous(),
            "position": torch.full((1,), ids.shape[1] - 1, dtype=torch.int64, device=device),
            **begin_choice(self.selection, is_filler),
            **state_of(cache),
        }

    def decode(
        self, token: Tensor, *tensors: Tensor, reach: int | None = None, order: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Runs one token.

        Args:
            token: ``[batch]``, int64.
            tensors: What is read of the encoder, and what is carried; the cache is written in place.
            reach: How many slots of the cache are read, more than its position, where no number can be had of that;
                None: all.
            order: ``[batch]``, int64: the rows of the cache are put into this order first; None: they stay.

        Returns:
            ``logits`` ``[batch, vocabulary]`` of the next token, float32, and what the next call takes.
        """
        # A number where it can be had: then only what is filled is read, and no mask has to hide the rest. Nothing is
        # traced there, so torch need not count versions either, which it does under no_grad as well.
        values = dict(zip(self._names, tensors, strict=True))
        position = values["position"]
        slot = slot_number(position)
        is_number = isinstance(slot, int)
        with torch.inference_mode() if is_number else contextlib.nullcontext():
            state = [values[name] for name in self.template.names]
            if order is not None:
                state = self.template.reorder(state, self._dims, self.aliases, order, slot, reach)
            cache = self.template.cache(state, slot, in_place=True, reach=reach)
            read = None if is_number else reach or self.read.slots
            logits, cache = self.read.next(token, values, cache, position, read)
            after, places = self.template.state(cache), self.template.places
            carried = {place.name: after[place.name] for place in places if not place.cross}
            return {"logits": logits, "position": position + 1, **carried}


class Decoding:
    """A decoder, and the loop around it.

    Args:
        decoder: The decoder.
        rows: The dim of the batch.
        vocabulary: Number of tokens.
        tokens: The dim of the tokens that the encoder reads, or their number; None: it reads something else.
    """

    def __init__(self, decoder: Decoder, rows: Dim, vocabulary: int, tokens: Dim | int | None) -> None:
        self.selection = decoder.selection
        self.decoder = decoder
        length = decoder.prompt.shape[1]
        self.before = length - 1
        self.prompt = TensorSpec((rows, length), torch.int64)
        encoding = self.prompt if tokens is None else TensorSpec((rows, tokens), torch.int64)
        self.loop = TokenLoop(
            self.selection, rows, vocabulary, decoder, decoder.readings, self.prompt, length, encoding
        )
        self.rows = rows

    def draw(
        self,
        pipeline: Pipeline,
        values: Mapping[str, Value],
        check_every: int,
        cache: Iterable[int] | None = None,
    ) -> tuple[Any, ...]:
        """Draws both into a pipeline.

        Args:
            pipeline: The pipeline.
            values: By name what is read of the encoder, and ``input_ids`` where it reads tokens.
            check_every: How many iterations are run between two looks at whether all sequences have ended.
            cache: How much of the cache may be read by itself; None: as usual.

        Returns:
            What :class:`~orchestrator_stages.generation.choose.JoinPrompt` takes besides the prompt.
        """
        # What is read of the encoder is an input of the loop: it stays in one place on the device for all of it.
        decoder, loop = self.decoder, self.loop
        begin = pipeline.add("begin", decoder.begin, inputs=decoder.encodings)
        outputs = begin(*[values[name] for name in decoder.encodings])
        names = ("token", "origin", "done", "filler", "ids", "is_token", *loop.specs)
        sources = {
            name: values[name] if name in ("encoding", "encoding_mask") else outputs[name]
            for name in loop.taken
        }
        first = {name: outputs[name] for name in names} | loop.spread(pipeline, sources)
        encoded = values["input_ids"] if "input_ids" in values else outputs["ids"]
        first |= {"before": outputs["ids"], "encoded": encoded}
        first |= loop.begin(pipeline, outputs["ids"])
        steps, slots = self.selection.new, self.before + self.selection.new
        return loop.draw_reaches(pipeline, first, steps, check_every, cache, self.before, slots)
