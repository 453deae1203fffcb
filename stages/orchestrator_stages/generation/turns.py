"""What is new in a turn of a conversation: the host stages around a cache that lives on.

The conversation so far is kept beside the cache, as a value of the host. A turn writes all of it anew, with what is
said now, by the chat template or as one text, so that its tokens are those of the whole conversation; what of them is
in the cache already is not read again. Where the tokens differ (an answer that is written with other tokens than it was
made of, a template that leaves something out), the cache goes back to where they begin to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, HostStage, TensorSpec
from orchestrator_stages.generation.chat import conversation_images, conversation_text, read_conversations
from orchestrator_stages.generation.items import ReadPrompts

__all__ = ["Forget", "RememberTurn", "TurnPrompt"]


class TurnPrompt(HostStage):
    """Host stage: what is said now, after what was said before, to the tokens that are new.

    Takes ``messages``, those that are new, as :class:`~orchestrator_stages.generation.chat.ChatPrompt` takes them, or
    ``text``, a list of strings that go on; ``history``, a list with what was said and its tokens for each row, empty in
    the first turn; and ``place`` ``[batch]``, int64, how many of these tokens are in the cache. Gives

    - ``input_ids`` and ``attention_mask`` ``[batch, tokens]``, int64: the tokens to read, padded on the left;
    - ``known`` ``[batch]``, int64: how many tokens in the cache are before them;
    - ``whole`` ``[batch, whole]``, int64: all tokens of the conversation, padded on the left;
    - ``turn``, a list as ``history``: with what is said now, and without the answer;
    - with pictures what :class:`~orchestrator_stages.generation.items.ArrangeItems` gives, of the tokens to read;
    - where positions have several dims, ``places`` ``[axes, batch, tokens]``, int64: those of the tokens to read. Then
      ``place`` is ``[axes, batch]``, the position of the next token.

    Args:
        preparer: A tokenizer or processor of transformers.
        rows: The dim of the conversations.
        tokens: The dim of the new tokens; a turn with more than its largest bucket is refused.
        pads: What fills up ``input_ids`` and ``whole``.
        is_chat: It takes messages.
        items: Reads prompts with pictures; None: there are none.
        axes: How many dims the position of a token has; 0: it is a number.
        count_places: Of ids and mask of whole conversations, the positions of all tokens, where they have dims.
    """

    def __init__(
        self,
        preparer: Any,
        rows: Dim,
        tokens: Dim,
        pads: tuple[int, int],
        *,
        is_chat: bool,
        items: ReadPrompts | None = None,
        axes: int = 0,
        count_places: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(tag="converse")
        self.preparer = preparer
        self.longest = tokens.buckets[-1]
        self.pads = pads
        self.is_chat = is_chat
        self.items = items
        self.inputs = {"messages" if is_chat else "text": list, "history": list, "place": None}
        self.outputs = {
            "input_ids": TensorSpec((rows, tokens), torch.int64, pad=pads[0]),
            "attention_mask": TensorSpec((rows, tokens), torch.int64, pad=0),
            "known": TensorSpec((rows,), torch.int64, pad=0),
            "whole": TensorSpec((rows, Dim.dynamic("whole")), torch.int64),
            "turn": list,
        }
        if items is not None:
            self.outputs |= items.arranged
        self.count_places = count_places
        if count_places is not None:
            self.outputs |= {"places": TensorSpec((axes, rows, tokens), torch.int64, pad=0)}

    def forward(self, said: list[Any], history: list[Any], place: Tensor) -> tuple[Any, ...]:
        """Reads a turn.

        Raises:
            ValueError: What is said is not made as the template takes it, there are more or fewer conversations than in
                the cache, or one has more new tokens than the largest bucket.
            InputError: There are other pictures than the messages say.
        """
        # All that was said becomes tokens, as one would do it by hand; of these, what the cache has is left out.
        place = place if self.count_places is None else place[0]
        turn = self._join(said, history, len(place))
        whole, values = self._read([row["said"] for row in turn])
        known = []
        for number, (row, before) in enumerate(zip(turn, history or turn, strict=True)):
            row["ids"], row["length"], row["end"] = whole[number], len(whole[number]), len(whole[number])
            # Behind the prompt of the last turn each token has one place.
            count = before["length"] + int(place[number]) - before["end"] if history else 0
            cached = before["ids"][:count]
            known.append(self._common(whole[number], cached))
        new = [ids[start:] for ids, start in zip(whole, known, strict=True)]
        worst = max(range(len(new)), key=lambda number: len(new[number]))
        if len(new[worst]) > self.longest:
            raise ValueError(
                f"Conversation {worst} has {len(new[worst])} new tokens in this turn, but the largest bucket is "
                f"{self.longest}. Say less at once, or give from_transformers larger buckets: tokens=(...)."
            )
        ids, mask = _padded(new, self.pads[1])
        everything, seen = _padded(whole, self.pads[1])
        results = ids, mask, torch.tensor(known), everything, turn, *self._arrange(whole, known, ids, values)
        if self.count_places is None:
            return results
        places = self.count_places(everything, seen)
        for row, end in zip(turn, places[0, :, -1].tolist(), strict=True):
            row["end"] = end + 1
        return (*results, places[..., -ids.shape[1] :] * mask)

    def _join(self, said: list[Any], history: list[Any], rows: int) -> list[dict[str, Any]]:
        """What was said with what is said now, for each row.

        Raises:
            ValueError: That is nothing, or of another number of conversations.
        """
        parts: Sequence[Any] = said
        if self.is_chat:
            parts = [list(messages) for messages in read_conversations(said)]
        elif not said or not all(isinstance(text, str) for text in said):
            raise ValueError(f"text is a list of one or more strings, not {said!r:.80}.")
        if len(parts) != rows or (history and len(history) != rows):
            raise ValueError(
                f"The turn has {len(parts)} conversations, but the cache that came with it is of {rows}, and history "
                f"of {len(history)}: take all of them from begin_conversation(plan, rows={len(parts)}), or from one "
                "and the same turn before."
            )
        before = [row["said"] for row in history] if history else [type(part)() for part in parts]
        return [{"said": old + new} for old, new in zip(before, parts, strict=True)]

    def _read(self, conversations: list[Any]) -> tuple[list[list[int]], Sequence[Tensor]]:
        """The tokens of each conversation, and of all its pictures the numbers."""
        if not self.is_chat:
            return self.preparer(text=conversations)["input_ids"], ()
        texts = [conversation_text(self.preparer, conversation) for conversation in conversations]
        images = [list(conversation_images(conversation)) for conversation in conversations]
        if self.items is None and any(images):
            raise ValueError(
                "A message holds a picture, but nothing here reads pictures; give from_transformers the processor of a "
                "model that does."
            )
        if self.items is None:
            return self.preparer(text=texts, add_special_tokens=False)["input_ids"], ()
        items = images if any(images) else []
        ids, mask, _, *values = self.items.read(texts, items, is_bounded=False, add_special_tokens=False)
        rows = [row[seen == 1].tolist() for row, seen in zip(ids, mask, strict=True)]
        return rows, values if items else [value[:0] for value in values]

    def _common(self, whole: list[int], cached: list[int]) -> int:
        """How many tokens of a conversation are those in the cache; one at least is to be read, and no half picture."""
        pairs = zip(whole[:-1], cached, strict=False)
        start = next(
            (at for at, (new, old) in enumerate(pairs) if new != old), min(len(whole) - 1, len(cached))
        )
        if self.items is None:
            return start
        kind = self.items.arrange.kind
        places = [at for at, token in enumerate(whole) if token == kind.token]
        number = sum(at < start for at in places)
        return places[number - number % kind.count] if number % kind.count else start

    def _arrange(
        self, whole: list[list[int]], known: list[int], ids: Tensor, values: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Of the pictures those that are to be read."""
        if self.items is None:
            return ()
        kind, is_new = self.items.arrange.kind, []
        for row, start in zip(whole, known, strict=True):
            places = [at for at, token in enumerate(row) if token == kind.token]
            is_new += [at >= start for at in places[:: kind.count]]
        chosen = torch.tensor(is_new, dtype=torch.bool)
        return self.items.arrange.forward(ids, *(value[chosen].flatten(0, 1) for value in values))


