"""Text to lines and sentences, and back.

The student was trained on sentences, so a text is translated sentence by sentence. Where a sentence ends is
guessed from its punctuation, for English and Portuguese alike; lines always end one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

ENGLISH = ("mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "e.g", "i.e", "fig", "vol")
PORTUGUESE = ("sr", "sra", "srta", "dr", "dra", "prof", "profa", "av", "ex", "exmo", "pág", "tel")
ABBREVIATIONS = frozenset((*ENGLISH, *PORTUGUESE))
"""Words that a full stop follows without ending a sentence, in lower case."""

_STOP = re.compile(r"""(?P<mark>[.!?…]+)["'\u201d\u2019»)\]]*\s+(?=(?P<next>\S))""")


def split_text(text: str) -> list[list[str]]:
    """Returns the lines of a text, each as its sentences; a blank line has none.

    Outer blanks are dropped; the empty text has no line.
    """
    return [list(split_line(line)) for line in text.splitlines()]


def split_line(line: str) -> Iterator[str]:
    """Yields the sentences of one line, in order."""
    line = line.strip()
    start = 0
    for stop in _STOP.finditer(line):
        if _ends(line[start : stop.start()], stop["mark"], stop["next"]):
            yield line[start : stop.end()].rstrip()
            start = stop.end()
    if start < len(line):
        yield line[start:]


def _ends(before: str, mark: str, following: str) -> bool:
    """Tells whether a mark ends the sentence that lies before it."""
    if following.islower():
        return False
    words = before.split()
    word = words[-1].lstrip("\"'\u201c\u2018«([").lower() if words else ""
    initial = len(word) == 1 and word.isalpha() and word != "i"
    return mark != "." or not (initial or word in ABBREVIATIONS)


def join_text(sentences: Iterable[str], layout: Sequence[int]) -> str:
    """Returns the text whose lines have so many of the sentences each; sentences of a line are parted by a blank."""
    left = iter(sentences)
    return "\n".join(" ".join(next(left) for _ in range(count)) for count in layout)
