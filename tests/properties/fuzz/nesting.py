"""Branches and inlined pipelines in random pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.properties.fuzz.dims import Value
from tests.properties.fuzz.operations import Calls
from tests.properties.fuzz.recipe import Op

__all__ = ["Nesting"]

DEPTH = 2


class Nesting(Calls):
    """A block that may hold others."""

    #: Kinds of the blocks around.
    inside: tuple[str, ...] = ()

    def _body(self, kind: str) -> Nesting:
        body = type(self)(self.shared, self.shared.name("pipeline", kind), self.depth + 1)
        body.inside = (*self.inside, kind)
        return body

    def _port(self, kind: str = "input") -> str:
        return self.shared.name("port", "p")

    def _able(self) -> bool:
        return self.depth < DEPTH and self.rng.random() < 1 / (1 + self.depth)

    def _plain_float(self) -> Value | None:
        return self.pick_float(lambda value: value.plain and bool(value.dims))

    def _give(self, op: Op, made: list[Value]) -> list[Value]:
        results = [replace(value, var=self.shared.var(), raw=False, ones=False) for value in made]
        op.outs = [value.var for value in results]
        self.block.ops.append(op)
        self.values += results
        return results

    # Inlined pipelines

    def sub(self) -> None:
        """A pipeline as a stage, called once or twice."""
        value = self._plain_float()
        if value is None or not self._able():
            return
        body, port = self._body("sub"), self._port()
        rules: dict[str, Any] = {"pad": self.shared.pad()} if any(dim.padded for dim in value.names) else {}
        body.values.append(body.take(port, value, **rules))
        body.grow(self.rng.randint(1, 4))
        results = self._results(body)
        name = self.shared.name("stage", "sub")
        for _ in range(self.rng.randint(1, 2)):
            op = Op(
                "sub", [], name, body=body.block, fed={"inputs": {port: value.var}}, results=list(results)
            )
            self._give(op, list(results.values()))

    def _results(self, body: Nesting, most: int = 2) -> dict[str, Value]:
        """Hands out the newest values of a body."""
        given = [value for value in body.values if not value.last]
        results = {self._port(): value for value in given[-self.rng.randint(1, most) :]}
        body.block.outputs += [[port, value.var] for port, value in results.items()]
        return results

    # Branches

    def when(self) -> None:
        entered = [value for _ in range(self.rng.randint(1, 2)) if (value := self._plain_float()) is not None]
        optional = next((item for item in self.shared.optional if item.var in self._own()), None)
        if not entered or not self._able():
            return
        extra: dict[str, str] = {}
        if optional is not None and self.depth == 0 and self.shared.chance(0.7):
            entered.append(optional)
        if (condition := self._condition()) and (optional not in entered or self.shared.chance(0.4)):
            extra["condition"] = condition
        elif optional not in entered:
            return
        body = self._body("when")
        ports = {}
        for value in entered:
            port = self._port()
            ports[port] = value.var
            rules: dict[str, Any] = (
                {"pad": self.shared.pad(value.kind)} if any(dim.padded for dim in value.names) else {}
            )
            body.values.append(body.take(port, value, **rules))
        body.grow(self.rng.randint(1, 3))
        otherwise, made = {}, []
        for value in reversed(body.values):
            other = self.pick(lambda other, value=value: other.form == value.form)
            if other is not None and len(made) < 2 and value.tensor:
                port = self._port()
                body.block.outputs.append([port, value.var])
                otherwise[port] = other.var
                made.append(replace(value, var=""))
        if made:
            fed = {"inputs": ports, "otherwise": otherwise}
            name = self.shared.name("stage", "when")
            self._give(
                Op("when", [], name, body=body.block, fed=fed, extra=extra, results=list(otherwise)), made
            )

    def _own(self) -> set[str]:
        return {item.value for item in self.block.inputs}

    def _condition(self) -> str:
        """A boolean that hangs on nothing that is padded or a batch."""
        known = self.pick(lambda value: value.kind == "bool")
        if known is not None and self.shared.chance(0.6):
            return known.var
        value = self._plain_float()
        if value is not None and all(dim.follows for dim in value.names):
            more = {"device": "'host'", "outputs": "{'y': bool}"}
            return self.one("is_high", value, Value("", (), "bool"), more=more)[0].var
        return known.var if known is not None else ""
