"""Draw the decoder of a model behind its encoder: what its sequences begin with, and the loop that makes tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator.pipeline import Value
from orchestrator_stages.generation.choose import begin_choice
from orchestrator_stages.generation.lanes import join_lanes, lane_specs, order_lanes, split_lanes
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.generation.state import state_of
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
        dims: Of what :meth:`decode` takes behind the token, by name and in order, the dim of the batch; None: none.
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
        self.dims = {
            name: spec.dims.index(rows) if rows in spec.dims else None
            for name, spec in {**self.readings, **self.specs(rows)}.items()
        }
        ids = [-1 if token is None else token for token in beginning.ids]
        self.register_buffer("prompt", torch.tensor([ids]), persistent=False)
        languages = torch.tensor(beginning.languages, dtype=torch.int64)
        self.register_buffer("languages", languages, persistent=False)

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
            ``ids`` ``[batch, before]``; ``is_token``, the same, True; ``filler`` ``[batch]``, bool; ``token``, the last
            one; ``origin``, the beam it came from; ``attention_mask``, if there is one, of which no row is empty; and
            what the first iteration takes.
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
            "token": token.contiguous(),
            "origin": torch.arange(lanes, device=device).expand(rows, -1).contiguous(),
            "position": torch.full((1,), ids.shape[1] - 1, dtype=torch.int64, device=device),
            **begin_choice(self.selection, is_filler),
            **state_of(cache),
        }

    def decode(self, token: Tensor, *tensors: Tensor) -> dict[str, Tensor]:
        """Runs one token.

        Args:
            token: ``[batch]``, int64.
            tensors: What is read of the encoder, and what is carried; the cache is written in place.

        Returns:
            ``logits`` ``[batch, vocabulary]`` of the next token, float32, and what the next call takes.
        """
        values = dict(zip(self.dims, tensors, strict=True))
        position = values["position"]
        state = [values[name] for name in self.template.names]
        cache = self.template.cache(state, position, in_place=True)
        logits, cache = self.read.next(token, values, cache, position)
        carried = {place.name: place.read(cache) for place in self.template.places if not place.cross}
        return {"logits": logits, "position": position + 1, **carried}

    def decode_lanes(self, token: Tensor, *tensors: Tensor) -> dict[str, Tensor]:
        """Runs one token of several sequences of each row: as :meth:`decode`, with a dim of lanes behind the batch."""
        # Each lane is a row while the token is run. What is written in place is given back as it came.
        dims = self.dims
        rows = [join_lanes(tensor, dims[name]) for name, tensor in zip(dims, tensors, strict=True)]
        result = self.decode(token.flatten(), *rows)
        came = {name: tensor for name, tensor in zip(dims, tensors, strict=True) if name in self.aliases}
        return {
            name: came.get(name, split_lanes(value, dims.get(name, 0), token.shape[1]))
            for name, value in result.items()
        }

    def decode_beams(self, token: Tensor, origin: Tensor, *tensors: Tensor) -> dict[str, Tensor]:
        """Runs one token of each beam, on a cache that is put into the order of the beams first.

        Args:
            token: ``[batch, beams]``, int64.
            origin: The same, see :class:`~orchestrator_stages.generation.beams.BeamStep`.
            tensors: As of :meth:`decode`, with a dim of beams behind the batch.
        """
        in_order = [
            order_lanes(tensor, self.dims[name], origin) if name in self.aliases else tensor
            for name, tensor in zip(self.dims, tensors, strict=True)
        ]
        return self.decode_lanes(token, *in_order)


class Decoding:
    """A decoder, and the loop around it.

    Args:
        trial: What the model gave on fake tensors.
        beginning: What sequences begin with.
        selection: How tokens are chosen.
        rows: The dim of the batch.
        tokens: The dim of what the encoder reads, or its size.
        has_text: What the encoder reads are tokens.
    """

    def __init__(
        self,
        trial: Trial,
        beginning: Beginning,
        selection: Selection,
        rows: Dim,
        tokens: Dim | int,
        *,
        has_text: bool = False,
    ) -> None:
        self.selection = selection
        self.decoder = Decoder(trial, beginning, selection, rows, tokens)
        self.prompt = TensorSpec((rows, len(beginning.ids)), torch.int64)
        encoding = TensorSpec((rows, tokens), torch.int64) if has_text else self.prompt
        self.loop = TokenLoop(
            selection,
            rows,
            trial.vocabulary,
            self.decoder,
            lane_specs(self.decoder.readings, rows, selection.lanes),
            self.prompt,
            len(beginning.ids),
            encoding,
        )
        self.rows = rows

    def draw(self, pipeline: Pipeline, values: Mapping[str, Value], check_every: int) -> tuple[Any, ...]:
        """Draws both into a pipeline.

        Args:
            pipeline: The pipeline.
            values: By name what is read of the encoder, and ``input_ids`` where it reads tokens.
            check_every: How many iterations are run between two looks at whether all sequences have ended.

        Returns:
            What :class:`~orchestrator_stages.generation.choose.JoinPrompt` takes besides the prompt.
        """
        # What is read of the encoder is an input of the loop: it stays in one place on the device for all of it.
        decoder, loop = self.decoder, self.loop
        begin = pipeline.add("begin", decoder.begin, inputs=decoder.encodings)
        outputs = begin(*[values[name] for name in decoder.encodings])
        specs = {**decoder.readings, **decoder.specs(self.rows)}
        names = ("token", "origin", "filler", "ids", "is_token", *loop.specs)
        sources = {
            name: values[name] if name in ("encoding", "encoding_mask") else outputs[name] for name in specs
        }
        first = {name: outputs[name] for name in names} | loop.spread(pipeline, sources, specs)
        encoded = values["input_ids"] if "input_ids" in values else outputs["ids"]
        first |= {"before": outputs["ids"], "encoded": encoded}
        first |= loop.begin(pipeline, outputs["ids"])
        return loop.draw(pipeline, first, self.selection.new, check_every)
