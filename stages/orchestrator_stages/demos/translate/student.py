"""The networks of the student: what reads a sentence, and what writes one token of its translation.

Both are post-norm transformers of width 256. The writer's self-attention is replaced by a *simpler simple
recurrent unit* (SSRU): a state of one vector for each layer, of which a gate forgets a part at every step::

    forget = sigmoid(W_f x + b_f)
    state  = forget * state + (1 - forget) * W x
    y      = norm(x + relu(state))

The modules know nothing of files; :mod:`orchestrator_stages.demos.translate.trained` fills them. They keep no state:
what lasts from one token to the next goes in and comes out.

Source: Kim et al., "From Research to Production and Back: Ludicrously Fast Neural Machine Translation" (2019),
for the SSRU; the layers are those of Marian's ``transformer.h``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 32000
WIDTH = 256
HEADS = 8
INNER = 1536
ENCODER_LAYERS = 6
DECODER_LAYERS = 2

END = 0
"""The token that ends a sentence."""

NOTHING = -1
"""No token: what fills ids beyond a sentence, and what precedes the first token of a translation."""

LONGEST = 512
"""Tokens that positions are known for."""

FACTOR = 2.5
"""Tokens of a translation for each token of its sentence, at most, as the students were published."""


def positions(count: int = LONGEST, width: int = WIDTH) -> Tensor:
    """Returns the position vectors ``[count, width]``: sines of falling frequency, then their cosines."""
    steps = torch.arange(width // 2, dtype=torch.float32) / (width // 2 - 1)
    angles = torch.arange(count, dtype=torch.float32)[:, None] * (-math.log(10000.0) * steps).exp()
    return torch.cat([angles.sin(), angles.cos()], 1)


def padding_bias(ids: Tensor) -> Tensor:
    """Returns what is added to attention scores, ``[rows, 1, 1, tokens]``: 0, or a lot less where there is no token.

    It is finite, so that a row without any token gives numbers: a row that only fills a batch.
    """
    return torch.where(ids == NOTHING, -1e9, 0.0)[:, None, None, :]


class Embedding(nn.Module):
    """Tokens to vectors, and vectors to a score for each token, with the same weights."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(VOCABULARY, WIDTH))
        self.bias = nn.Parameter(torch.empty(VOCABULARY))
        self.register_buffer("positions", positions(), persistent=False)

    def words(self, ids: Tensor) -> Tensor:
        """Returns scaled vectors ``[..., 256]`` without positions; zeros where there is no token."""
        vectors = functional.embedding(ids.clamp(min=0), self.weight) * math.sqrt(WIDTH)
        return torch.where((ids == NOTHING)[..., None], 0.0, vectors)

    def scores(self, vectors: Tensor) -> Tensor:
        """Returns scores ``[..., 32000]``, higher for likelier tokens."""
        return functional.linear(vectors, self.weight, self.bias)


