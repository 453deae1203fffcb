"""Loops, maps and what is born in random pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.properties.fuzz.dims import NamedDim, Value, spec_code
from tests.properties.fuzz.nesting import Nesting
from tests.properties.fuzz.operations import Calls
from tests.properties.fuzz.recipe import Op

__all__ = ["Blocks"]


class Blocks(Nesting):
    """A block that may hold all kinds of others."""

    operations = (*Calls.operations, "loop", "loop", "map", "map", "when", "when", "sub", "born")

    def loop(self) -> None:
        if not self._able():
            return
        body = self._body("loop")
        fed: dict[str, dict[str, str]] = {"carry": {}, "each": {}, "inputs": {}}
        carried = self._enter(body, fed, self.rng.randint(0, 2))
        count = self._each(body, fed)
        body.grow(self.rng.randint(1, 4))
        extra: dict[str, str] = {}
        if self.shared.chance(0.4):
            count = self._until(body, fed, extra, carried)
        elif count is None or self.shared.chance(0.3):
            most = self.rng.randint(0, 3)
            extra["max_steps"] = str(most)
            count = most if count is None else min(count, most) if isinstance(count, int) else "named"
        for port, value in carried.items():
            if port not in {name for name, _ in body.block.outputs}:
                body.block.outputs.append([port, self._next(body, value).var])
        parts = self._collected(body, carried)
        if not carried and not parts:
            return
        extra["collect"] = f"({''.join(repr(port) + ', ' for port in parts)})"
        names = [*carried, *parts]
        extra["outputs"] = f"({''.join(repr(port) + ', ' for port in names)})"
        made = [replace(value, var="") for value in carried.values()]
        for value in parts.values():
            lead = count if isinstance(count, int | NamedDim) else 1
            made.append(replace(value, dims=(lead, *value.dims), last=not isinstance(count, int | NamedDim)))
        name = self.shared.name("stage", "loop")
        self._give(Op("loop", [], name, body=body.block, fed=fed, extra=extra, results=names), made)

    def _enter(self, body: Blocks, fed: dict[str, dict[str, str]], shared: int) -> dict[str, Value]:
        """Carries, and what is the same in all iterations; returns the carries."""
        carried = {}
        for role, times in (("carry", self.rng.randint(1, 2)), ("inputs", shared)):
            for _ in range(times):
                value = self._plain_float()
                if value is not None:
                    port = self._port()
                    fed[role][port] = value.var
                    inner = body.take(port, value)
                    body.values.append(inner)
                    if role == "carry":
                        carried[port] = inner
        return carried

    def _each(self, body: Blocks, fed: dict[str, dict[str, str]]) -> Any:
        """What is sliced; returns how many slices there are."""
        value = self.pick_float(
            lambda value: (
                value.plain
                and len(value.dims) > 1
                and (isinstance(value.dims[0], int) or value.dims[0].mixes)
            )  # type: ignore[union-attr]
        )
        if value is None or not self.shared.chance(0.5):
            return None
        port = self._port()
        fed["each"][port] = value.var
        body.values.append(body.take(port, replace(value, dims=value.dims[1:])))
        return value.dims[0]

    def _until(
        self, body: Blocks, fed: dict[str, dict[str, str]], extra: dict[str, str], carried: dict[str, Value]
    ) -> str:
        port, done = self._port(), self._port()
        k = body.take(port, Value("", (1,)))
        fed["carry"][port] = "torch.zeros(1)"
        stage = body.stage(f"Count({self.rng.randint(1, 3)})", "count", more={"outputs": "('k', 'done')"})
        following, ended = body.call(stage, [k], k, replace(k, kind="mask"))
        body.block.outputs += [[port, following.var], [done, ended.var]]
        carried[port] = k
        extra |= {"until": repr(done), "max_steps": str(self.rng.randint(1, 4))}
        if self.shared.chance(0.4):
            extra["check_every"] = str(self.rng.choice((2, 3)))
        return "decided"

    def _next(self, body: Blocks, carried: Value) -> Value:
        """The next value of a carry: something made, now and then another carry or itself."""
        fitting = [value for value in body.values if value.form == carried.form and not value.last]
        chosen = self.rng.choice(fitting[-3:])
        if self.shared.chance(0.75):
            return body.one("squash", chosen)[0]
        return chosen

    def _collected(self, body: Blocks, carried: dict[str, Value]) -> dict[str, Value]:
        able = [value for value in body.values if value.tensor and not value.last]
        chosen = self.rng.sample(able, min(len(able), self.rng.randint(0 if carried else 1, 2)))
        parts = {self._port(): value for value in chosen}
        body.block.outputs += [[port, value.var] for port, value in parts.items()]
        return parts

    # Maps

    def map(self) -> None:
        lists = self.pick(lambda value: value.kind == "list" and value.last is False and value.raw)
        value = lists if lists is not None and self.shared.chance(0.5) else self._tensor_of_items()
        if value is None or not self._able():
            return
        body, port = self._body("map"), self._port()
        items, rules = self._items(value)
        body.values.append(body.take(port, Value("", items), **rules))
        fed = {"over": {port: value.var}, "inputs": {}}
        other = self.pick_float(lambda value: value.plain and bool(value.dims) and not value.names)
        if other is not None and self.shared.chance(0.4):
            name = self._port()
            fed["inputs"][name] = other.var
            body.values.append(body.take(name, other))
        body.grow(self.rng.randint(1, 3))
        lead = items[0]
        able = [
            inner for inner in body.values if inner.tensor and not inner.last and inner.dims[:1] == (lead,)
        ]
        results = {self._port(): inner for inner in able[-self.rng.randint(1, 2) :]}
        body.block.outputs += [[port, inner.var] for port, inner in results.items()]
        made = []
        for inner in results.values():
            if value.kind == "list":
                made.append(Value("", (), "list", last=True))
            else:
                named = any(isinstance(size, NamedDim) and size is not lead for size in inner.names)
                made.append(replace(inner, dims=(value.dims[0], *inner.dims[1:]), last=named))
        extra = {"outputs": f"({''.join(repr(port) + ', ' for port in results)})"}
        name = self.shared.name("stage", "map")
        self._give(Op("map", [], name, body=body.block, fed=fed, extra=extra, results=list(results)), made)

    def _tensor_of_items(self) -> Value | None:
        return self.pick_float(
            lambda value: (
                value.plain and len(value.dims) > 1 and all(isinstance(size, int) for size in value.dims[1:])
            )
        )

    def _items(self, value: Value) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The dims of a batch of items, and the rules of the body's input."""
        lead = self.shared.dim("items", batch=self.shared.chance(0.5), padded=True, items=True)
        if value.kind != "list":
            return (lead, *value.dims[1:]), {"pad": 0}
        width = self.shared.dim("width", padded=True, batch=False)
        return (lead, 2, width), {"pad": self.shared.pad()}

    # What is born

    def born(self) -> None:
        """A host stage that decides how many rows there are."""
        value = self.pick_float(
            lambda value: value.plain and len(value.dims) > 1 and all(name.follows for name in value.names)
        )
        if value is None or self.depth or not all(isinstance(size, int) for size in value.dims[1:]):
            return
        dim = self.shared.dim("born")
        made = replace(value, dims=(dim, *value.dims[1:]))
        pad = self.shared.pad() if dim.padded else None
        output = spec_code(made.dims, made.kind, pad=pad)
        self.one("kept_rows", value, made, more={"device": "'host'", "outputs": f"{{'y': {output}}}"})
        self.again.pop()
