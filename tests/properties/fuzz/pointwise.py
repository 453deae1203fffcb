"""Pointwise stages of random pipelines: they keep all promises that dims have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.properties.fuzz.dims import (
    Derived,
    Size,
    code_of,
    names_of,
    spec_code,
    text_of,
)
from tests.properties.fuzz.growing import Growing

__all__ = ["Pointwise"]

#: Keys of stages that give dicts.
PORTS: dict[str, tuple[Any, ...]] = {
    **{"facts": ("shifted", "total"), "tagged": ("class", "total")},
    **{"pyramid": (0, 1), "keyed": (("a", 1), None)},
}


class Pointwise(Growing):
    """Calls of stages that compute an element from those at its own place along all named dims."""

    def unary(self) -> None:
        value = self.pick_float()
        if value is not None:
            self.one(self.rng.choice(("Double()", "Scale(0.5)", "Scale(-1.25)", "squash", "squash")), value)

    def viewed(self) -> None:
        value = self.pick_float()
        if value is not None:
            self.one("viewed", value)

    def norm(self) -> None:
        value = self.pick_float(lambda value: isinstance(value.dims[-1], int) and value.dims[-1] > 1)
        if value is not None:
            self.one("Norm()", value)

    def linear(self) -> None:
        value = self.pick_float(lambda value: isinstance(value.dims[-1], int))
        if value is None:
            return
        out, seed = self.rng.choice((1, 2, 3, 4)), self.rng.randrange(9)
        made = replace(value, dims=(*value.dims[:-1], out))
        if self.shared.chance(0.3):
            self.one(
                f"Wrapped({{'width': {value.dims[-1]}, 'out': {out}, 'seed': {seed}}})",
                value,
                made,
                hand=f"linear({value.dims[-1]}, {out}, {seed})",
            )
        else:
            self.one(f"linear({value.dims[-1]}, {out}, {seed})", value, made)

    def repeat(self) -> None:
        """Calls a stage that was called before."""
        fitting = [
            (stage, value, made)
            for stage, form, made in self.again
            for value in self.values
            if value.form == form and not value.last
        ]
        if fitting:
            stage, value, made = self.rng.choice(fitting[-8:])
            self.call(stage, [value], *made(value))

    def binary(self) -> None:
        one = self.pick_float()
        if one is None:
            return
        other = self.pick_float(lambda value: value.form == one.form) or one
        kind = self.rng.randrange(4)
        if kind == 0:
            self.call(self.stage("add", "add"), [one], one)
        elif kind == 1 and isinstance(one.dims[-1], int):
            self.call(
                self.stage("add", "add"), [one, f"data({self.rng.randrange(99)}, ({one.dims[-1]},))"], one
            )
        elif kind == 2:
            self.call(self.stage("blend", "blend"), [one, other], one, share="0.75")
        else:
            self.call(self.stage("add", "add"), [one, other], one)

    def beside(self) -> None:
        one = self.pick_float(lambda value: isinstance(value.dims[-1], int))
        other = one and self.pick_float(
            lambda value: value.dims[:-1] == one.dims[:-1] and isinstance(value.dims[-1], int)
        )
        if one is not None and other and one.dims[-1] + other.dims[-1] < 12:  # type: ignore[operator]
            width = one.dims[-1] + other.dims[-1]  # type: ignore[operator]
            self.call(
                self.stage("beside", "beside"), [one, other], replace(one, dims=(*one.dims[:-1], width))
            )

    def several(self) -> None:
        """Stages with several outputs: a tuple, dicts, a wrapper."""
        value = self.pick_float(lambda value: isinstance(value.dims[-1], int) and value.dims[-1] > 1)
        if value is None:
            return
        front, width = value.dims[:-1], value.dims[-1]
        assert isinstance(width, int)
        total = replace(value, dims=(*front, 1))
        kind = self.rng.choice(("halves", "facts", "tagged", "pyramid", "keyed", "Own({})"))
        stage = self.stage(kind, "many")
        made = self.block.stages[stage]
        if kind == "halves":
            made.more["outputs"] = "('left', 'right')"
            parts = (replace(value, dims=(*front, size)) for size in (width // 2, width - width // 2))
            self.call(stage, [value], *parts)
        elif kind == "Own({})":
            made.hand = f"{made.var}.forward"
            self.call(stage, [value], value, value)
        else:
            made.ports = PORTS[kind]
            if kind in ("facts", "tagged") or self.shared.chance(0.5):
                made.more["outputs"] = repr(tuple(map(str, made.ports)))
            self.call(stage, [value], value, total)

    def cast(self) -> None:
        value = self.pick_float()
        if value is None:
            return
        if value.plain and self.shared.chance(0.3):
            port = spec_code(value.dims, "float64", allow_cast=True)
            self.one("Double()", value, replace(value, kind="float64"), more={"inputs": f"{{'x': {port}}}"})
            self.block.stages[-1].hand = "lambda x: Double()(x.double())"
        else:
            kind = self.rng.choice(("float64", "int64", "bfloat16"))
            self.one(f"To(torch.{kind})", value, replace(value, kind=kind))

    def back(self) -> None:
        value = self.pick(lambda value: value.kind in ("float64", "int64", "bfloat16"))
        if value is not None:
            self.one("To(torch.float32)", value, replace(value, kind="float32"))

    def choose(self) -> None:
        value = self.pick_float()
        other = value and self.pick_float(lambda other: other.form == value.form)
        if value is not None and other:
            (mask,) = self.one("positive", value, replace(value, kind="mask"))
            self.call(self.stage("choose", "choose"), [mask, value, other], value)

    def fixed(self) -> None:
        """A port of a fixed width, which grows or cuts what it is given."""
        value = self.pick_float(
            lambda value: value.plain and isinstance(value.dims[-1], int) and len(value.dims) == 2
        )
        if value is None or any(name.mixes and not name.exact for name in value.names):
            return
        front, width, new = value.dims[:-1], value.dims[-1], self.rng.choice((1, 2, 3, 5))
        assert isinstance(width, int)
        pad = self.shared.pad() if new > width else None
        port = spec_code((*front, new), "float32", pad=pad, allow_slice=True)
        grown = f"torch.cat([x, x[:, :1].expand(-1, {new - width})], 1)"
        if pad != "repeat_first":
            grown = f"torch.nn.functional.pad(x, (0, {new - width}), value={code_of(pad)})"
        hand = f"lambda x: Double()({grown if new > width else f'x[:, :{new}]'})"
        self.one(
            "Double()",
            value,
            replace(value, dims=(*front, new)),
            more={"inputs": f"{{'x': {port}}}"},
            hand=hand,
        )

    def opaque(self) -> None:
        value = self.pick_float(lambda value: value.plain)
        if value is not None:
            stage = self.stage(f"Opaque({spec_code(value.dims, value.kind)})", "opaque")
            self.block.stages[stage].hand = f"{self.block.stages[stage].var}.forward"
            self.call(stage, [value], value)

    def turned(self) -> None:
        """Swaps the first two dims, as a strided view and back, or for good; or merges dims."""
        value = self.pick_float(lambda value: len(value.dims) > 2)
        if value is None:
            return
        one, two, *rest = value.dims
        made = replace(value, dims=(two, one, *rest))
        if all(isinstance(size, int) for size in rest) and self.shared.chance(0.2):
            width = 1
            for size in rest:
                assert isinstance(size, int)
                width *= size
            self.one("merged", value, replace(value, dims=(one, two, width)))
        elif self.shared.chance(0.5):
            self.one("swapped", value, made)
        else:
            (view,) = self.one("turned", value, replace(made, last=True))
            self.again.pop()
            self.one("swapped", view, value)

    def flat(self) -> None:
        value = self.pick_float(lambda value: len(value.dims) == 3)
        if value is not None and self.shared.odd:
            one, two, width = value.dims
            if isinstance(one, int) and isinstance(two, int):
                made: Size = one * two
            else:
                names = tuple(dict.fromkeys(name for size in (one, two) for name in names_of(size)))
                made = Derived(f"({text_of(one)})*({text_of(two)})", names, prefix=False)
            self.one("flat", value, replace(value, dims=(made, width)))
