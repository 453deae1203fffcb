"""The rules by which a graph or a request may be refused, each with words of its message; any other is unclear."""

from __future__ import annotations

import re

__all__ = ["CRASH", "rule_of"]

#: The product's own fault in the dress of a refusal: by hand no stage raises.
CRASH = re.compile(
    r"A request of .* failed: |Plan the pipeline again instead of editing the plan|"
    r"^StageError: (Stage|The loop of|The map of|The region of) .* raised "
)

RULES = {
    # Nobody compiled such a size, and no promise says that it may be cut or filled up.
    "above the largest bucket": r"above (its|the) largest bucket",
    "between buckets, without a pad rule": r"which is no bucket .* smaller sizes are not padded",
    "decided by a stage, without a pad rule": r"decided .* which is no bucket .*(no pad rule|it is exact)",
    "a dim of any size on static shapes": r"has no buckets \(any=True\), but .* compiles static shapes",
    # Which elements of such a size are padding is not known.
    "a derived size must be cut back": r"must be cut back .* is a derived size",
    # What padding holds matters where a stage sums it up, counts it or picks from it. The rule of the input was
    # promised for the input's numbers, and on the device the stage would have seen what other stages made of them.
    "a value at its own size must grow again": r"at its own size and has to grow to a bucket again",
    # Stages of a born dim run for each chunk of it, none for no items: what they give without the dim is not one value.
    "a born dim in chunks, or without items": r"(has no items|runs in chunks) in this request, but .* without that dim"
    r"|has no items in this request, so nothing decides",
    # Another reader of the value, or the caller, would see it.
    "a stage writes into what it is given": r"(wrote|writes) into its input",
    # A program is chosen by the shapes of its inputs alone, and how long a loop runs is no size of a request.
    "two programs of a stage take equal shapes": r"take inputs of the same shapes",
    "a branch gives what a loop in it sizes": r"A branch gives one form, but .*steps of ",
    "the device does not compute with a dtype": r"a Neuron program does not compute with ",
}


def rule_of(text: str) -> str | None:
    """Returns the rule that an error names, None if it is none of those."""
    if CRASH.search(text):
        return None
    return next((rule for rule, words in RULES.items() if re.search(words, text, re.DOTALL)), None)
