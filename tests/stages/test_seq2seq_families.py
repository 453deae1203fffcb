"""Every family by one road: its own forward over a cache of fixed size gives the tokens of `generate()`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from orchestrator_stages import from_transformers
from orchestrator_stages.generation.versions import check_version
from tests.stages.tiny_models import FAMILIES, generated, inputs, tiny, transformers

NEW = 8
LENGTHS = {"speech_to_text": 40, "moonshine": 4000}


def run(name: str, model: Any, request: dict[str, Any], device: str = "cpu") -> torch.Tensor:
    sizes = {"tokens": (LENGTHS.get(name, 16),)} if "attention_mask" in request else {}
    pipeline = from_transformers(model, max_new_tokens=NEW, batch=(4,), **sizes)
    with pipeline.plan(device=device).load() as session:
        return session(**request)["tokens"]


@pytest.mark.parametrize("name", FAMILIES)
def test_same_as_generate_over_a_batch_of_different_lengths(name: str):
    model, request = tiny(name), inputs(name)
    expected = generated(model, request, max_new_tokens=NEW)
    assert len(expected.unique()) > 4, "tokens that are all the same show nothing"
    assert run(name, model, request).equal(expected)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.versions] if name in ("t5", "whisper", "gpt2") else [])
        for name in ("t5", "marian", "whisper", "gpt2", "trocr", "moonshine", "m2m_100")
    ],
)
def test_one_of_each_kind_on_every_version_of_transformers(name: str):
    model, request = tiny(name), inputs(name)
    assert run(name, model, request).equal(generated(model, request, max_new_tokens=NEW))


@pytest.mark.versions
@pytest.mark.parametrize("version", ["4.56.2", "4.9.0", "3.0.2"])
def test_an_older_version_is_refused_in_words(version: str):
    with pytest.raises(ImportError, match=rf"needs transformers 4\.57 or newer, but {re.escape(version)} is"):
        check_version(version)


def test_versions_that_are_supported_are_taken():
    for version in ("4.57.0", "4.57.6", "5.0.0", "5.23.0", "5.24.0.dev0", transformers.__version__):
        check_version(version)


@pytest.mark.parametrize("name", ["t5", "mt5", "bart", "mbart"])
def test_same_in_half_precision_with_inputs_of_the_models_dtype(name: str):
    model = tiny(name).to(torch.float16)
    request = {
        key: value.to(torch.float16) if value.is_floating_point() else value
        for key, value in inputs(name).items()
    }
    assert run(name, model, request).equal(generated(model, request, max_new_tokens=NEW))
