"""The rules by which a graph or a request may be refused, each with words of its message."""

from __future__ import annotations

import re

__all__ = ["CRASH", "rule_of"]

#: The product's own fault in the dress of a refusal: by hand no stage raises.
CRASH = re.compile(
    r"A request of .* failed: |Plan the pipeline again instead of editing the plan|"
    r"^StageError: (Stage|The loop of|The map of) .* raised "
)

RULES = {
    "above the largest bucket": r"above (its|the) largest bucket",
    "between buckets, without a pad rule": r"which is no bucket .* smaller sizes are not padded",
    "decided by a stage, without a pad rule": r"decided .* which is no bucket .* no pad rule",
    "a derived size must be cut back": r"must be cut back .* is a derived size",
    "a value at its own size must grow again": r"at its own size and has to grow to a bucket again",
    "a dim of any size on static shapes": r"has any size, but .* compiles static shapes",
}


def rule_of(text: str) -> str | None:
    """Returns the rule that an error names, None if it is none of those."""
    if CRASH.search(text):
        return None
    return next((rule for rule, words in RULES.items() if re.search(words, text, re.DOTALL)), None)
