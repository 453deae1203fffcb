"""Decoding of `from_transformers` next to the loop that an expert writes around the same model.

The model is a Llama of width 512 with random weights. The expert calls the model's own forward, too: its cache is made
once, in the length that is needed, each token is written into it in place, and attention reads what is filled and no
more. Both sides begin with a cache of zeros that is filled but for the last tokens, so that what is measured is
decoding alone, at that length.

Run as a module, this measures the memory of one side and prints it as JSON.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, Pipeline, Residency, TensorSpec
from tests.bench.measure import Effort, Row, compare, in_process
from tests.bench.memory import MB, Peak

LIMIT, LIMIT_OF_GENERATE = 1.05, 0.9
WIDTH, HEADS, LAYERS, NEW = 512, 8, 2, 16

#: Tokens in the cache at the end, rows of the batch, rounds.
CASES = (
    (64, 1, 40),
    (64, 16, 20),
    (256, 1, 40),
    (256, 16, 20),
    (1024, 1, 30),
    (1024, 16, 10),
    (4096, 1, 15),
    (4096, 16, 6),
)


def absent() -> list[str]:
    """Returns the libraries that are needed and not installed."""
    return [name for name in ("transformers",) if importlib.util.find_spec(name) is None]


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures, where transformers is installed; yields rows."""
    assert device == "cpu"
    if absent():
        return
    model = llama(WIDTH, LAYERS)
    for length, batch, rounds in ((32, 2, 2),) if effort.quick else CASES:
        yield _decoding(effort, model, length, batch, NEW, rounds)
    # Here the cache grows through several buckets; what is read is up to twice what is filled.
    length = 48 if effort.quick else 512
    yield _decoding(effort, model, length, 1, length - 24, 4, buckets=(32,) if effort.quick else None)
    for length, batch, rounds in ((32, 2, 2),) if effort.quick else ((256, 1, 10), (256, 16, 4)):
        yield _whole(effort, model, length, batch, rounds)
        yield _first_token(effort, model, length, batch, 2 * rounds)
    yield _memory(effort)
    yield from _planning(effort)
    yield _link()


def llama(width: int, layers: int) -> Any:
    """A model with random weights that never ends a text."""
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=8192,
        initializer_range=0.1,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


class Start(nn.Module):
    """What the loop of a pipeline begins with: a cache of zeros, filled but for the last tokens.

    Args:
        specs: What the loop carries.
        new: How many tokens are added.
        length: Tokens in the cache at the end.
    """

    def __init__(self, specs: dict[str, TensorSpec], new: int, length: int) -> None:
        super().__init__()
        self.specs = specs
        self.new = new
        self.length = length

    def forward(self, token: Tensor) -> dict[str, Tensor]:
        """Gives it for first tokens ``[batch]``."""
        shapes = {name: spec.shape({"batch": token.shape[0]}) for name, spec in self.specs.items()}
        values = {name: torch.zeros(shape, dtype=self.specs[name].dtype) for name, shape in shapes.items()}
        filled = self.length - self.new
        return {
            **values,
            "position": torch.full((1,), filled),
            "place": torch.full((token.shape[0],), filled),
            "mask": torch.ones_like(values["mask"]),
        }


def decoder(model: Any, length: int, batch: int, new: int, buckets: tuple[int, ...] | None) -> Pipeline:
    """The loops that `from_transformers` draws, without prompt and the token that follows it."""
    continuation = importlib.import_module("orchestrator_stages.generation.continuation")
    options = importlib.import_module("orchestrator_stages.generation.options")
    rows, tokens = Dim("batch", buckets=(batch,)), Dim("tokens", buckets=(length - new - 1,))
    selection = options.prompt_selection(model, {"max_new_tokens": new + 1})
    drawing = continuation.Continuation(model, selection, rows, tokens, None)
    pipeline = Pipeline("decode")
    token = pipeline.input("token", TensorSpec((rows,), torch.int64, pad=0))
    specs = {**drawing.loop.carries, **drawing.loop.constants, "done": TensorSpec((1,), torch.bool)}
    del specs["token"]
    start = pipeline.add("start", Start(specs, new, length))(token)
    values = {"token": token, **{name: start[name] for name in specs}}
    pipeline.output("tokens", drawing.draw_loops(pipeline, values, buckets)[0])
    return pipeline


