"""A conversation whose cache lives on: what one turn leaves on the device, the next one goes on with.

The state of the cache is an input and an output of the pipeline. A turn reads the tokens that are new, from the last
one of the answer before it, lays them down behind those that are there, and writes its answer behind them. Padding, and
what is made for a row that has ended, takes room and is hidden by the mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, GraphError, HostStage, InputError, Pipeline, Plan, TensorSpec
from orchestrator_stages.generation.continuation import BUCKET, Continuation, ContinuationParts
from orchestrator_stages.generation.generator import Generator
from orchestrator_stages.generation.selection import Selection
from orchestrator_stages.generation.selfcheck import compare_logits
from orchestrator_stages.generation.turns import Forget, RememberTurn, TurnPrompt

__all__ = ["Conversation", "begin_conversation", "check_context"]


def begin_conversation(plan: Plan, rows: int = 1) -> dict[str, Any]:
    """Returns what a conversation begins with: the inputs of its cache, empty.

    Args:
        plan: The plan of a pipeline that was made with ``context=...``.
        rows: How many conversations there are.

    Returns:
        Values by name: tensors, and an empty ``history`` of messages or texts. Outputs of the same names are what the
        next turn takes: the names to keep on the device.
    """
    # The mask has a 1 for each slot that is still free; all else begins with nothing.
    names = {name for name, _ in plan.outputs}
    cache: dict[str, Any] = {}
    for name, spec in plan.inputs:
        if name in names and isinstance(spec, TensorSpec):
            shape = [int(dim) if isinstance(dim, int) else rows for dim in spec.dims]
            cache[name] = torch.full(shape, int(name == "mask"), dtype=spec.dtype)
        elif name == "history":
            cache[name] = []
    return cache


def check_context(context: Any) -> None:
    """Refuses a size of a cache that is none.

    Raises:
        GraphError: It is.
    """
    if isinstance(context, bool) or not isinstance(context, int) or context < 2:
        raise GraphError(f"context is a number of tokens, not {context!r}.", option="context")


class RoomCheck(HostStage):
    """Host stage: refuses a turn that the cache has no room for.

    Takes ``position`` ``[1]``, int64, the first free slot, and ``input_ids`` ``[batch, tokens]``. Gives ``room``
    ``[1]``, int64: how many tokens the cache has room for after this turn, at least.

    Args:
        slots: How many tokens the cache holds.
        tokens: The dim of the tokens of a turn.
        new: How many the answer has at most.
    """

    def __init__(self, slots: int, tokens: Dim, new: int) -> None:
        super().__init__(tag="room")
        self.slots = slots
        self.tokens = tokens
        self.new = new
        self.inputs = {"position": None, "input_ids": None}
        self.outputs = {"room": TensorSpec((1,), torch.int64)}

    def forward(self, position: Tensor, input_ids: Tensor) -> Tensor:
        """Counts.

        Raises:
            InputError: There is not enough of it.
        """
        size = next(bucket for bucket in self.tokens.buckets if bucket >= input_ids.shape[1])
        room = self.slots - int(position) - size - self.new
        if room < 0:
            raise InputError(
                f"The cache has room for context={self.slots} tokens, of which {int(position)} are used; this turn "
                f"needs {size} for what is new, in its bucket, and up to {self.new} for the answer. Begin a new "
                "conversation with what of this one matters, or give from_transformers a larger context=.",
                input="position",
            )
        return torch.tensor([room])


class EndTurn(nn.Module):
    """Hides from the next turn what was made for rows that had ended, and the last token of the answer.

    That token was chosen and not read, by the row that ended last; so that it is the same for all rows, each has it
    hidden, and the next turn begins with it.

    Args:
        selection: How tokens are chosen.
    """

    eos: Tensor

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.register_buffer("eos", torch.tensor(selection.eos, dtype=torch.int64), persistent=False)

    def forward(
        self, mask: Tensor, place: Tensor, start: Tensor, position: Tensor, new_ids: Tensor, *lengths: Tensor
    ) -> dict[str, Tensor]:
        """Returns ``mask`` and ``place`` of the next turn.

        Args:
            mask: ``[batch, slots]``, int64, with 1 from ``start`` on.
            place: ``[batch]``, int64: how many tokens were there before the answer.
            start: ``[1]``, int64: the slot of its first token.
            position: The same: the first free slot.
            new_ids: ``[batch, new]``, int64: the answer.
            lengths: ``[batch]``, int64: how many tokens it has, where these are counted.
        """
        # Up to the first token that ends a sequence, but never more than were run and the one after them.
        is_end = torch.isin(new_ids, self.eos).to(torch.int64)
        count = lengths[0] if lengths else (is_end.cumsum(1) - is_end == 0).sum(1)
        read = torch.minimum(count - 1, position - start).clamp(min=0)
        slots = torch.arange(mask.shape[1], device=mask.device)
        is_answer = (slots >= start) & (slots < position)
        is_read = slots[None] - start < read[:, None]
        return {"mask": torch.where(is_answer, mask * is_read, mask), "place": place + read}


class Conversation(Continuation):
    """A model that goes on with a conversation, and what the pipeline of a turn is drawn of.

    Args:
        parts: What it is drawn of, ``context`` among them.

    Raises:
        GraphError: The model keeps something else than all tokens, or tokens are chosen by looking at those before.
    """

    def __init__(self, parts: ContinuationParts) -> None:
        super().__init__(parts)
        self._refuse(self.slots)
        try:
            self._check_turns()
        except GraphError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or ["no reason"])[0]
            raise GraphError(
                f"{type(parts.model).__name__} cannot go on from a cache with the tokens of a turn: "
                f"{type(error).__name__}: {reason:.300}. Leave out context=, and give the whole conversation in each "
                "request.",
                option="context",
                model=parts.model,
            ) from error
        self.turn: Any = None
        self._spoken: dict[str, Any] = {}
        self._state: dict[str, Any] = {}

    def _check_turns(self) -> None:
        check_turns(self.model, self.generator, self.vocabulary)

    def _reads_items(self) -> Any:
        """What reads pictures among messages; None: there are none."""
        return None

    def _refuse(self, context: int) -> None:
        """Refuses what a turn cannot do as ``generate()`` over the whole conversation does it."""
        # First sizes, which the model counts and a turn needs; then options that look beyond a turn; then the model.
        limit = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if limit is not None and context > int(limit):
            raise GraphError(
                f"The model counts {limit} tokens, so context= cannot be {context}.", option="context"
            )
        if context < self.longest + self.selection.new:
            raise GraphError(
                f"context={context} has no room for one turn of up to {self.longest} tokens and an answer of up to "
                f"{self.selection.new}.",
                option="context",
            )
        if self.selection.lanes > 1:
            raise GraphError(
                "context= is for conversations with one answer a turn: leave out num_beams and num_return_sequences.",
                option="context",
            )
        if self.loop.processors is None or "before" in self.loop.choice.ports:
            raise GraphError(
                "context= gives a turn what is new in it, but the options ask for logits processors or stop strings, "
                "which look at all tokens so far; leave them out.",
                option="context",
            )
        if self.selection.longest is not None or self.selection.counting:
            raise GraphError(
                "context= gives a turn what is new in it, but max_length and min_length count the whole conversation; "
                "say max_new_tokens= and min_new_tokens=.",
                option="context",
            )
        if not self.generator.keeps_all_tokens:
            raise GraphError(
                f"{type(self.model).__name__} does not keep all tokens: it has a sliding window or a recurrence, which "
                "padding between two turns would change. context= is for models whose layers attend to all tokens.",
                option="context",
                model=self.model,
            )

    def _place_counter(self) -> Any:
        """What counts the positions of a whole conversation where they have several dims; None: they are numbers."""
        return None

    def _prompt(self, pipeline: Pipeline) -> tuple[Any, Any]:
        """Draws the cache that came in, and what is read of a turn."""
        specs = {"mask": self.loop.constants["mask"], **self.generator.specs(self.rows)}
        specs = self.loop.padded_specs(specs)
        self._state = {name: pipeline.input(name, spec) for name, spec in specs.items()}
        if self.tokenizer is None:
            return super()._prompt(pipeline)
        # What is said now goes behind what was said before; where that reads otherwise now, the cache forgets it.
        is_chat, items = self.chat is not None, self._reads_items()
        stage = TurnPrompt(
            self.chat or self.tokenizer,
            self.rows,
            self.tokens,
            (BUCKET, self.selection.pad),
            is_chat=is_chat,
            items=items,
            axes=self.generator.axes,
            count_places=self._place_counter(),
        )
        said = pipeline.input("messages" if is_chat else "text", list)
        history = pipeline.input("history", list)
        spoken = pipeline.add("converse", stage, device="host")(said, history, self._state["place"])
        self._spoken = {port: spoken[port] for port in stage.outputs}
        ports = {
            "known": TensorSpec((self.rows,), torch.int64, pad=0),
            "mask": specs["mask"],
            "position": None,
            "place": specs["place"],
        }
        state = (self._state[port] for port in ("mask", "position", "place"))
        rest = pipeline.add("forget", Forget(), inputs=ports)(spoken["known"], *state)
        self._state |= {"mask": rest["mask"], "place": rest["place"]}
        return spoken["input_ids"], spoken["attention_mask"]

    def _prefill(self, pipeline: Pipeline, ids: Any, mask: Any) -> Any:
        """Draws what runs the new tokens over the cache that came in."""
        room = pipeline.add("room", RoomCheck(self.slots, self.tokens, self.selection.new), device="host")
        pipeline.output("room", room(self._state["position"], ids))
        specs = {"mask": self.loop.constants["mask"], **self.generator.specs(self.rows)}
        ports, values, extend = self._turn(pipeline, ids, mask)
        stage = pipeline.add("prefill", extend, inputs=ports | self.loop.padded_specs(specs))
        self.turn = stage(*values, *self._state.values())
        return self.turn

    def _turn(self, pipeline: Pipeline, ids: Any, mask: Any) -> tuple[dict[str, Any], list[Any], Any]:
        """Ports and values of the new tokens, and what runs them."""
        del pipeline
        dims = (self.rows, self.tokens)
        is_spoken = bool(self._spoken)
        ports = {
            "input_ids": TensorSpec(dims, torch.int64, pad=BUCKET) if is_spoken else None,
            "attention_mask": TensorSpec(dims, torch.int64, pad=0) if is_spoken else None,
        }
        return ports, [ids, mask], self.generator.extend

    def _finish(self, pipeline: Pipeline, ids: Any, choices: Iterable[Any]) -> tuple[Any, Any]:
        """Draws what comes out of a turn; of one that is read here the whole conversation, and its history."""
        new_tokens, text = super()._finish(pipeline, self._spoken.get("whole", ids), choices)
        if self._spoken:
            remember = RememberTurn(self.selection.eos, is_chat=self.chat is not None)
            history = pipeline.add("remember", remember, device="host")
            pipeline.output("history", history(self._spoken["turn"], new_tokens, text))
        return new_tokens, text

    def draw_loops(
        self, pipeline: Pipeline, values: Mapping[str, Any], cache: Iterable[int] | None, check_every: int = 1
    ) -> tuple[Any, ...]:
        """Draws what chooses all tokens after the first, and what the next turn begins with; one loop reads it all."""
        del cache
        state = tuple(name for name in self.generator.specs(self.rows) if name != "place")
        drawn = self.loop.draw(pipeline, values, self.selection.new - 1, check_every, state)
        results = drawn[: len(self.loop.results)]
        outputs = dict(zip(state, drawn[len(results) :], strict=True))
        ports = ("mask", "place", "start", "position", *self.loop.results)
        end = pipeline.add("end", EndTurn(self.selection), inputs=ports)
        turn = end(
            *(self.turn[port] for port in ("mask", "place", "position")), outputs["position"], *results
        )
        for name in ("mask", "place"):
            pipeline.output(name, turn[name])
        for name in state:
            pipeline.output(name, outputs[name])
        return results


def check_turns(model: Any, generator: Generator, vocabulary: int) -> None:
    """Compares the logits of a prompt that comes in two parts with those of the whole.

    Args:
        model: The model.
        generator: The same model, followed.
        vocabulary: Number of tokens.

    Raises:
        GraphError: They differ.
    """
    # Each part has padding on the left in another row.
    device = next(model.parameters()).device
    if device.type == "meta":
        return
    ids = torch.arange(12, device=device).view(2, 6) * 7 % vocabulary
    mask = torch.tensor([[1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1]], device=device)
    with torch.no_grad():
        first = generator.prefill(ids[:, :3], mask[:, :3])
        state = [first[name] for name in ("mask", *generator.specs_names)]
        second = generator.extend(ids[:, 3:], mask[:, 3:], *state)
        compare_logits(model, 1, second["logits"], generator.prefill(ids, mask)["logits"])
