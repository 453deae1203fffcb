"""Pipelines made of encoder-decoder models give the tokens that the models generate by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import InputError, Plan, Session
from orchestrator_stages import from_transformers
from tests.stages.seq2seq.by_hand import ByHand, by_hand
from tests.stages.tiny_models import START, generated, inputs, texts, tiny, transformers

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NEW = 12
MODEL = tiny("bart")


def ends() -> list[int]:
    """Tokens that the rows of a request give in the middle: they are made the end."""
    tokens: list[int] = generated(MODEL, inputs("bart"), max_new_tokens=NEW)[:, 4].tolist()
    return tokens


@pytest.fixture(scope="module")
def session():
    options = {"max_new_tokens": NEW, "eos_token_id": ends()}
    pipeline = from_transformers(MODEL, batch=(1, 4), tokens=(4, 16), **options)
    # A plan that is read from JSON is as good as the one that was made.
    plan = Plan.from_json(pipeline.plan(device="cpu").to_json())
    with pipeline.bind(plan).load() as session:
        yield session


def test_the_loop_ends_with_the_last_row(session: Session[Any]):
    request = inputs("bart")
    expected = generated(MODEL, request, max_new_tokens=NEW, eos_token_id=ends())
    tokens = session(**request)["tokens"]
    assert expected.shape[1] < 1 + NEW
    assert tokens.equal(expected)
    assert tokens.dtype == torch.int64
    assert (tokens[:, 0] == START).all()


@pytest.mark.parametrize("check_every", [4, 100])
def test_how_often_the_end_is_looked_at_changes_nothing(check_every: int):
    model, request = tiny("t5"), inputs("t5")
    tokens = generated(model, request, max_new_tokens=NEW)
    options = {"max_new_tokens": NEW, "eos_token_id": tokens[:, 4].tolist()}
    pipeline = from_transformers(model, batch=(4,), tokens=(16,), check_every=check_every, **options)
    with pipeline.plan().load() as session:
        assert session(**request)["tokens"].equal(generated(model, request, **options))


def test_rows_that_fill_up_the_batch_do_not_keep_it_running(session: Session[Any]):
    """Two rows are four in the bucket; each iteration runs a token and chooses the next one."""
    request = texts((7, 3))
    expected = generated(MODEL, request, max_new_tokens=NEW, eos_token_id=ends())
    before = session.stats["dispatches"]
    assert session(**request)["tokens"].equal(expected)
    steps = expected.shape[1] - 1
    assert session.stats["dispatches"] - before == 2 + 2 * steps + 1, "encode, begin, iterations, finish"


def test_what_no_bucket_holds_is_refused(session: Session[Any]):
    with pytest.raises(InputError, match=r"tokens.*16"):
        session(**texts((17,)))
    with pytest.raises(InputError, match=r"batch=5.*bucket 4"):
        session(**texts((4, 3, 2, 1, 1)))


def test_the_model_is_left_as_it_was():
    model = tiny("bart")
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    pipeline = from_transformers(model, max_new_tokens=4, batch=(4,), tokens=(16,))
    with pipeline.plan().load() as session:
        session(**inputs("bart"))
    after = model.state_dict(keep_vars=True)
    assert before.keys() == after.keys()
    for name, (value, copy) in before.items():
        assert after[name] is value
        assert value.equal(copy)


def test_drawn_tokens_are_those_of_generate_after_the_seed():
    request = inputs("bart")
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "top_k": 20, "num_return_sequences": 2}
    caller = torch.get_rng_state()
    with from_transformers(MODEL, batch=(4,), tokens=(16,), **options).plan().load() as session:
        first, again, other = (session(**request, seed=seed)["tokens"] for seed in (5, 5, 6))
    assert torch.get_rng_state().equal(caller)
    assert first.equal(again)
    assert not first.equal(other)
    torch.manual_seed(5)
    assert first.equal(generated(MODEL, request, **options))


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_without_choice_it_is_greedy(options: dict[str, Any]):
    model, request = tiny("marian"), inputs("marian")
    tokens = by_hand("marian", request, max_new_tokens=NEW, do_sample=True, **options)
    assert tokens.equal(generated(model, request, max_new_tokens=NEW))


def test_processors_of_the_host_get_what_the_encoder_read():
    """Fewer rows and tokens than the bucket: what is padded on the way is in no n-gram."""
    request = inputs("bart")
    options = {"max_new_tokens": 6, "encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 1.7}
    pipeline = from_transformers(MODEL, batch=(4,), tokens=(16,), num_beams=2, **options)
    plan = pipeline.plan()
    assert "process" in str(plan)
    with plan.load() as session:
        assert session(**request)["tokens"].equal(generated(MODEL, request, num_beams=2, **options))


@torch.no_grad()
def test_the_picture_may_be_of_any_shape():
    """Donut: a Swin encoder, wider than high, whose decoder begins with its task."""
    swin = transformers.DonutSwinModel(
        transformers.DonutSwinConfig(
            image_size=(16, 32), patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=2
        )
    )
    model = tiny("donut")
    model = transformers.VisionEncoderDecoderModel(encoder=swin, decoder=model.decoder).eval()
    model.generation_config = tiny("donut").generation_config
    request = {"pixel_values": torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))}
    expected = generated(model, request, max_new_tokens=NEW)
    assert ByHand("donut", {"max_new_tokens": NEW}, model, is_other=True).run(request).equal(expected)
    task = torch.tensor([[7, 8, 9]])
    expected = generated(model, request, max_new_tokens=NEW, decoder_input_ids=task.expand(2, -1))
    assert expected[:, :3].equal(task.expand(2, -1))
    options = {"max_new_tokens": NEW, "decoder_input_ids": task}
    assert ByHand("donut", options, model, is_other=True).run(request).equal(expected)


@torch.no_grad()
def test_a_model_in_double_precision_is_computed_in_it():
    model, request = tiny("bart").to(torch.float64), inputs("bart")
    tokens = ByHand("bart", {"max_new_tokens": NEW}, model, torch.float64).run(request)
    assert tokens.equal(generated(model, request, max_new_tokens=NEW))


def test_the_cache_stays_on_the_device_in_the_dtype_of_the_model_and_nothing_else_crosses():
    model = tiny("marian").to(torch.bfloat16)
    plan = from_transformers(model, max_new_tokens=NEW, batch=(2,), tokens=(16,)).plan(device="cuda")
    crossing = {edge.target for edge in plan.edges if edge.residency.name == "HOST"}
    assert {target for target in crossing if target.startswith("decode")} == {"decode.done[until]"}
    assert plan.summary["uploads"] == 2, "the ids and their mask"
    cache = {"decode.keys_0", "decode/decode.cross_values_1"}
    edges = [edge for edge in plan.edges if edge.target in cache]
    assert {edge.target for edge in edges} == cache
    assert {edge.spec.dtype for edge in edges} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), [("t5", {}), ("marian", {"num_beams": 3}), ("whisper", {}), ("gpt2", {})]
)
def test_same_on_the_emulated_device(name: str, options: dict[str, Any]):
    """Over a cache that is read in two lengths, texts that is."""
    model, request = tiny(name), inputs(name)
    sizes = {"tokens": (16,), "cache": (6,)} if "input_ids" in request else {}
    expected = generated(model, request, max_new_tokens=NEW, **options)
    pipeline = from_transformers(model, max_new_tokens=NEW, batch=(4,), **sizes, **options)
    with pipeline.plan(device="neuron-emulated").load() as session:
        tokens: Tensor = session(**request)["tokens"]
    assert tokens.equal(expected)
