"""Decoding of `from_transformers` next to the loop that an expert writes around the same model.

The model is a Llama of width 512 with random weights. The expert calls the model's own forward, too: its cache is made
once, in the length that is needed, each token is written into it in place, and attention reads what is filled and no
more. Both sides begin with a cache of zeros that is filled but for the last tokens, so that what is measured is
decoding alone, at that length.

Run as a module, this measures the memory of one side and prints it as JSON.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator import Dim, Pipeline, TensorSpec
from tests.bench.decoding import DEVICE, link
from tests.bench.expert import compiled_by_hand, expert_cache
from tests.bench.measure import Effort, Row, compare, in_process, no_collector
from tests.bench.memory import MB, Peak

LIMIT, LIMIT_OF_GENERATE = 1.05, 0.9
WIDTH, HEADS, LAYERS, NEW = 512, 8, 2, 16

#: A token that ends a text, looked for by both sides and never the most likely.
END = 2

#: Tokens in the cache at the end, rows of the batch, rounds.
CASES = (
    (64, 1, 40),
    (64, 16, 20),
    (256, 1, 40),
    (256, 16, 16),
    (1024, 1, 20),
    (1024, 16, 10),
    (4096, 1, 12),
    (4096, 16, 3),
)

#: Tokens of the prompt, of all, rows of the batch, beams, rounds.
REQUESTS = ((64, 256, 1, 1, 6), (64, 512, 1, 1, 2), (64, 256, 16, 1, 2), (256, 320, 1, 4, 4))

#: The same of the request whose loop is compiled.
COMPILED = (64, 256, 1, 6)


def absent() -> list[str]:
    """Returns the libraries that are needed and not installed."""
    return [name for name in ("transformers",) if importlib.util.find_spec(name) is None]


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures, where transformers is installed; yields rows."""
    assert device == "cpu"
    if absent():
        return
    if effort.quick:
        model = llama(64, 2)
        yield _decoding(effort, model, 32, 2, NEW, 2)
        yield _whole(effort, model, 8, 12, 2, 2, 2)
        yield _first_token(effort, model, 16, 2, 2)
    else:
        model = llama(WIDTH, LAYERS)
        for length, batch, rounds in CASES:
            yield _decoding(effort, model, length, batch, NEW, rounds)
        # Here the cache grows through several buckets.
        yield _decoding(effort, model, 512, 1, 512 - 24, 2)
        for sizes in REQUESTS:
            yield _whole(effort, model, *sizes)
        for batch, rounds in ((1, 20), (16, 4)):
            yield _first_token(effort, model, 256, batch, rounds)
        yield from _compiled(effort, model, *COMPILED)
        yield _memory("cpu", 2048, 8)
        yield _memory(DEVICE, 4096, 16)
    yield from _planning(2, (1,), (16,)) if effort.quick else _planning(24, (1, 4), (64, 512))
    yield _link()


def llama(width: int, layers: int) -> Any:
    """A model with random weights that never ends a text, though it could."""
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
    # Of a thousand random scores the largest is above 0.
    with torch.no_grad():
        model.lm_head.weight[END] = 0
    model.generation_config.eos_token_id = END
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


def decoder(model: Any, length: int, batch: int, new: int) -> Pipeline:
    """The loops that `from_transformers` draws, without prompt and the token that follows it."""
    continuation = importlib.import_module("orchestrator_stages.generation.continuation")
    options = importlib.import_module("orchestrator_stages.generation.options")
    rows, tokens = Dim("batch", buckets=(batch,)), Dim("tokens", buckets=(length - new - 1,))
    selection = options.prompt_selection(model, {"max_new_tokens": new + 1})
    parts = continuation.ContinuationParts(model, selection, rows, tokens)
    drawing = continuation.Continuation(parts)
    pipeline = Pipeline("decode")
    token = pipeline.input("token", TensorSpec((rows,), torch.int64, pad=0))
    specs = {**drawing.loop.carries, **drawing.loop.constants, "done": TensorSpec((1,), torch.bool)}
    del specs["token"]
    start = pipeline.add("start", Start(specs, new, length))(token)
    values = {"token": token, **{name: start[name] for name in specs}}
    pipeline.output("tokens", drawing.draw_loops(pipeline, values, None)[0])
    return pipeline