class RememberTurn(HostStage):
    """Host stage: adds the answer to what was said.

    Takes ``turn`` of :class:`TurnPrompt`, ``added`` ``[batch, added]``, int64, the tokens of the answer, and ``text``,
    what they say. Gives ``history`` of the next turn.

    Args:
        eos: Tokens that end an answer.
        is_chat: What is said are messages.
    """

    def __init__(self, eos: Sequence[int], *, is_chat: bool) -> None:
        super().__init__(tag="remember")
        self.eos = frozenset(eos)
        self.is_chat = is_chat
        self.inputs = {"turn": list, "added": None, "text": list}
        self.outputs = {"history": list}

    def forward(self, turn: list[Any], added: Tensor, text: list[str]) -> list[Any]:
        """Adds it."""
        history = []
        for row, answer, words in zip(turn, added.tolist(), text, strict=True):
            ends = [place + 1 for place, token in enumerate(answer) if token in self.eos]
            said = [{"role": "assistant", "content": words}] if self.is_chat else words
            ids = row["ids"] + answer[: min(ends, default=len(answer))]
            history.append({**row, "said": row["said"] + said, "ids": ids})
        return history


class Forget(nn.Module):
    """Hides what the cache holds behind the first tokens of each row."""

    def forward(self, known: Tensor, mask: Tensor, position: Tensor, place: Tensor) -> dict[str, Tensor]:
        """Returns ``mask`` without what is hidden, and ``place``, how many tokens are left.

        Args:
            known: ``[batch]``, int64: how many tokens stay.
            mask: ``[batch, slots]``, int64, 0 where a slot is hidden, 1 from ``position`` on.
            position: ``[1]``, int64: the first free slot.
            place: ``[batch]``, int64: how many tokens there are. Positions in several dims stay, and are told anew.
        """
        is_free = torch.arange(mask.shape[1], device=mask.device) >= position
        stays = mask.cumsum(1) <= known[:, None]
        place = torch.minimum(known, place) if place.dim() == 1 else place
        return {"mask": torch.where(is_free, mask, mask * stays), "place": place}


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of tokens as one tensor, padded on the left, and its mask."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
