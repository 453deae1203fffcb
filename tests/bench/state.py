"""A cache that a loop updates in place, next to the loop that an expert writes around the same module.

One layer of attention of width 512 writes a key and a value for each token and reads the whole cache, masked. Both
sides begin with a cache of zeros, made in the request; so the difference is what the loop adds, and a copy of the cache
would show at once. A second row tells what the module costs as a pure function, which copies the cache for each token.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from orchestrator import Pipeline, TensorSpec
from tests.bench.measure import Effort, Row, compare

LIMIT = 1.05
WIDTH, HEADS, TOKENS = 512, 8, 32

#: Lengths of the cache, rows of the batch, rounds.
CASES = ((64, 1, 40), (256, 1, 40), (1024, 1, 30), (4096, 1, 20), (1024, 16, 6))
QUICK_CASES = ((TOKENS, 1, 2), (2 * TOKENS, 4, 2))


class Layer(nn.Module):
    """Attention over a cache.

    Args:
        pure: It makes new caches, and does not write into those it is given.
    """

    def __init__(self, *, pure: bool = False) -> None:
        super().__init__()
        self.ends = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.pure = pure

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, at: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gives the next token and place, and both caches.

        Args:
            x: ``[batch, width]``.
            keys: ``[batch, heads, length, width / heads]``.
            values: The same.
            at: ``[1]``.
        """
        query, key, value = (end(x).view(-1, HEADS, 1, WIDTH // HEADS) for end in list(self.ends)[:3])
        if self.pure:
            keys, values = keys.index_copy(2, at, key), values.index_copy(2, at, value)
        else:
            keys.index_copy_(2, at, key)
            values.index_copy_(2, at, value)
        seen = torch.arange(keys.shape[2], device=x.device) <= at
        y = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen[None, None, None])
        return torch.tanh(self.ends[3](y.reshape(-1, WIDTH))), keys, values, at + 1


def empty(length: int, x: Tensor) -> Tensor:
    """A cache of zeros."""
    return x.new_zeros(x.shape[0], HEADS, length, WIDTH // HEADS)


def pipeline_of(layer: Layer, length: int, rows: int) -> Pipeline:
    """The loop as a pipeline."""
    cache = TensorSpec((rows, HEADS, length, WIDTH // HEADS))
    ports = {
        "x": TensorSpec((rows, WIDTH)),
        "keys": cache,
        "values": cache,
        "at": TensorSpec((1,), torch.int64),
    }
    body = Pipeline("body")
    aliases = None if layer.pure else {"keys": "keys", "values": "values"}
    results = body.add("layer", layer, outputs=tuple(ports), aliases=aliases)(
        *(body.input(name, spec) for name, spec in ports.items())
    )
    for name in ports:
        body.output(name, results[name])
    pipeline = Pipeline("state")
    x = pipeline.input("x", ports["x"])
    starts = {name: pipeline.add(name, lambda x: empty(length, x))(x) for name in ("keys", "values")}
    carry = {"x": x, **starts, "at": torch.zeros(1, dtype=torch.int64)}
    y, keys = pipeline.loop("loop", body, carry=carry, max_steps=TOKENS, outputs=("x", "keys"))
    pipeline.output("y", y)
    pipeline.output("keys", keys)
    return pipeline


def by_hand(layer: Layer, length: int, x: Tensor) -> dict[str, Tensor]:
    """The loop by hand."""
    keys, values, at = empty(length, x), empty(length, x), torch.zeros(1, dtype=torch.int64)
    for _ in range(TOKENS):
        x, keys, values, at = layer(x, keys, values, at)
    return {"y": x, "keys": keys}


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures; yields rows."""
    assert device == "cpu"
    for length, batch, rounds in QUICK_CASES if effort.quick else CASES:
        yield _loop(effort, length, batch, rounds, pure=False)
    yield _loop(effort, 2 * TOKENS if effort.quick else 1024, 1, 10, pure=True)


def _loop(effort: Effort, length: int, batch: int, rounds: int, *, pure: bool) -> Row:
    torch.manual_seed(0)
    layer = Layer().eval()
    ours = layer
    if pure:
        ours = Layer(pure=True).eval()
        ours.load_state_dict(layer.state_dict())
    x = torch.randn(batch, WIDTH)
    with pipeline_of(ours, length, batch).plan().load() as session, torch.inference_mode():
        found, expected = session(x=x), by_hand(layer, length, x)
        equal = all(torch.equal(found[name], expected[name]) for name in expected)
        pair = compare(lambda: session(x=x), lambda: by_hand(layer, length, x), effort.rounds(rounds))
    case = f"{TOKENS} tokens, {batch} x cache of {length}{', as a pure function' if pure else ''}"
    return pair.row(
        "state",
        case,
        limit=None if pure else LIMIT,
        equal=equal,
        note="without aliases=" if pure else "reference: the loop by hand, its cache updated in place",
    )
