"""The host step after the reader: letters of strips to words, words to lines.

The reader says for each strip of a crop which letter begins there. A letter that is wider than a strip is said
several times in a row, so repetitions count once; between two equal letters there is a blank.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orchestrator import HostStage
from orchestrator_stages.demos.scene_text.reader import BLANK, LETTERS

Word = dict[str, Any]


class Spell(HostStage):
    """Host stage: puts the words of a photo together.

    Takes for each word its ``letters`` and ``sureness`` ``[strips]`` and its box, in ``boxes``. Gives ``words``, a list
    ready for JSON in reading order, and ``text``, the lines they form. Each word is a dict::

        {"text": "window", "box": [left, top, right, bottom], "sureness": 0.9995, "line": 0}

    Lines are level: text that runs askew or in columns is not put together as it is meant.

    Args:
        threshold: Words that the reader is less sure of are dropped.
    """

    def __init__(self, threshold: float = 0.2) -> None:
        super().__init__(tag="spell")
        self.threshold = threshold
        self.inputs = {"letters": list, "sureness": list, "boxes": list}
        self.outputs = {"words": list, "text": str}

    def forward(
        self, letters: list[Tensor], sureness: list[Tensor], boxes: list[list[int]]
    ) -> tuple[list[Word], str]:
        """Spells the words of one photo."""
        words = []
        for row, sure, box in zip(letters, sureness, boxes, strict=True):
            text, chance = spell_word(row, sure)
            if text and chance >= self.threshold:
                words.append({"text": text, "box": box, "sureness": round(chance, 6)})
        lines = group_lines(words)
        word_list = [{**word, "line": number} for number, line in enumerate(lines) for word in line]
        return word_list, "\n".join(" ".join(word["text"] for word in line) for line in lines)


def spell_word(letters: Tensor, sureness: Tensor) -> tuple[str, float]:
    """Returns the word that strips show, and how sure the reader was of those that are not blank, 0 to 1."""
    is_letter = letters != BLANK
    begins = is_letter.clone()
    begins[1:] &= letters[1:] != letters[:-1]
    text = "".join(LETTERS[number - 1] for number in letters[begins].tolist())
    return text.strip(), float(sureness[is_letter].mean()) if text else 0.0


def group_lines(words: list[Word]) -> list[list[Word]]:
    """Returns the words by line, top to bottom, each from left to right.

    A word is on a line if its middle is as high up as a part of the tallest word of that line, or the other way
    round, whichever of the two is taller: so is a hyphen between words.
    """
    lines: list[list[Word]] = []
    for word in sorted(words, key=_middle):
        if lines and _level(max(lines[-1], key=_height), word):
            lines[-1].append(word)
        else:
            lines.append([word])
    return [sorted(line, key=lambda word: (word["box"][0], word["box"][1])) for line in lines]


def _middle(word: Word) -> float:
    _, top, _, bottom = word["box"]
    return float(top + bottom) / 2


def _height(word: Word) -> float:
    _, top, _, bottom = word["box"]
    return float(bottom - top)


def _level(one: Word, other: Word) -> bool:
    smaller, taller = sorted((one, other), key=_height)
    _, top, _, bottom = taller["box"]
    return bool(top < _middle(smaller) < bottom)
