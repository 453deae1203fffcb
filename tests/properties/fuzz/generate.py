"""A seed makes a recipe: dims and inputs, what is done with them, where it runs, and what is asked of it."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from tests.properties.fuzz.bodies import Blocks
from tests.properties.fuzz.dims import NamedDim, Value
from tests.properties.fuzz.growing import Shared
from tests.properties.fuzz.recipe import Block, Recipe

__all__ = ["make_recipe"]

NEURON = "neuron-emulated"
#: How often a recipe runs where programs are compiled, which takes seconds.
COMPILED = 0.05


class _Maker:
    def __init__(self, seed: int, compiled: float) -> None:
        self.rng = Random(seed)
        rng = self.rng
        self.seed = seed
        self.compiles = rng.random() < compiled
        self.shared = Shared(rng, 0.6 if rng.random() < 0.15 else 0, rng.random() < 0.6)
        self.main = Blocks(self.shared, self.shared.name("pipeline", "p"))
        self.rules: dict[str, Any] = {}

    def make(self) -> Recipe:
        rng, main = self.rng, self.main
        self._inputs()
        main.grow(rng.randint(1, 3) * rng.randint(1, 4))
        self._outputs()
        plan = self._plan()
        sizes = [self._sizes() for _ in range(rng.randint(3, 5))]
        requests = [self._request(asked, number) for number, asked in enumerate(sizes)]
        ways = {way: rng.random() < 0.15 for way in ("through_json", "forced", "streamed")}
        return Recipe(self.seed, main.block, plan, requests, sizes, **ways)

    # Inputs

    def _inputs(self) -> None:
        rng, shared, main = self.rng, self.shared, self.main
        dims = [shared.dim(hint) for hint in "abc"[: rng.choice((0, 1, 1, 1, 2, 2))]]
        # What mixes along a dim is right beside a padded one only if the pad rule does not speak of it.
        padded = any(dim.padded for dim in dims)
        dims = [replace(dim, exact=dim.exact or (padded and dim.mixes)) for dim in dims]
        dims = [replace(dim, bare=not (dim.batch or dim.exact) and rng.random() < 0.25) for dim in dims]
        if rng.random() < 0.06:
            dims = [NamedDim(shared.name("dim", "any"), ())]
        shared.dims |= {dim.name: dim for dim in dims}
        self.named = dims
        for _ in range(rng.randint(1, 3)):
            self._input(self._shape(dims))
        if rng.random() < 0.2 and dims:
            self._input(self._shape(dims), optional=True)
        masked = [dim for dim in dims if dim.padded]
        if masked and rng.random() < 0.3:
            value = main.take(shared.name("input", "mask"), Value("", (rng.choice(masked),), raw=True), pad=0)
            main.values.append(replace(value, ones=True))
        for kind in ("bool", "int", "list"):
            if rng.random() < 0.15:
                main.values.append(main.take(shared.name("input", kind), Value("", (), kind, raw=True)))

    def _shape(self, dims: list[NamedDim]) -> tuple[Any, ...]:
        rng = self.rng
        width = rng.choice((1, 2, 3, 4, 6))
        chosen = rng.sample(dims, rng.randint(0 if rng.random() < 0.2 else min(1, len(dims)), len(dims)))
        lead: list[Any] = [*chosen]
        if not lead or rng.random() < 0.25:
            lead.insert(rng.randint(0, len(lead)), rng.choice((1, 2, 3)))
        return (*lead, width)

    def _input(self, dims: tuple[Any, ...], optional: bool = False) -> None:
        padded = any(isinstance(size, NamedDim) and size.padded for size in dims)
        kind = self.rng.choice(("float32",) * 9 + ("int64",))
        rules: dict[str, Any] = {"pad": self.shared.pad(kind)} if padded else {}
        value = self.main.take(
            self.shared.name("input", "x"), Value("", dims, kind, raw=True), optional=optional, **rules
        )
        if optional:
            self.shared.optional.append(value)
        else:
            self.main.values.append(value)

    def _outputs(self) -> None:
        rng, main = self.rng, self.main
        made = [value for value in main.values if not value.raw] or main.values
        chosen = {
            value.var: value for value in (made[-1], *rng.sample(made, min(len(made), rng.randint(0, 2))))
        }
        main.block.outputs = [[self.shared.name("output", "y"), var] for var in chosen]
        if rng.random() < 0.1:
            main.block.outputs.append([self.shared.name("output", "y"), main.values[0].var])

    # Where it runs

    def _plan(self) -> dict[str, Any]:
        rng = self.rng
        stages = list(_stages(self.main.block, ""))
        seen = {dim for value in (*self.main.values, *self.shared.optional) for dim in value.names}
        sizes = {dim.name: dim.buckets for dim in self.named if dim.bare and dim in seen}
        plan: dict[str, Any] = {"device": "cpu"}
        if sizes:
            plan["sizes"] = sizes
        if self.compiles:
            placement = {name: rng.choice((NEURON, NEURON, "cpu")) for name in stages}
            plan["options"] = {
                "tp_degree": rng.choice((1, 1, 2)),
                "adapters": rng.choice(("cost", "producer", "consumer", "program", "host")),
            }
        elif rng.random() < 0.5:
            devices = rng.choice((("null:0",), ("null:0", "cpu"), ("null:0", "null:1", "cpu")))
            placement = {name: rng.choice(devices) for name in stages}
            eager = rng.random() < 0.5
            plan["options"] = {
                "compute": True,
                "eager": eager,
                "deferred": rng.random() < 0.5,
                "peer_copy": rng.random() < 0.5,
                "ranks": rng.randint(1, 3),
                "static_shapes": rng.random() < 0.5,
                "output_buffers": rng.randint(0, 1),
            }
        else:
            return plan
        if placement and any(device != "cpu" for device in placement.values()):
            plan["placement"] = placement
        else:
            plan.pop("options")
        return plan

    # What is asked

    def _sizes(self) -> dict[str, int]:
        """Sizes at, between, below and above buckets."""
        rng, sizes = self.rng, {}
        for dim in self.named:
            largest = dim.buckets[-1] if dim.buckets else 8
            kind = rng.random()
            if kind < 0.35 and dim.buckets:
                sizes[dim.name] = rng.choice(dim.buckets)
            elif kind < 0.85:
                sizes[dim.name] = rng.randint(1, largest)
            else:
                sizes[dim.name] = rng.choice((largest + 1, 2 * largest, 2 * largest + 1))
        return sizes

    def _request(self, sizes: dict[str, int], number: int) -> dict[str, str]:
        rng, request = self.rng, {}
        forms = {value.var: value for value in (*self.main.values, *self.shared.optional)}
        for position, item in enumerate(self.main.block.inputs):
            value = forms[item.value]
            if item.optional and rng.random() < 0.4:
                continue
            if value.tensor:
                shape = tuple(sizes[size.name] if isinstance(size, NamedDim) else size for size in value.dims)
                code = f"data({1000 * number + position}, {shape}, torch.{value.kind})"
                request[item.name] = f"torch.ones({shape})" if value.ones else code
            elif value.kind == "list":
                widths = [rng.randint(1, 8) for _ in range(rng.choice((0, 1, 2, 3, 5, 9)))]
                request[item.name] = f"[data(number, (2, width)) for number, width in enumerate({widths})]"
            else:
                request[item.name] = repr(rng.randint(0, 5) if value.kind == "int" else rng.random() < 0.5)
        return request


def _stages(block: Block, around: str) -> list[str]:
    """Paths of the stages that a plan may place."""
    found = [around + stage.name for stage in block.stages if "device" not in stage.more]
    for name, body in {op.name: op.body for op in block.ops if op.body is not None}.items():
        found += _stages(body, f"{around}{name}/")
    return found


def make_recipe(seed: int, compiled: float = COMPILED) -> Recipe:
    """Returns the recipe of a seed.

    Args:
        seed: Any int.
        compiled: How often stages are placed on the emulated device, from 0 to 1.
    """
    return _Maker(seed, compiled).make()