def split_heads(vectors: Tensor) -> Tensor:
    """Returns ``[rows, tokens, 256]`` as ``[rows, 8, tokens, 32]``."""
    rows, tokens, width = vectors.shape
    return vectors.reshape(rows, tokens, HEADS, width // HEADS).transpose(1, 2)


class PostNormAttention(nn.Module):
    """Multi-head attention with its residual connection and norm; keys and values come from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Returns ``[rows, tokens, 256]``; ``keys`` and ``values`` are split in heads."""
        answers = functional.scaled_dot_product_attention(
            split_heads(self.query(x)), keys, values, attn_mask=mask
        )
        result: Tensor = self.norm(x + self.output(answers.transpose(1, 2).flatten(2)))
        return result


class KeysValues(nn.Module):
    """What attention looks up: a key and a value for each token that was read."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values, each split in heads."""
        return split_heads(self.key(x)), split_heads(self.value(x))


class FeedForward(nn.Module):
    """Two dense layers with their residual connection and norm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, INNER)
        self.outer = nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of ``x``."""
        result: Tensor = self.norm(x + self.outer(self.inner(x).relu()))
        return result


class EncoderLayer(nn.Module):
    """Self-attention, then dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.read = KeysValues()
        self.attention = PostNormAttention()
        self.feed_forward = FeedForward()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Returns ``[rows, tokens, 256]``."""
        keys, values = self.read(x)
        result: Tensor = self.feed_forward(self.attention(x, keys, values, mask))
        return result


class Encode(nn.Module):
    """Reads sentences: ``ids`` ``[rows, tokens]`` int64 to what every step of ``Decode`` looks up.

    A sentence ends in ``END`` and is filled with ``NOTHING``. Gives ``keys`` and ``values`` ``[rows, 2, 8, tokens,
    32]``: those of the two layers of the decoder, worked out once instead of at every step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = Embedding()
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(ENCODER_LAYERS))
        self.read = nn.ModuleList(KeysValues() for _ in range(DECODER_LAYERS))

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Reads a batch of sentences."""
        mask = padding_bias(ids)
        x = self.embedding.words(ids) + self.embedding.positions[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        read = [layer(x) for layer in self.read]
        return {
            "keys": torch.stack([keys for keys, _ in read], 1),
            "values": torch.stack([values for _, values in read], 1),
        }


class Begin(nn.Module):
    """What the first step of ``Decode`` starts from, for ``ids`` ``[rows, tokens]``.

    Gives ``token``, ``step``, ``state``, ``finished`` and ``written`` as ``Decode`` takes them. A row that only
    fills the batch is finished at once.

    Args:
        steps: Tokens that a translation may have.
    """

    def __init__(self, steps: int = LONGEST) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Begins a batch of translations."""
        first = ids[:, 0]
        return {
            "token": torch.full_like(first, NOTHING),
            "step": ids.new_zeros((1,)),
            "state": ids.new_zeros((ids.shape[0], DECODER_LAYERS, WIDTH), dtype=torch.float32),
            "finished": first == NOTHING,
            "written": ids.new_full((ids.shape[0], self.steps), END),
        }


class SSRULayer(nn.Module):
    """A recurrent unit, a look at what was read, then dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.forget = nn.Linear(WIDTH, WIDTH)
        self.update = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attention = PostNormAttention()
        self.feed_forward = FeedForward()

    def forward(
        self, x: Tensor, state: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns ``[rows, 256]`` and the new state ``[rows, 256]``."""
        forget = self.forget(x).sigmoid()
        state = forget * state + (1 - forget) * self.update(x)
        x = self.norm(x + state.relu())
        x = self.attention(x[:, None], keys, values, mask)[:, 0]
        return self.feed_forward(x), state


class Decode(nn.Module):
    """Writes one token of each translation: the likeliest, or ``END`` once a translation is finished.

    Five things come out as they are after this step: ``token`` ``[rows]`` int64, the one written last; ``step`` ``[1]``
    int64, how many were written; ``state`` ``[rows, 2, 256]``, the recurrent state; ``finished`` ``[rows]`` bool, which
    translations have ended; and ``written`` ``[rows, steps]`` int64, all tokens so far, filled with ``END``. ``ids``,
    ``keys`` and ``values`` are those of ``Encode``. ``done`` ``[1]`` bool says that all have ended. A translation also
    ends when it is ``factor`` times as long as its sentence.

    Args:
        factor: Tokens of a translation for each token of its sentence, at most.
    """

    def __init__(self, factor: float = FACTOR) -> None:
        super().__init__()
        self.factor = factor
        self.embedding = Embedding()
        self.layers = nn.ModuleList(SSRULayer() for _ in range(DECODER_LAYERS))

    def forward(
        self,
        token: Tensor,
        step: Tensor,
        state: Tensor,
        finished: Tensor,
        written: Tensor,
        ids: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> dict[str, Tensor]:
        """Writes one token of a batch of translations."""
        # One token through the layers, each with its state; then what is over stays so, and the token takes its place.
        mask = padding_bias(ids)
        x = self.embedding.words(token) + self.embedding.positions.index_select(0, step)
        states = []
        for number, layer in enumerate(self.layers):
            x, new = layer(x, state[:, number], keys[:, number], values[:, number], mask)
            states.append(new)
        token = torch.where(finished, END, self.embedding.scores(x).argmax(-1))
        here = torch.arange(written.shape[1], device=written.device) == step
        step = step + 1
        finished = finished | (token == END) | (step >= (ids != NOTHING).sum(1) * self.factor)
        return {
            "token": token,
            "step": step,
            "state": torch.stack(states, 1),
            "finished": finished,
            "written": torch.where(here, token[:, None], written),
            "done": finished.all().reshape(1),
        }
