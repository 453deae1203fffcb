"""Pipelines made of encoder-decoder models give the tokens that the models generate by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import InputError, Plan
from orchestrator_stages import from_transformers
from tests.stages.tiny_models import (
    CAPTIONERS,
    EOS,
    MODELS,
    PAD,
    START,
    generated,
    inputs,
    texts,
    tiny,
    transformers,
)

NEW = 12


def run(model: Any, request: dict[str, Any], device: str = "cpu", **options: Any) -> Tensor:
    sizes = {} if "input_ids" not in request else {"tokens": (4, 16)}
    pipeline = from_transformers(model, **{"max_new_tokens": NEW, "batch": (1, 4), **sizes, **options})
    with pipeline.plan(device=device).load() as session:
        return session(**request)["tokens"]


@pytest.mark.parametrize("name", MODELS)
def test_same_as_generate_over_a_batch_of_different_lengths(name: str):
    model, request = tiny(name), inputs(name)
    expected = generated(model, request, max_new_tokens=NEW)
    assert len(expected.unique()) > 4, "tokens that are all the same show nothing"
    assert run(model, request).equal(expected)


@pytest.mark.parametrize("name", MODELS)
def test_rows_end_when_they_say_so(name: str):
    """The token that one row gives in the middle is made the end."""
    model, request = tiny(name), inputs(name)
    tokens = generated(model, request, max_new_tokens=NEW)
    ends = [int(tokens[0, 5]), int(tokens[1, 3])] if name != "whisper" else int(tokens[0, 5])
    expected = generated(model, request, max_new_tokens=NEW, eos_token_id=ends, pad_token_id=PAD)
    assert run(model, request, eos_token_id=ends).equal(expected)


@pytest.mark.parametrize("name", ["bart", "t5", "gpt2"])
def test_the_loop_ends_with_the_last_row(name: str):
    model, request = tiny(name), inputs(name)
    tokens = generated(model, request, max_new_tokens=NEW)
    ends = tokens[:, 4].tolist()
    expected = generated(model, request, max_new_tokens=NEW, eos_token_id=ends)
    assert expected.shape[1] < tokens.shape[1]
    for check_every in (1, 4, 100):
        assert run(model, request, eos_token_id=ends, check_every=check_every).equal(expected)


def test_rows_that_fill_up_the_batch_do_not_keep_it_running():
    model, request = tiny("bart"), texts((7,))
    tokens = generated(model, request, max_new_tokens=NEW)
    options = {"max_new_tokens": NEW, "eos_token_id": [int(tokens[0, 3])]}
    pipeline = from_transformers(model, batch=(4,), tokens=(16,), **options)
    with pipeline.plan(device="cpu").load() as session:
        result, dispatches = session(**request)["tokens"], session.stats["dispatches"]
    expected = generated(model, request, **options)
    assert result.equal(expected)
    assert dispatches == 2 + expected.shape[1] - 1 + 1, "encode, begin, steps, finish"


@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 8},
        {"min_length": 7},
        {"forced_bos_token_id": 17},
        {"forced_eos_token_id": 18},
        {"forced_bos_token_id": 17, "begin_suppress_tokens": [3, 4, 5]},
        {"suppress_tokens": list(range(40))},
        {"begin_suppress_tokens": list(range(60))},
        {"bad_words_ids": [[token] for token in range(30)]},
        {"decoder_start_token_id": 5},
        {"max_length": 7},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("name", ["bart", "t5", "gpt2"])
def test_options_of_generate_are_followed(name: str, options: dict[str, Any]):
    model, request = tiny(name), inputs(name)
    tokens = generated(model, request, max_new_tokens=NEW)
    options = {**options, "eos_token_id": [int(tokens[0, 4]), int(tokens[1, 2])]}
    if "max_length" not in options:
        options["max_new_tokens"] = NEW
    if "forced_eos_token_id" in options:
        options["eos_token_id"] = [EOS]
    given = {"max_new_tokens": None, **options}
    assert run(model, request, **given).equal(generated(model, request, **options))


@pytest.mark.parametrize("language", [None, "de", "german"])
@pytest.mark.parametrize("task", [None, "translate"])
def test_whisper_is_told_language_and_task(language: str | None, task: str | None):
    model, request = tiny("whisper"), inputs("whisper")
    config = model.generation_config
    config.lang_to_id = {"<|en|>": 60, "<|de|>": 61, "<|fr|>": 62}
    config.task_to_id = {"transcribe": 63, "translate": 64}
    config.no_timestamps_token_id, config.is_multilingual = 98, True
    config.begin_suppress_tokens = [1, 2, 3]
    expected = generated(model, request, max_new_tokens=NEW, language=language, task=task)
    assert run(model, request, language=language, task=task).equal(expected)


@pytest.mark.parametrize("language", [60, None])
def test_whisper_follows_forced_ids_of_old_checkpoints(language: int | None):
    model, request = tiny("whisper"), inputs("whisper")
    model.generation_config.lang_to_id = {"<|en|>": 60, "<|de|>": 61}
    model.generation_config.forced_decoder_ids = [[1, language], [2, 63]]
    assert run(model, request).equal(generated(model, request, max_new_tokens=NEW))


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default:UserWarning")
def test_without_a_length_there_are_as_many_tokens_as_generate_makes():
    model, request = tiny("bart"), inputs("bart")
    tokens = run(model, request, max_new_tokens=None)
    assert tokens.equal(generated(model, request))
    assert tokens.shape[1] == 1 + 20


def test_the_picture_may_be_of_any_shape():
    """Donut: a Swin encoder, wider than high."""
    swin = transformers.DonutSwinModel(
        transformers.DonutSwinConfig(
            image_size=(16, 32), patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=2
        )
    )
    model = tiny("donut")
    model = transformers.VisionEncoderDecoderModel(encoder=swin, decoder=model.decoder).eval()
    model.generation_config = tiny("donut").generation_config
    request = {"pixel_values": torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))}
    assert run(model, request).equal(generated(model, request, max_new_tokens=NEW))
    task = torch.tensor([[7, 8, 9]])
    expected = generated(model, request, max_new_tokens=NEW, decoder_input_ids=task.expand(2, -1))
    assert expected[:, :3].equal(task.expand(2, -1))
    assert run(model, request, decoder_input_ids=task).equal(expected)


@pytest.mark.parametrize("beginning", [[[7, 8]], [[START, 7]]])
def test_sequences_begin_with_what_generate_is_given(beginning: list[list[int]]):
    model, request = tiny("bart"), inputs("bart")
    rows = torch.tensor(beginning).expand(3, -1)
    expected = generated(model, request, max_new_tokens=NEW, decoder_input_ids=rows)
    assert run(model, request, decoder_input_ids=beginning, batch=(4,), tokens=(16,)).equal(expected)


def test_a_model_in_double_precision_is_computed_in_it():
    model, request = tiny("bart").to(torch.float64), inputs("bart")
    assert run(model, request).equal(generated(model, request, max_new_tokens=NEW))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_runs_in_it(dtype: torch.dtype):
    """Which of two tokens is likelier may be a matter of rounding there."""
    pipeline = from_transformers(tiny("t5").to(dtype), max_new_tokens=NEW, batch=(4,), tokens=(16,))
    plan = pipeline.plan(device="cpu")
    cache = ("decode.keys_0", "decode/step.cross_values_1")
    assert {edge.spec.dtype for edge in plan.edges if edge.target in cache} == {dtype}
    with plan.load() as session:
        assert session(**inputs("t5"))["tokens"].shape == (3, NEW + 1)


def test_the_cache_stays_on_the_device_and_nothing_else_crosses():
    pipeline = from_transformers(tiny("marian"), max_new_tokens=NEW, batch=(2,), tokens=(16,))
    plan = pipeline.plan(device="cuda")
    crossing = {edge.target for edge in plan.edges if edge.residency.name == "HOST"}
    assert {target for target in crossing if target.startswith("decode")} == {"decode.done[until]"}
    assert plan.summary["uploads"] == 2, "the ids and their mask"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "marian", "whisper", *CAPTIONERS[:1]])
def test_same_on_the_emulated_device(name: str):
    model, request = tiny(name), inputs(name)
    sizes = {"batch": (4,)} | ({"tokens": (16,)} if "input_ids" in request else {})
    expected = generated(model, request, max_new_tokens=NEW)
    assert run(model, request, "neuron-emulated", **sizes).equal(expected)


def test_a_plan_read_from_json_gives_the_same():
    model, request = tiny("bart"), inputs("bart")
    pipeline = from_transformers(model, max_new_tokens=NEW, batch=(4,), tokens=(16,))
    plan = Plan.from_json(pipeline.plan(device="cpu").to_json())
    with pipeline.bind(plan).load() as session:
        assert session(**request)["tokens"].equal(generated(model, request, max_new_tokens=NEW))


def test_a_text_longer_than_the_largest_bucket_is_refused():
    pipeline = from_transformers(tiny("bart"), max_new_tokens=NEW, batch=(1,), tokens=(4, 8))
    with pipeline.plan(device="cpu").load() as session, pytest.raises(InputError, match=r"tokens.*8"):
        session(**texts((9,)))


def test_more_rows_than_the_largest_bucket_are_refused():
    pipeline = from_transformers(tiny("bart"), max_new_tokens=NEW, batch=(1, 2), tokens=(8,))
    with pipeline.plan(device="cpu").load() as session, pytest.raises(InputError, match=r"batch=3.*bucket 2"):
        session(**texts((4, 3, 2)))


def test_the_model_is_left_as_it_was():
    model = tiny("t5")
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    run(model, inputs("t5"))
    after = model.state_dict(keep_vars=True)
    assert before.keys() == after.keys()
    for name, (value, copy) in before.items():
        assert after[name] is value
        assert value.equal(copy)


def test_one_start_token_and_the_end_are_part_of_the_tokens():
    tokens = run(tiny("bart"), inputs("bart"))
    assert tokens.dtype == torch.int64
    assert (tokens[:, 0] == START).all()
