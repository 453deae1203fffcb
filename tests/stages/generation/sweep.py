"""Try every class of transformers that generates: a small model gives the tokens of ``generate()``, or is refused.

    python -m tests.stages.generation.sweep [--only NAME ...] [--jobs 2] [--state FILE] [--write]

Each class is tried in a process of its own with a limit of time. What came out is a line in a file, from which a run
that was cut short goes on; classes named by ``--only`` are tried again. ``--write`` tries nothing and makes the page of
the documentation and the data that its test reads.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator import OrchestratorError
from orchestrator_stages import from_transformers
from tests.stages.generation.small_configs import (
    GeneratingClass,
    generating_classes,
    small_items,
    small_model,
    transformers,
)
from tests.stages.generation.small_fields import ITEM, PAD, START, VOCABULARY

__all__ = ["DATA", "PAGE", "attempt", "main", "page_of"]

ROOT = Path(__file__).parents[3]
DATA = Path(__file__).with_name("generating.json")
PAGE = ROOT / "docs" / "reference" / "generating-models.md"

PROMPT, NEW, SECONDS = 5, 5, 120

#: What may come of a class, in the order of the page, and what it means there.
OUTCOMES = {
    "equal": "taken, with the tokens of `generate()`",
    "refused": "refused",
    "untried": "not tried",
    "crashed": "a defect: it ends in an error that names no rule",
    "different": "a defect: other tokens",
}

Outcome = dict[str, str]


def _outcome(result: str, why: object = "") -> Outcome:
    text = f"{type(why).__name__}: {why}" if isinstance(why, Exception) and result != "refused" else str(why)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Places of files and objects differ from machine to machine.
    text = re.sub(r"(/[\w.+-]+){2,}|0x[0-9a-f]+", "...", " ".join(lines))
    return {"result": result, "why": text}


def _texts(lengths: tuple[int, ...], side: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.full((len(lengths), longest), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(longest - length, None) if side == "left" else slice(length)
        ids[row, place] = torch.randint(START + 1, VOCABULARY - 8, (length,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


class _Trial:
    """What a class is tried with.

    Attributes:
        request: What the pipeline takes.
        arguments: What ``generate()`` takes besides.
        options: Of ``from_transformers``.
    """

    def __init__(self, entry: GeneratingClass, model: Any, seed: int) -> None:
        self.options: dict[str, Any] = {"batch": (2,), "max_new_tokens": NEW}
        self.arguments: dict[str, Any] = {}
        names = inspect.signature(model.forward).parameters
        main = getattr(model, "main_input_name", "input_ids")
        items = small_items(entry, model)
        label = "image" if "pixel_values" in names else "audio"
        tokens = (getattr(model.config, f"{label}_token_{kind}", None) for kind in ("id", "index"))
        self.token = next((token for token in tokens if isinstance(token, int)), ITEM)
        if getattr(model.config, "is_encoder_decoder", False) or hasattr(model.config, "decoder"):
            if items is not None and main == "input_ids":
                self._mix(items, names, seed, side="right")
            else:
                self._read(model, main, items, seed)
                if items is not None and "count" in items:
                    self.options["example"] = {name: value[:1] for name, value in self.request.items()}
        elif items is not None:
            self._mix(items, names, seed)
        else:
            self.options["tokens"] = (PROMPT,)
            self.request = _texts((PROMPT, 3), "left", seed)

    def _read(self, model: Any, main: str, items: Mapping[str, Any] | None, seed: int) -> None:
        """An encoder reads texts, or numbers."""
        if items is None:
            self.options["tokens"] = (PROMPT,)
            self.request = _texts((PROMPT, 3), "right", seed)
            return
        generator = torch.Generator().manual_seed(seed)
        shape = items[main]
        self.request = {main: torch.randn(2, *shape[1:], generator=generator)}
        if "length" in items:
            if "count" not in items:
                self.options["tokens"] = (items["length"],)
            self.request["attention_mask"] = torch.ones(2, items["length"], dtype=torch.int64)

    def _mix(self, items: Mapping[str, Any], names: Any, seed: int, side: str = "left") -> None:
        """One prompt has an item among its tokens, the other is text alone and shorter."""
        # Numbers are the request's, integers and types are the same for each item and go to generate() and the example.
        generator = torch.Generator().manual_seed(seed)
        count = items["count"]
        self.request = _texts((count + PROMPT - 1, PROMPT - 2), side, seed)
        ids = self.request["input_ids"]
        ids[0, 1 : 1 + count] = self.token
        tensors: dict[str, Tensor] = {}
        for name, value in items.items():
            if name.endswith("token_type_ids"):
                tensors[name] = (ids == self.token).to(torch.int64)
            elif isinstance(value, tuple):
                tensors[name] = torch.randn(*value, generator=generator)
            elif name != "count":
                tensors[name] = torch.tensor(value)
        numbers = {name: value for name, value in tensors.items() if value.is_floating_point()}
        self.arguments = {name: value for name, value in tensors.items() if name not in numbers}
        self.request |= numbers
        example = {"input_ids": torch.full((1, count), self.token), **tensors}
        for name in self.arguments:
            if name.endswith("token_type_ids"):
                example[name] = torch.ones(1, count, dtype=torch.int64)
        self.options |= {"tokens": (ids.shape[1],), "items": (1,), "example": example}


def attempt(entry: GeneratingClass, seeds: int = 4) -> Outcome:
    """Tries a class.

    Args:
        entry: The class.
        seeds: How many requests are tried until tokens vary, so that equal ones say something.
    """
    # A model that this test cannot make or run says nothing; from there on each error but a refusal is a defect.
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
    for seed in range(seeds):
        try:
            model = small_model(entry, seed)
        except Exception as error:
            return _outcome("untried", f"no small configuration: {type(error).__name__}: {error}")
        try:
            trial = _Trial(entry, model, seed)
            options = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 1}
            expected = model.generate(**trial.request, **trial.arguments, **options)
        except Exception as error:
            reason = f"generate() of its small configuration fails: {type(error).__name__}: {error}"
            return _unsupported(model) or _outcome("untried", reason)
        if not isinstance(expected, Tensor):
            return _outcome("untried", "generate() returns no tokens")
        if len(expected[:, -NEW:].unique()) > 2:
            break
    else:
        return _outcome("untried", "its small configuration gives the same token again and again")
    return _compare(model, trial, expected)


def _unsupported(model: Any) -> Outcome | None:
    """What says of a class that it is not supported, whatever it is given; None: nothing does."""
    try:
        from_transformers(model, batch=(2,), max_new_tokens=NEW)
    except OrchestratorError as error:
        return _outcome("refused", error) if "does not support" in str(error) else None
    except Exception:
        traceback.print_exc()
    return None


def _compare(model: Any, trial: _Trial, expected: Tensor) -> Outcome:
    """What comes of a model whose own tokens are known."""
    # A refusal comes before anything runs: an error of a session is a defect, whatever it says.
    try:
        plan = from_transformers(model, **trial.options).plan()
    except OrchestratorError as error:
        return _outcome("refused", error)
    except Exception as error:
        traceback.print_exc()
        return _outcome("crashed", error)
    try:
        with plan.load() as session:
            tokens = session(**trial.request)["tokens"]
    except Exception as error:
        traceback.print_exc()
        return _outcome("crashed", error)
    if tokens.equal(expected):
        return _outcome("equal")
    added = tokens[:, -NEW:].tolist()
    return _outcome("different", f"{added} where generate() gives {expected[:, -NEW:].tolist()}")


def _fork(entry: GeneratingClass, log: Path) -> tuple[int, int]:
    """Tries a class in a process of its own; returns its id and where its outcome is read from."""
    # The parent goes on; the process below writes what came out into the pipe and ends without the parent's clean-up.
    out, into = os.pipe()
    number = os.fork()
    if number:
        os.close(into)
        return number, out
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.write(1, f"===== {entry.name}\n".encode())
    before = time.process_time()
    outcome = attempt(entry)
    outcome["seconds"] = f"{time.process_time() - before:.1f}"
    os.write(into, json.dumps(outcome).encode())
    os._exit(0)


def _results(entries: list[GeneratingClass], jobs: int, log: Path) -> Iterator[tuple[str, Outcome]]:
    """Tries classes, so many at a time."""
    waiting = list(entries)
    running: dict[int, tuple[str, int]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            entry = waiting.pop(0)
            number, out = _fork(entry, log)
            running[number] = (entry.name, out)
        number, _ = os.wait()
        name, out = running.pop(number)
        with os.fdopen(out) as file:
            text = file.read()
        ended = _outcome("crashed", f"the process ended without a word after at most {SECONDS} seconds")
        yield name, json.loads(text) if text else ended


def page_of(data: Mapping[str, Any]) -> str:
    """Returns the page of the documentation.

    Args:
        data: The outcomes, as :data:`DATA` has them.
    """
    # How many there are first, then a table for each outcome.
    classes: Mapping[str, Mapping[str, Any]] = data["classes"]
    counts = {result: sum(each["result"] == result for each in classes.values()) for result in OUTCOMES}
    lines = [
        "# Models that generate",
        "",
        f"Of the {len(classes)} classes with which transformers {data['transformers']} generates tokens,",
        f"**{counts['equal']} are taken** by `orchestrator_stages.from_transformers` with the tokens of their",
        "`generate()`. Others are refused in a sentence before anything runs. A test makes a small model of each class",
        "with random weights, and compares the greedy tokens of two prompts of different lengths, with a picture or a",
        "recording where the model reads one. A class of which it could not make a small model that generates is",
        "listed as not tried: it may be taken or refused.",
        "",
        "The page is made by `python -m tests.stages.generation.sweep --write`.",
        "",
    ]
    for result, title in OUTCOMES.items():
        names = [name for name, each in classes.items() if each["result"] == result]
        if not names:
            continue
        lines += [f"## {title[0].upper()}{title[1:]} ({len(names)})", ""]
        lines += [
            "| class | model types |" + " why |" * (result != "equal"),
            "|---|---|" + "---|" * (result != "equal"),
        ]
        for name in names:
            types = ", ".join(f"`{kind}`" for kind in classes[name]["types"])
            why = f" {_cell(classes[name]['why'])} |" if result != "equal" else ""
            lines.append(f"| `{name}` | {types} |{why}")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    text = text if len(text) <= 240 else text[:237] + "..."
    return re.sub(r"([\\|<>*_`\[\]{}$])", r"\\\1", text)


def say(line: str) -> None:
    """Writes a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Tries what was not tried yet, and says what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", help="names of classes, tried again")
    parser.add_argument("--result", help="try again all classes of this outcome")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "generating.jsonl")
    parser.add_argument("--write", action="store_true", help="try nothing; write the page and its data")
    options = parser.parse_args()
    # Later lines of the state are the newer ones.
    entries = generating_classes()
    lines = options.state.read_text().splitlines() if options.state.exists() else []
    outcomes: dict[str, Outcome] = {}
    for line in lines:
        outcomes |= json.loads(line)
    again = set(options.only or [name for name, each in outcomes.items() if each["result"] == options.result])
    chosen = [
        entry
        for name, entry in entries.items()
        if not options.write and (name in again if options.only or options.result else name not in outcomes)
    ]
    if len(chosen) > 1:  # what all of them import and look up is there when they are forked
        attempt(entries["LlamaForCausalLM"])
    with options.state.open("a") as state:
        for name, outcome in _results(chosen, options.jobs, options.state.with_suffix(".log")):
            outcomes[name] = outcome
            state.write(json.dumps({name: outcome}) + "\n")
            state.flush()
            say(f"{outcome['result']:10}{outcome.get('seconds', ''):>6} {name} {outcome['why'][:150]}")
    for result in OUTCOMES:
        say(f"{result} {sum(each['result'] == result for each in outcomes.values())}")
    if options.write:
        classes = {
            name: {"types": entry.types, "result": outcomes[name]["result"], "why": outcomes[name]["why"]}
            for name, entry in entries.items()
            if name in outcomes
        }
        data = {"transformers": transformers.__version__, "classes": classes}
        DATA.write_text(json.dumps(data, indent=1) + "\n")
        PAGE.write_text(page_of(data))


if __name__ == "__main__":
    main()
