"""The words that a prompt may hold, and the numbers that stand for them.

The text encoder knows 20 tokens and nothing else; ``7`` is another spelling of ``seven``. A prompt that it cannot
know is refused with the words there are, instead of being drawn as something else.
"""

from __future__ import annotations

import re

from orchestrator.errors import nearest

PAD, NULL = 0, 1
"""The tokens that fill a short prompt, and that stand for no prompt at all."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = (*NUMBERS, "a", "the", "digit", "thin", "bold", "leaning", "left", "right")
"""What a prompt is made of, in the order of the tokens, which begin after ``NULL``."""

LENGTH = 8
"""Tokens of a prompt, at most."""

VOCABULARY = NULL + 1 + len(WORDS)

_TOKENS = {word: NULL + 1 + place for place, word in enumerate(WORDS)}
_SPELLINGS = {**_TOKENS, **{str(digit): _TOKENS[word] for digit, word in enumerate(NUMBERS)}}
_WORDS_HELP = (
    "Prompts are made of a digit (7 or seven), 'a', 'the', 'digit', 'thin' or 'bold', and 'leaning left' or "
    "'leaning right'."
)


def encode(prompt: str) -> list[int]:
    """Returns the ``LENGTH`` tokens of a prompt; those of a blank one say that any picture will do.

    Case, commas and full stops do not matter.

    Raises:
        ValueError: It has a word that is not known, or too many words.
    """
    words = re.sub(r"[.,]", " ", prompt.lower()).split()
    unknown = next((word for word in words if word not in _SPELLINGS), None)
    if unknown is not None:
        hint = nearest(unknown, _SPELLINGS)
        raise ValueError(
            f"The prompt {prompt!r} has the word {unknown!r}, which is not known.{hint} {_WORDS_HELP}"
        )
    if len(words) > LENGTH:
        raise ValueError(f"A prompt has at most {LENGTH} words, but {prompt!r} has {len(words)}.")
    tokens = [_SPELLINGS[word] for word in words] or [NULL]
    return tokens + [PAD] * (LENGTH - len(tokens))