@functools.cache
def expert_layer() -> Any:
    """The class of a layer of the expert's cache: made once, each token is written into its place."""
    base: Any = importlib.import_module("transformers.cache_utils").CacheLayerMixin

    class ExpertLayer(base):  # type: ignore[misc]
        is_sliding = False
        is_compileable = False
        is_initialized = True

        def __init__(self, batch: int, length: int, filled: int) -> None:
            self.keys, self.values = (torch.zeros(batch, HEADS, length, WIDTH // HEADS) for _ in range(2))
            self.filled = filled

        def lazy_initialization(self, *_: Tensor) -> None:
            """It is made already."""

        def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            """Writes tokens; gives what is filled, which is the prompt as it is where there is nothing else."""
            at, self.filled = self.filled, self.filled + keys.shape[2]
            self.keys[:, :, at : self.filled], self.values[:, :, at : self.filled] = keys, values
            if not at:
                return keys, values
            return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

        def get_seq_length(self) -> int:
            return self.filled

        def get_mask_sizes(self, query: Any) -> tuple[int, int]:
            return self.filled + (query.shape[0] if isinstance(query, Tensor) else int(query)), 0

        def get_max_length(self) -> int:
            return int(self.keys.shape[2])

        get_max_cache_shape = get_max_length

    return ExpertLayer


def expert_cache(model: Any, batch: int, length: int, filled: int) -> Any:
    """A cache of such layers."""
    cache = importlib.import_module("transformers.cache_utils").DynamicCache()
    layers = range(model.config.num_hidden_layers)
    cache.layers = [expert_layer()(batch, length, filled) for _ in layers]
    return cache


def by_hand(model: Any, token: Tensor, length: int, new: int) -> Tensor:
    """The expert's loop: tokens ``[batch, new]``."""
    batch = token.shape[0]
    cache = expert_cache(model, batch, length, length - new)
    chosen = torch.zeros(batch, new, dtype=torch.int64)
    finished = torch.zeros(batch, dtype=torch.bool)
    mask = torch.ones(batch, length, dtype=torch.int64)
    ends = torch.tensor([], dtype=torch.int64)
    for at in range(new):
        place = torch.full((batch, 1), length - new + at)
        seen = mask[:, : length - new + at + 1]
        out = model(
            input_ids=token[:, None],
            attention_mask=seen,
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        token = torch.where(finished, 0, out.logits[:, -1].argmax(1))
        chosen[:, at] = token
        finished = finished | torch.isin(token, ends)
        if finished.all():
            break
    return chosen


def _decoding(
    effort: Effort,
    model: Any,
    length: int,
    batch: int,
    new: int,
    rounds: int,
    buckets: tuple[int, ...] | None = None,
) -> Row:
    token = torch.arange(batch) + 3
    with decoder(model, length, batch, new, buckets).plan().load() as session, torch.inference_mode():
        equal = session(token=token)["tokens"][:, :new].equal(by_hand(model, token, length, new))
        pair = compare(
            lambda: session(token=token), lambda: by_hand(model, token, length, new), effort.rounds(rounds)
        )
    grows = length - new < length // 2
    case = f"from {length - new} to {length} tokens" if grows else f"{new} tokens, cache of {length}"
    return Row(
        "generate",
        f"width {WIDTH}, {batch} rows, {case}",
        "ms/token",
        pair.ours * 1e3 / new,
        pair.reference * 1e3 / new,
        pair.ratio,
        "x",
        None if grows else LIMIT,
        equal=equal,
        note="reference: the loop by hand, which reads of its in-place cache what is filled",
    )


def _request(batch: int, length: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 1000, (batch, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _session(model: Any, request: dict[str, Tensor], new: int) -> Any:
    stages = importlib.import_module("orchestrator_stages")
    batch, length = request["input_ids"].shape
    return stages.from_transformers(model, max_new_tokens=new, batch=(batch,), tokens=(length,)).plan().load()


def _whole(effort: Effort, model: Any, length: int, batch: int, rounds: int) -> Row:
    """A request from prompt to last token against generate()."""
    request, new = _request(batch, 8), length - 8

    def generate() -> Any:
        return model.generate(**request, max_new_tokens=new, do_sample=False)

    with _session(model, request, new) as session, torch.inference_mode():
        equal = session(**request)["tokens"].equal(generate())
        pair = compare(lambda: session(**request), generate, effort.rounds(rounds))
    return Row(
        "generate",
        f"width {WIDTH}, {batch} rows, a request of {length} tokens",
        "ms",
        pair.ours * 1e3,
        pair.reference * 1e3,
        pair.ratio,
        "x",
        LIMIT_OF_GENERATE,
        equal=equal,
        note="reference: generate() of transformers",
    )


def _first_token(effort: Effort, model: Any, length: int, batch: int, rounds: int) -> Row:
    request = _request(batch, length)

    def prefill() -> Tensor:
        cache = expert_cache(model, batch, length + 1, 0)
        places = (request["attention_mask"].cumsum(1) - 1).clamp(min=0)
        out = model(**request, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token: Tensor = out.logits[:, -1].argmax(1)
        return torch.cat([request["input_ids"], token[:, None]], 1)

    with _session(model, request, 1) as session, torch.inference_mode():
        equal = session(**request)["tokens"].equal(prefill())
        pair = compare(lambda: session(**request), prefill, effort.rounds(rounds))
    return Row(
        "generate",
        f"width {WIDTH}, {batch} rows, the first token after {length}",
        "ms",
        pair.ours * 1e3,
        pair.reference * 1e3,
        pair.ratio,
        "x",
        LIMIT,
        equal=equal,
        note="reference: a prefill by hand",
    )


def _memory(effort: Effort) -> Row:
    arguments = ("1024", "4") if effort.quick else ("2048", "8")
    ours, reference = (in_process("generation", side, *arguments) for side in ("session", "by hand"))
    return Row(
        "generate",
        f"memory: width {WIDTH}, {arguments[1]} rows, cache of {arguments[0]}",
        "MB",
        ours["peak"] / MB,
        reference["peak"] / MB,
        ours["peak"] / reference["peak"],
        "x",
        None if effort.quick else LIMIT,
        equal=ours["sum"] == reference["sum"],
        note="resident memory above that of the model, in a process of its own; reference: the loop by hand",
    )


def _planning(effort: Effort) -> Iterator[Row]:
    """Plan and load time of a model with many layers."""
    layers = 2 if effort.quick else 24
    model = llama(64, layers)
    stages = importlib.import_module("orchestrator_stages")
    options = {"max_new_tokens": 64, "batch": (1, 4), "tokens": (64, 512)}
    started = time.perf_counter()
    pipeline = stages.from_transformers(model, **options)
    drawn = time.perf_counter()
    plan = pipeline.plan()
    planned = time.perf_counter()
    plan.load().close()
    loaded = time.perf_counter()
    spans = {"draw": drawn - started, "plan": planned - drawn, "load": loaded - planned}
    for what, seconds in spans.items():
        yield Row("generate", f"{layers} layers: {what}", "s", seconds, None, seconds, "s")


def _link() -> Row:
    """Bytes over the link for each token, by the plan."""
    stages = importlib.import_module("orchestrator_stages")
    batch = 4
    pipeline = stages.from_transformers(llama(64, 2), max_new_tokens=NEW, batch=(batch,), tokens=(16,))
    edges = [edge for edge in pipeline.plan(device="neuron-emulated").edges if "decode/" in str(edge)]
    crossing = sum(edge.bytes for edge in edges if edge.residency is Residency.HOST)
    return Row(
        "generate",
        f"{batch} rows on neuron-emulated: bytes over the link for each token",
        "B",
        crossing,
        sum(edge.bytes for edge in edges),
        crossing,
        "B",
        8 * batch + 1,
        note="limit: the tokens and whether all are done; reference: every value of a step",
    )


def _one_side(side: str, length: int, batch: int) -> dict[str, Any]:
    """Measures the memory of one side in this process."""
    torch.set_num_threads(1)
    model, token = llama(WIDTH, LAYERS), torch.arange(batch) + 3
    session = decoder(model, length, batch, NEW, None).plan().load()
    runs: dict[str, Callable[[], Tensor]] = {
        "session": lambda: session(token=token)["tokens"][:, :NEW],
        "by hand": lambda: by_hand(model, token, length, NEW),
    }
    with torch.inference_mode():
        total = int(runs[side]().sum())
        gc.collect()
        gc.disable()
        peak = Peak("cpu")
        runs[side]()
        value = peak.value()
    session.close()
    return {"peak": value, "sum": total}


if __name__ == "__main__":
    print(json.dumps(_one_side(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