def step_by_hand(model: Any, token: Tensor, cache: Any, seen: Tensor, place: Tensor) -> Tensor:
    """The most likely tokens ``[batch]`` after others."""
    out = model(
        input_ids=token[:, None],
        attention_mask=seen,
        position_ids=place,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    best: Tensor = out.logits[:, -1].argmax(1)
    return best


@torch.inference_mode()
def by_hand(model: Any, token: Tensor, length: int, new: int) -> Tensor:
    """The expert's loop: tokens ``[batch, new]``."""
    batch = token.shape[0]
    cache = expert_cache(model, batch, length, length - new)
    chosen = torch.zeros(batch, new, dtype=torch.int64)
    finished = torch.zeros(batch, dtype=torch.bool)
    mask = torch.ones(batch, length, dtype=torch.int64)
    ends = torch.tensor([END])
    for at in range(new):
        place = torch.full((batch, 1), length - new + at)
        best = step_by_hand(model, token, cache, mask[:, : length - new + at + 1], place)
        token = torch.where(finished, 0, best)
        chosen[:, at] = token
        finished = finished | torch.isin(token, ends)
        if finished.all():
            break
    return chosen


def _decoding(effort: Effort, model: Any, length: int, batch: int, new: int, rounds: int) -> Row:
    token = torch.arange(batch) + 3
    with decoder(model, length, batch, new).plan().load() as session:
        equal = session(token=token)["tokens"][:, :new].equal(by_hand(model, token, length, new))
        pair = compare(
            lambda: session(token=token), lambda: by_hand(model, token, length, new), effort.rounds(rounds)
        )
    grows = length - new < length // 2
    case = f"from {length - new} to {length} tokens" if grows else f"{new} tokens, cache of {length}"
    return pair.row(
        "generate",
        f"{_size(model, batch)}, {case}",
        unit="ms/token",
        parts=new,
        limit=LIMIT,
        equal=equal,
        note="reference: the loop by hand, which reads of its in-place cache what is filled",
    )


def _size(model: Any, batch: int) -> str:
    return f"width {model.config.hidden_size}, {batch} rows"


def _request(batch: int, length: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 1000, (batch, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _session(model: Any, request: dict[str, Tensor], new: int, beams: int = 1) -> Any:
    stages = importlib.import_module("orchestrator_stages")
    batch, length = request["input_ids"].shape
    sizes = {"batch": (batch,), "tokens": (length,)}
    return stages.from_transformers(model, max_new_tokens=new, num_beams=beams, **sizes).plan().load()


def _whole(effort: Effort, model: Any, prompt: int, length: int, batch: int, beams: int, rounds: int) -> Row:
    """A request from prompt to last token against generate()."""
    request, new = _request(batch, prompt), length - prompt

    def generate() -> Any:
        return model.generate(**request, max_new_tokens=new, num_beams=beams, do_sample=False)

    with _session(model, request, new, beams) as session:
        equal = session(**request)["tokens"].equal(generate())
        pair = compare(lambda: session(**request), generate, effort.rounds(rounds))
    return pair.row(
        "generate",
        f"{_size(model, batch)}, a request: {prompt} tokens and {new} more"
        + f", {beams} beams" * (beams > 1),
        limit=LIMIT_OF_GENERATE,
        equal=equal,
        note="reference: generate() of transformers",
    )


@torch.inference_mode()
def prefill(model: Any, request: dict[str, Tensor], slots: int) -> tuple[Tensor, Any]:
    """The expert's prefill: the first token after prompts, and the cache."""
    cache = expert_cache(model, len(request["input_ids"]), slots, 0)
    return _first(model, request, cache)[0], cache


def _compiled(effort: Effort, model: Any, prompt: int, length: int, batch: int, rounds: int) -> Iterator[Row]:
    """The same with the loop compiled, against generate() and the loop that an expert compiles."""
    request, new = _request(batch, prompt), length - prompt
    references = {
        "generate() of transformers": (
            LIMIT_OF_GENERATE,
            lambda: model.generate(**request, max_new_tokens=new, do_sample=False),
        ),
        "by hand, the library's static cache and torch.compile": (
            LIMIT,
            compiled_by_hand(model, request, length, functools.partial(step_by_hand, model), _first, END),
        ),
    }
    stages = importlib.import_module("orchestrator_stages")
    pipeline = stages.from_transformers(model, max_new_tokens=new, batch=(batch,), tokens=(prompt,))
    with pipeline.plan(compile={"decode": "aot"}).load() as session:
        for reference, (limit, call) in references.items():
            equal = session(**request)["tokens"].equal(call())
            pair = compare(lambda: session(**request), call, effort.rounds(rounds))
            yield pair.row(
                "generate",
                f'{_size(model, batch)}, {prompt} tokens and {new} more, compile={{"decode": "aot"}}',
                limit=limit,
                equal=equal,
                note=f"reference: {reference}",
            )


def _first(model: Any, request: dict[str, Tensor], cache: Any) -> tuple[Tensor, Tensor]:
    """The first token after prompts, and the place of the last one of each ``[batch, 1]``."""
    places = (request["attention_mask"].cumsum(1) - 1).clamp(min=0)
    out = model(**request, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[:, -1].argmax(1), places[:, -1:]


def _first_token(effort: Effort, model: Any, length: int, batch: int, rounds: int) -> Row:
    request = _request(batch, length)

    def expert() -> Tensor:
        token, _ = prefill(model, request, length + 1)
        return torch.cat([request["input_ids"], token[:, None]], 1)

    with _session(model, request, 1) as session:
        equal = session(**request)["tokens"].equal(expert())
        pair = compare(lambda: session(**request), expert, effort.rounds(rounds))
    return pair.row(
        "generate",
        f"{_size(model, batch)}, the first token after {length}",
        limit=LIMIT,
        equal=equal,
        note="reference: a prefill by hand",
    )


def _memory(device: str, length: int, batch: int) -> Row:
    """Resident memory of a request, each side in a process of its own."""
    ours, reference = (
        in_process("generation", side, device, str(length), str(batch)) for side in ("session", "by hand")
    )
    what = "one cache" if device == "cpu" else "one cache, and weights a second time"
    return Row(
        "generate",
        f"memory on {device}: width {WIDTH}, {batch} rows, cache of {length}",
        "MB",
        ours["peak"] / MB,
        reference["peak"] / MB,
        ours["peak"] / reference["peak"],
        "x",
        LIMIT,
        equal=ours["sum"] == reference["sum"],
        note=f"resident memory above that of the model; by hand: {what}",
    )


def _planning(layers: int, batch: tuple[int, ...], tokens: tuple[int, ...]) -> Iterator[Row]:
    """Plan and load time of a model with many layers."""
    model = llama(64, layers)
    stages = importlib.import_module("orchestrator_stages")
    started = time.perf_counter()
    pipeline = stages.from_transformers(model, max_new_tokens=64, batch=batch, tokens=tokens)
    drawn = time.perf_counter()
    plan = pipeline.plan()
    planned = time.perf_counter()
    plan.load().close()
    loaded = time.perf_counter()
    spans = {"draw": drawn - started, "plan": planned - drawn, "load": loaded - planned}
    notes = {"draw": "with the comparison with generate() when a model is taken"}
    for what, seconds in spans.items():
        case = f"{layers} layers, {len(batch) * len(tokens)} buckets: {what}"
        yield Row("generate", case, "s", seconds, None, seconds, "s", note=notes.get(what, ""))


def _link() -> Row:
    model, request = llama(64, 2), _request(4, 16)
    expected = model.generate(**request, max_new_tokens=NEW, do_sample=False)
    return link("generate", "width 64", model, request, expected, NEW)


def _one_side(side: str, device: str, length: int, batch: int) -> dict[str, Any]:
    """Measures the memory of one side in this process."""
    torch.set_num_threads(1)
    model = llama(WIDTH, LAYERS)
    with (_on_cpu if device == "cpu" else _on_device)(model, length, batch) as runs, torch.inference_mode():
        total = int(runs[side]().sum())
        with no_collector():
            peak = Peak("cpu")
            runs[side]()
            value = peak.value()
    return {"peak": value, "sum": total}


@contextlib.contextmanager
def _on_cpu(model: Any, length: int, batch: int) -> Iterator[dict[str, Callable[[], Tensor]]]:
    token = torch.arange(batch) + 3
    with decoder(model, length, batch, NEW).plan().load() as session:
        yield {
            "session": lambda: session(token=token)["tokens"][:, :NEW],
            "by hand": lambda: by_hand(model, token, length, NEW),
        }


@contextlib.contextmanager
def _on_device(model: Any, length: int, batch: int) -> Iterator[dict[str, Callable[[], Tensor]]]:
    """The emulated device is this process: its weights and cache from loading on, beside those of the model."""
    # The cache is as long as it may be and the request is not: all rows are one prompt, so that all end by the third
    # token, without padding and without an option that changes what comes before.
    request, new = _request(1, 8), 3
    with torch.inference_mode():
        tokens = model.generate(**request, max_new_tokens=new, do_sample=False)[0, -new:].tolist()
    end = tokens[-1]
    assert end not in tokens[:-1]
    request = {name: value.expand(batch, -1).contiguous() for name, value in request.items()}
    sizes = {"batch": (batch,), "tokens": (8,), "cache": (length,)}
    stages = importlib.import_module("orchestrator_stages")
    pipeline = stages.from_transformers(model, max_new_tokens=length - 8, eos_token_id=end, **sizes)
    plan = pipeline.plan(device=DEVICE)

    def session() -> Tensor:
        with plan.load() as loaded:
            result: Tensor = loaded(**request)["tokens"]
            return result

    def expert() -> Tensor:
        own = copy.deepcopy(model)
        token, cache = prefill(own, request, length)
        chosen, mask = [request["input_ids"], token[:, None]], torch.ones(batch, length, dtype=torch.int64)
        for at in range(8, length):
            if token.eq(end).all():
                break
            place = torch.full((batch, 1), at)
            token = step_by_hand(own, token, cache, mask[:, : at + 1], place)
            chosen.append(token[:, None])
        return torch.cat(chosen, 1)

    yield {"session": session, "by hand": expert}


if __name__ == "__main__":
    print(json.dumps(_one_side(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
