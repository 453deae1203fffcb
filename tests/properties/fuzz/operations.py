"""Calls of random pipelines that see more than one place along a dim, where no promise is broken; host stages."""

from __future__ import annotations

from dataclasses import replace

from tests.properties.fuzz.dims import (
    Derived,
    NamedDim,
    Size,
    Value,
    names_of,
    spec_code,
    text_of,
)
from tests.properties.fuzz.pointwise import Pointwise

__all__ = ["Calls"]

#: What may be done along a dim on which padding lies behind, and what it makes of the size.
FOLLOWING: dict[str, str] = {
    **{"running": "", "positions": "", "causal": "", "first": "1"},
    **{"even": "even {}", "half": "half {}", "every_other": "half up {}", "down_and_up": "even up {}"},
    **{"at_most": "at most {n} of {}", "token": "{}+1", "without_first": "{}-1", "doubled": "2*{}"},
    "whole_windows": "{}//{n}",
}
#: What may be done only where nothing is ever padded or cut.
MIXING: dict[str, str] = {
    **{"attention": "", "reverse": "", "ordered": "", "centred": "", "counted": "", "neighbours": ""},
    **{"mean": "1", "last": "1", "token_behind": "{}+1", "twice": "2*{}", "windows": "{}//{n} up"},
    "filled_up": "{} up to {n}",
}
LAWLESS = ("", "1")
#: Sums in which padding counts nothing, unless it is infinite.
FINITE = ("causal",)
#: Host stages by what is called by hand; all of them see an element at its own place only.
MANNERS = {
    **{"halve_low": "", "not_high": "", "Keeps()": "lambda x: x - 1", "Haunts()": "lambda x: x - 1"},
    **{"scribbled": "lambda x: scribbled(x.clone())", "scrubbed": "lambda x: scrubbed(x.clone())"},
    "overwritten": "lambda x: overwritten(x.clone())",
}


class Calls(Pointwise):
    """Each method adds a call where a value fits it."""

    # Along a dim

    def along(self) -> None:
        """What sees its neighbours, or makes a size that passes oddly."""
        value = self.pick_float(lambda value: len(value.dims) > 1)
        if value is None:
            return
        axis = self.rng.randrange(len(value.dims))
        size, number = value.dims[axis], self.rng.choice((2, 3, 4))
        laws = {**FOLLOWING, **(MIXING if self._mixes(size) else {})}
        if not self._follows(size):
            laws = {"doubled": laws["doubled"]}
        if not self.shared.odd or len(str(size)) > 400:
            laws = {what: law for what, law in laws.items() if law in LAWLESS}
        if isinstance(size, int):
            laws = {what: law for what, law in laws.items() if law == ""}
        if self.shared.infinite:
            laws = {what: law for what, law in laws.items() if what not in FINITE}
        if not laws:
            return
        what = self.rng.choice(sorted(laws))
        law = laws[what]
        made: Size = size
        if law == "1":
            made = 1
        elif law:
            text = law.format(text_of(size), n=number)
            made = Derived(text, tuple(names_of(size)), prefix=what != "twice" and self._prefix(size))
        dims = (*value.dims[:axis], made, *value.dims[axis + 1 :])
        self.one(f"Along({what}, {axis}, {number})", value, replace(value, dims=dims))

    def _mixes(self, size: Size) -> bool:
        return all(name.mixes for name in names_of(size))

    def _prefix(self, size: Size) -> bool:
        return not isinstance(size, Derived) or size.prefix

    def _follows(self, size: Size) -> bool:
        return all(name.follows for name in names_of(size)) and (self._prefix(size) or self._mixes(size))

    def masked(self) -> None:
        """Sums along a padded dim by a mask, whose padding is zero."""
        mask = self.pick(lambda value: value.ones)
        value = mask and self.pick_float(
            lambda value: len(value.dims) > 1 and mask.dims[0] in value.dims[:-1]
        )
        if mask is None or not value or self.shared.infinite:
            return
        (size,) = mask.dims
        if isinstance(size, NamedDim) and size.follows:
            axis = value.dims.index(size)
            made = replace(value, dims=(*value.dims[:axis], *value.dims[axis + 1 :]))
            self.call(self.stage(f"Masked({axis})", "masked"), [value, mask], made)

    # On the host

    def host(self) -> None:
        """Plain Python, at a request's own sizes."""
        value = self.pick_float(lambda value: value.plain)
        if value is None:
            return
        first = value.dims[0]
        joint = isinstance(first, int) or first.follows  # type: ignore[union-attr]
        pad = self.shared.pad() if any(name.padded for name in value.names) else None
        output = spec_code(value.dims, value.kind, pad=pad)
        if self.shared.chance(0.15):
            stage = self.stage("numbered", "numbered", ports=(0, 1))
            more = {"device": "'host'", "outputs": f"{{'0': {output}, '1': {output}}}"}
            self.block.stages[stage].more = more
            self.call(stage, [value], value, value)
            return
        target = self.rng.choice((*MANNERS, *(("over_batch",) * 2 if joint else ())))
        if target == "overwritten" and self.shared.chance(0.7):
            target = "halve_low"
        more = {"device": "'host'", "outputs": f"{{'y': {output}}}"}
        self.one(target, value, more=more, hand=MANNERS.get(target, ""))

    def python(self) -> None:
        """Python values between host stages."""
        value = self.pick(
            lambda value: value.kind == "int" or (value.tensor and value.plain and bool(value.dims))
        )
        if value is None:
            return
        if value.kind == "int":
            target, made = self.rng.choice(
                (("filled", Value("", (2, 3))), ("successor", Value("", (), "int")))
            )
        elif all(name.follows for name in value.names):
            target, kind = self.rng.choice((("count_rows", "int"), ("is_high", "bool"), ("listed", "list")))
            made = Value("", (), kind)
        else:
            return
        output = spec_code(made.dims, made.kind)
        self.one(target, value, made, more={"device": "'host'", "outputs": f"{{'y': {output}}}"})

    operations: tuple[str, ...] = (
        *("unary", "unary", "viewed", "norm", "linear", "linear", "repeat", "repeat", "binary", "binary"),
        *("beside", "several", "cast", "back", "choose", "fixed", "opaque", "turned", "flat", "masked"),
        *("along", "along", "along", "host", "host", "python"),
    )
