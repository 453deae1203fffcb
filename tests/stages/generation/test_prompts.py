"""Pipelines made of models that go on with their prompt give the tokens that the models generate by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import GraphError, InputError, StageError
from orchestrator_stages import from_transformers
from orchestrator_stages.generation.checks import following
from tests.stages.generation.tiny import DECODERS, PAD, SHAPE, VOCABULARY, prompts, tiny, transformers

NEW = 5


def run(model: Any, request: dict[str, Tensor], device: str = "cpu", **options: Any) -> Tensor:
    pipeline = from_transformers(model, **{"max_new_tokens": NEW, "batch": (2,), "tokens": (5,), **options})
    with pipeline.plan(device=device).load() as session:
        return session(**request)["tokens"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.versions] if name in ("llama", "gemma3") else [])
        for name in DECODERS
    ],
)
def test_same_as_generate_over_prompts_of_different_lengths(name: str):
    """Padded on either side."""
    model, request = tiny(name), prompts(5, 3)
    expected = model.generate(**request, max_new_tokens=NEW, do_sample=False)
    assert len(expected[:, 5:].unique()) > 2, "tokens that are all the same show nothing"
    with from_transformers(model, max_new_tokens=NEW, batch=(2,), tokens=(5,)).plan().load() as session:
        assert session(**request)["tokens"].equal(expected)
        assert session(**prompts(5, 3, side="right"))["tokens"][:, 5:].equal(expected[:, 5:])


def test_padding_may_be_on_either_side_and_the_bucket_larger():
    """What is added is the same; the prompt is given back as it came."""
    model = tiny("llama")
    expected = model.generate(**prompts(4, 2), max_new_tokens=NEW, do_sample=False)
    request = prompts(4, 2, side="right")
    tokens = run(model, request, tokens=(8,), batch=(4,))
    assert tokens[:, 4:].equal(expected[:, 4:])
    assert tokens[:, :4].equal(request["input_ids"])


def test_rows_end_when_they_say_so_and_the_loop_with_the_last():
    model, request = tiny("llama"), prompts(5, 3)
    tokens = model.generate(**request, max_new_tokens=NEW, do_sample=False)
    ends = [int(tokens[0, 6]), int(tokens[1, 8])]
    options = {"eos_token_id": ends, "pad_token_id": PAD, "max_new_tokens": NEW}
    expected = model.generate(**request, **options, do_sample=False)
    assert expected.shape[1] < tokens.shape[1]
    for check_every in (1, 3):
        assert run(model, request, **options, check_every=check_every).equal(expected)


def test_sampling_draws_what_the_seed_says():
    model, request = tiny("llama"), prompts(5, 3)
    pipeline = from_transformers(model, max_new_tokens=NEW, batch=(2,), tokens=(5,), do_sample=True, top_k=5)
    with pipeline.plan().load() as session:
        one, again, other = (session(**request, seed=seed)["tokens"] for seed in (1, 1, 2))
    assert one.equal(again)
    assert not one.equal(other)


def test_the_model_of_the_user_is_left_as_it_was():
    model = tiny("mixtral")
    before = model.config.to_dict()
    from_transformers(model, batch=(1,), tokens=(4,))
    assert model.config.to_dict() == before
    assert not model.training


def test_weights_are_those_of_the_user():
    model, request = tiny("llama"), prompts(5, 3)
    pipeline = from_transformers(model, max_new_tokens=NEW, batch=(2,), tokens=(5,))
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    expected = model.generate(**request, max_new_tokens=NEW, do_sample=False)
    with pipeline.plan().load() as session:
        assert session(**request)["tokens"].equal(expected)


def test_the_cache_is_one_buffer_from_the_first_token_to_the_last():
    for name in ("llama", "mixtral"):
        plan = from_transformers(tiny(name), max_new_tokens=NEW, batch=(2,), tokens=(5,)).plan()
        updated = {output for output, port in plan.call("decode/decode").aliases if output == port}
        assert updated == {"keys_0", "values_0"}
        assert not [edge for edge in plan.edges if any(part.kind == "clone" for part in edge.adapters)]


def test_the_cache_stays_on_the_device():
    pipeline = from_transformers(tiny("llama"), max_new_tokens=NEW, batch=(2,), tokens=(5,))
    plan = pipeline.plan(device="neuron-emulated")
    with plan.load() as session:
        request = prompts(5, 3)
        expected = tiny("llama").generate(**request, max_new_tokens=NEW, do_sample=False)
        assert session(**request)["tokens"].equal(expected)
        # Fewer rows than the bucket: what is padded on the way is not in what comes back.
        request = prompts(4)
        expected = tiny("llama").generate(**request, max_new_tokens=NEW, do_sample=False)
        assert session(**request)["tokens"].equal(expected)
    cache = [edge for edge in plan.edges if ".keys_0" in edge.source]
    assert cache
    assert {edge.residency.value for edge in cache} == {"device"}
    # In the application that both stages are, once, and updated there; of the weights there is one copy.
    assert [state.name for state in plan.states] == ["decode.keys_0", "decode.values_0"]
    assert ("prefill", "decode/decode") in [item.stages for item in plan.applications]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 65}, "counts 64 tokens"),
        ({"max_length": 1}, "an int of 2 or more"),
        ({"max_length": 9, "tokens": (9,)}, "tokens= cannot go up to 9"),
        ({"tokens": (64,)}, "counts 64 tokens"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups"),
        ({"image_token": 3}, "no option"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(GraphError, match=message):
        from_transformers(tiny("llama"), batch=(1,), **options)


def test_models_that_cannot_be_followed_are_refused():
    model = tiny("llama")
    with pytest.raises(GraphError, match="training mode"):
        from_transformers(model.train())
    bare = transformers.LlamaModel(transformers.LlamaConfig(**SHAPE)).eval()
    with pytest.raises(GraphError, match="generates nothing"):
        from_transformers(bare)
    model = tiny("llama")
    model.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(GraphError, match="hook"):
        from_transformers(model)


def test_a_forward_that_ends_in_an_error_is_refused():
    refusal = pytest.raises(GraphError, match=r"GPT2LMHeadModel cannot be followed .* IndexError: slot 9")
    with refusal, following(tiny("gpt2")):
        raise IndexError("slot 9")


def test_a_prompt_longer_than_the_largest_bucket_is_refused():
    pipeline = from_transformers(tiny("llama"), max_new_tokens=NEW, batch=(2,), tokens=(5,))
    with pipeline.plan().load() as session, pytest.raises(InputError, match="tokens"):
        session(**prompts(6, 3))


class Words:
    """A tokenizer whose tokens are numbers, written in words of digits."""

    def __call__(self, text: list[str], padding_side: str = "right", **_: Any) -> dict[str, Tensor]:
        rows = [[int(word) for word in item.split()] for item in text]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), PAD)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(rows):
            place = slice(longest - len(item), None) if padding_side == "left" else slice(len(item))
            ids[row, place], mask[row, place] = torch.tensor(item), 1
        return {"input_ids": ids, "attention_mask": mask}

    def decode(self, row: Tensor, **_: Any) -> str:
        return " ".join(str(int(token)) for token in row if token != PAD)


def test_texts_go_in_and_what_was_added_comes_out():
    model, words = tiny("llama"), Words()
    text = ["5 6 7 8", "9 10"]
    request = words(text, padding_side="left")
    expected = model.generate(**request, max_new_tokens=NEW, do_sample=False)
    pipeline = from_transformers(model, words, max_new_tokens=NEW, batch=(2,), tokens=(5,))
    with pipeline.plan().load() as session:
        result = session(text=text)
        assert result["tokens"].equal(expected)
        assert result["text"] == [words.decode(row) for row in expected[:, 4:]]
        with pytest.raises(StageError, match="largest bucket is 5"):
            session(text=["1 2 3 4 5 6"])
    assert int(expected.max()) < VOCABULARY
