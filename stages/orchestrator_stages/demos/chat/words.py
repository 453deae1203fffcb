"""The tokens of a conversation about pictures: whole words, and the marks between turns.

<bos><user><image> ... <image>how many squares?<assistant>two<eos><user>what is red?<assistant>
"""

from __future__ import annotations

import importlib
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from orchestrator_stages.demos.chat.questions import NUMBERS, plural
from orchestrator_stages.demos.chat.scenes import COLOURS, GROUNDS, KINDS, SIZES

transformers: Any = importlib.import_module("transformers")

PAD, UNKNOWN, BEGIN, END, USER, ASSISTANT, IMAGE = MARKS = (
    *("<pad>", "<unk>", "<bos>", "<eos>", "<user>", "<assistant>", "<image>"),
)
SPACE = "▁"
"""What a word begins with in the vocabulary; commas and the like have none."""

WORDS = (
    *KINDS,
    *(plural(kind) for kind in KINDS),
    *COLOURS,
    *SIZES,
    *GROUNDS,
    *NUMBERS,
    *("shape", "shapes", "background", "colour", "picture", "nothing", "yes", "no"),
    *("what", "which", "how", "many", "describe", "see", "do", "you", "is", "are", "there"),
    *("left", "right", "of", "above", "below", "to", "in", "on", "a", "an", "the", "and", "or"),
)
SIGNS = (",", ".", "?")

TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
  {%- if message.role not in ("user", "assistant") %}
    {{- raise_exception("A message is of the user or of the assistant, not of " + message.role) }}
  {%- endif %}
  {{- "<" + message.role + ">" }}
  {%- if message.content is string %}
    {{- message.content }}
  {%- else %}
    {%- for part in message.content %}
      {{- "<image>" if part.type == "image" else part.text }}
    {%- endfor %}
  {%- endif %}
  {%- if message.role == "assistant" %}{{- eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<assistant>" }}{% endif %}
"""
"""Turns messages into one text."""


def make_tokenizer() -> Any:
    """Returns the tokenizer, a ``PreTrainedTokenizerFast``; it knows nothing but ``MARKS``, ``WORDS`` and ``SIGNS``."""
    # What stands in a text becomes words with a mark in front, and signs on their own; the decoder undoes just that.
    entries = (*MARKS, *(f"{SPACE}{word}" for word in dict.fromkeys(WORDS)), *SIGNS)
    tokenizer = Tokenizer(models.WordLevel({entry: place for place, entry in enumerate(entries)}, UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex("colors?|colours"), "colour"),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(SPACE), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE)
    tokenizer.add_special_tokens(list(MARKS))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        chat_template=TEMPLATE,
    )
