"""The chain of ten trivial stages on other libraries, built as their own documentation does, where they are installed.

They come with ``pip install 'stage-orchestrator[bench]'``. Each graph is built once and run many times; telemetry is
off, and so is everything else that is optional.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.bench.chain import by_hand, stage
from tests.bench.measure import Effort, Row, compare

COUNT = 10

Function = Callable[[Tensor], Any]


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures those that are installed; yields rows."""
    assert device == "cpu"
    os.environ.update(HAYSTACK_TELEMETRY_ENABLED="False", HAMILTON_TELEMETRY_ENABLED="false")
    x, reference = torch.zeros(1, 64), by_hand(COUNT)
    for name, (module, distribution, build) in PEERS.items():
        if importlib.util.find_spec(module) is None:
            continue
        with torch.inference_mode():
            run = build()
            equal = torch.equal(run(x), reference(x))
            pair = compare(partial(run, x), partial(reference, x), effort.rounds(300))
        yield Row(
            "peers",
            f"{name} {importlib.metadata.version(distribution)}, {COUNT} stages",
            "us",
            pair.ours * 1e6,
            pair.reference * 1e6,
            pair.difference * 1e6 / COUNT,
            "us a stage",
            equal=equal,
        )


def absent() -> list[str]:
    """Returns the libraries that are not installed."""
    return [name for name, (module, _, _) in PEERS.items() if importlib.util.find_spec(module) is None]


def _haystack() -> Function:
    haystack = importlib.import_module("haystack")

    logging.getLogger("haystack").setLevel(logging.ERROR)

    class AddOne:
        def run(self, x: Any) -> dict[str, Any]:
            return {"y": stage(x)}

    AddOne.run.__annotations__.update(x=Tensor)
    haystack.component.output_types(y=Tensor)(AddOne.run)
    made = haystack.component(AddOne)
    chain = haystack.Pipeline()
    for number in range(COUNT):
        chain.add_component(f"s{number}", made())
    for number in range(1, COUNT):
        chain.connect(f"s{number - 1}.y", f"s{number}.x")
    last = f"s{COUNT - 1}"
    return lambda x: chain.run({"s0": {"x": x}})[last]["y"]


def _hamilton() -> Function:
    """Functions of a module; the name of a parameter says whose result it takes."""
    driver, ad_hoc = (importlib.import_module(f"hamilton.{name}") for name in ("driver", "ad_hoc_utils"))
    scope: dict[str, Any] = {"stage": stage, "Tensor": Tensor}
    names = ["x", *(f"s{number}" for number in range(COUNT))]
    for before, name in itertools.pairwise(names):
        exec(f"def {name}({before}: Tensor) -> Tensor:\n    return stage({before})", scope)
    module = ad_hoc.create_temporary_module(*(scope[name] for name in names[1:]), module_name="chain")
    chain = driver.Builder().with_modules(module).build()
    return lambda x: chain.execute([names[-1]], inputs={"x": x})[names[-1]]


PEERS: dict[str, tuple[str, str, Callable[[], Function]]] = {
    "Haystack": ("haystack", "haystack-ai", _haystack),
    "Hamilton": ("hamilton", "apache-hamilton", _hamilton),
}
