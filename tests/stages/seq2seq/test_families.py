"""Every family by one road: its own forward over a cache of fixed size gives the tokens of `generate()`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from orchestrator import GraphError
from orchestrator_stages import Family, from_transformers, register_family
from orchestrator_stages.generation import families
from orchestrator_stages.generation.versions import check_version
from tests.stages.seq2seq.by_hand import ByHand, by_hand
from tests.stages.tiny_models import (
    BROKEN_DECODERS,
    FAMILIES,
    MODELS,
    OTHER_DECODERS,
    PAD,
    START,
    VOCABULARY,
    captioner,
    generated,
    inputs,
    tiny,
    transformers,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NEW = 8


@pytest.mark.parametrize("name", [*MODELS, *FAMILIES])
def test_same_as_generate_over_a_batch_of_different_lengths(name: str):
    """To the last token, padded on either side, with rows that end when they say so, and with beams."""
    model, request = tiny(name), inputs(name)
    expected = generated(model, request, max_new_tokens=NEW)
    assert len(expected.unique()) > 4, "tokens that are all the same show nothing"
    assert by_hand(name, request, max_new_tokens=NEW).equal(expected)
    if "input_ids" in request:
        left = {key: value.flip(1) for key, value in request.items()}
        assert by_hand(name, left, max_new_tokens=NEW).equal(generated(model, left, max_new_tokens=NEW))
    ends = [int(expected[0, 5]), int(expected[1, 3])] if name != "whisper" else int(expected[0, 5])
    for options in ({"eos_token_id": ends, "pad_token_id": PAD}, {"num_beams": 2, "eos_token_id": ends}):
        expected = generated(model, request, max_new_tokens=NEW, **options)
        assert by_hand(name, request, max_new_tokens=NEW, **options).equal(expected)


@pytest.mark.parametrize("kind", OTHER_DECODERS)
def test_every_other_decoder_may_stand_behind_a_picture(kind: str):
    model, request = captioner(kind), inputs(f"vit-{kind}")
    expected = generated(model, request, max_new_tokens=NEW)
    assert len(expected.unique()) > 4, "tokens that are all the same show nothing"
    stages = ByHand(f"vit-{kind}", {"max_new_tokens": NEW}, model, is_other=True)
    assert stages.run(request).equal(expected)


@pytest.mark.parametrize("kind", BROKEN_DECODERS)
def test_a_decoder_that_cannot_stand_there_is_refused_and_why(kind: str):
    reasons = {"xmod": "looks at the values of tensors"}
    own = r"generate\(\) of VisionEncoderDecoderModel fails on two short prompts"
    with pytest.raises(GraphError, match=reasons.get(kind, own)):
        from_transformers(captioner(kind), batch=(1,), max_new_tokens=2)


def _keep_precision(tree: Any) -> Any:
    """The routers of Switch Transformers convert their weights each time they run, to what they are."""
    for part in tree.modules():
        if hasattr(part, "expert_capacity"):
            part.classifier.to = lambda _, classifier=part.classifier: classifier
    return tree


def test_a_forward_that_cannot_be_followed_says_where_and_a_family_is_a_way_out():
    config = transformers.SwitchTransformersConfig(
        **{"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_experts": 4},
        **{
            "num_layers": 1,
            "num_decoder_layers": 1,
            "num_sparse_encoder_layers": 1,
            "tie_word_embeddings": False,
        },
        **{"num_sparse_decoder_layers": 1, "pad_token_id": PAD, "decoder_start_token_id": START},
    )
    torch.manual_seed(0)
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    options: dict[str, Any] = {"batch": (3,), "tokens": (9,), "max_new_tokens": 4, "eos_token_id": None}
    refusal = r"in SwitchTransformersTop1Router\.forward: `self\.classifier = .*register_family\('switch_transformers'"
    with pytest.raises(GraphError, match=refusal):
        from_transformers(model, **options)
    register_family("switch_transformers", Family(prepare=_keep_precision))
    try:
        request = inputs("t5")
        expected = generated(model, request, max_new_tokens=4, eos_token_id=None)
        assert len(expected.unique()) > 4, "tokens that are all the same show nothing"
        with from_transformers(model, **options).plan().load() as session:
            assert session(**request)["tokens"].equal(expected)
    finally:
        families._FAMILIES.pop("switch_transformers")


#: What the generation config of a published checkpoint says, in the numbers of a tiny one: beams, bans and lengths.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "bart-large-cnn": (
        "bart",
        {
            **{"num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 2.0, "early_stopping": True},
            **{"min_length": 4, "max_length": 9, "forced_bos_token_id": 92, "forced_eos_token_id": 91},
        },
    ),
    "opus-mt": (
        "marian",
        {"num_beams": 4, "bad_words_ids": [[PAD]], "max_length": 9, "forced_eos_token_id": 91},
    ),
    "opus-mt of old": ("marian", {"num_beams": 6, "bad_words_ids": [[PAD]], "max_length": 9}),
    "trocr-base": (
        "trocr",
        {
            **{"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 3},
            "max_length": 9,
        },
    ),
    "pegasus-xsum": (
        "pegasus",
        {"num_beams": 8, "length_penalty": 0.6, "max_length": 9, "forced_eos_token_id": 91},
    ),
    "whisper-small": (
        "whisper",
        {
            **{
                "suppress_tokens": [3, 4, 5],
                "begin_suppress_tokens": [20, 91],
                "max_length": 9,
                "num_beams": 2,
            },
            **{"forced_decoder_ids": [[1, None], [2, 63]], "lang_to_id": {"<|en|>": 60, "<|de|>": 61}},
            **{"task_to_id": {"transcribe": 63, "translate": 64}, "no_timestamps_token_id": 98},
            "is_multilingual": True,
        },
    ),
    "nllb-200": ("m2m_100", {"num_beams": 5, "max_length": 9, "forced_bos_token_id": 17}),
    "t5-small": ("t5", {"max_length": 9, "num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 2.0}),
    "speech_to_text": ("speech_to_text", {"num_beams": 5, "max_length": 9, "early_stopping": True}),
    "moonshine": ("moonshine", {"max_length": 9}),
    "captioner": ("gpt2", {"num_beams": 2, "max_length": 9, "num_return_sequences": 2}),
}


#: Those that are tried on the oldest versions of transformers as well.
OLD = ("t5-small", "whisper-small", "captioner")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.versions] if name in OLD else []) for name in PUBLISHED],
)
def test_published_configurations_run_as_their_authors_meant(name: str):
    """`make test-transformers` runs it on the oldest versions that are supported."""
    kind, config = PUBLISHED[name]
    model, request = tiny(kind), inputs(kind)
    for option, value in config.items():
        setattr(model.generation_config, option, value)
    with torch.no_grad():
        expected = model.generate(**request)
    # As torch.compile gives it, it is the model; one row is a bucket of its own, and few tokens are.
    lengths = {"speech_to_text": (40,), "moonshine": (4000,)}
    batch, buckets = ((1, 4), (4, 16)) if name in OLD else ((4,), (16,))
    sizes = {"tokens": lengths.get(kind, buckets)} if "attention_mask" in request else {}
    pipeline = from_transformers(torch.compile(model, backend="eager"), batch=batch, **sizes)
    with pipeline.plan().load() as session:
        assert session(**request)["tokens"].equal(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["t5", "bart", "marian", "whisper", "m2m_100", "pegasus", "trocr"])
@torch.no_grad()
def test_half_precision_gives_the_logits_of_generate_but_for_rounding(name: str, dtype: torch.dtype):
    """Step by step along the tokens of generate(): which of two tokens is likelier may be a matter of rounding."""
    model = tiny(name).to(dtype)
    request = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs(name).items()
    }
    options = {"output_logits": True, "return_dict_in_generate": True}
    expected = generated(model, request, max_new_tokens=NEW, **options)
    stages = ByHand(name, {"max_new_tokens": NEW}, model, dtype)
    state = stages.begin(request)
    assert {value.dtype for key, value in state.items() if key.startswith(("keys", "cross"))} == {dtype}
    tokens = expected["sequences"][:, -len(expected["logits"]) :]
    for place, reference in enumerate(expected["logits"]):
        logits, carried = stages.decode(state)
        reference = reference.float()
        bound = 4 * torch.finfo(dtype).eps * reference.abs().max()
        assert (logits - reference).abs().max() <= bound
        state |= {**carried, "token": tokens[:, place]}


@pytest.mark.parametrize("name", ["t5", "mt5", "bart", "mbart", "whisper", "m2m_100", "pegasus"])
@torch.no_grad()
def test_same_tokens_in_half_precision_where_no_two_are_as_likely(name: str):
    model = tiny(name).to(torch.float16)
    request = {
        key: value.half() if value.is_floating_point() else value for key, value in inputs(name).items()
    }
    tokens = ByHand(name, {"max_new_tokens": NEW}, model, torch.float16).run(request)
    assert tokens.equal(generated(model, request, max_new_tokens=NEW))


@pytest.mark.versions
@pytest.mark.parametrize("version", ["4.56.2", "4.9.0", "3.0.2"])
def test_an_older_version_is_refused_in_words(version: str):
    with pytest.raises(ImportError, match=rf"needs transformers 4\.57 or newer, but {re.escape(version)} is"):
        check_version(version)


def test_versions_that_are_supported_are_taken():
    for version in ("4.57.0", "4.57.6", "5.0.0", "5.23.0", "5.24.0.dev0", transformers.__version__):
        check_version(version)
