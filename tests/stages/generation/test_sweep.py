"""The page of models that generate says what the sweep found, and a sample of it is tried again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.stages.generation.sweep import DATA, PAGE, attempt, generating_classes, page_of, transformers

TAKEN = 238
"""How many classes are taken at least: a change of the road must not lose any."""

SAMPLE = (
    "GPT2LMHeadModel",
    "Gemma2ForCausalLM",
    "MixtralForCausalLM",
    "MambaForCausalLM",
    "BloomForCausalLM",
    "T5GemmaForConditionalGeneration",
    "MvpForConditionalGeneration",
    "LongcatFlashForCausalLM",
    "MoonshineStreamingForConditionalGeneration",
)


def outcomes() -> dict[str, Any]:
    return json.loads(DATA.read_text(encoding="utf-8"))


def test_the_page_says_what_the_sweep_found():
    assert PAGE.read_text(encoding="utf-8") == page_of(outcomes())


def test_no_class_gives_other_tokens_or_an_error_without_a_rule():
    results = [each["result"] for each in outcomes()["classes"].values()]
    assert results.count("equal") >= TAKEN
    assert set(results) <= {"equal", "refused", "untried"}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_class_gives_the_tokens_of_its_own_generate(name: str):
    entries = generating_classes()
    if name not in entries:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    assert attempt(entries[name])["result"] == "equal"
