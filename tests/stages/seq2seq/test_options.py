"""Kind: an option that is read, but not as generate() means it. Each is followed, or refused by its name."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestrator import GraphError
from orchestrator_stages import from_transformers
from orchestrator_stages.generation.options import known_options
from orchestrator_stages.origin import check_config
from orchestrator_stages.seq2seq.families import family_of
from orchestrator_stages.seq2seq.options import read_beginning
from tests.stages.seq2seq.by_hand import after_seed, by_hand
from tests.stages.tiny_models import EOS, PAD, START, generated, inputs, tiny, transformers

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NEW = 7


def by_hand_or_refusal(
    name: str, user: Any, request: dict[str, Tensor], **options: Any
) -> Tensor | GraphError:
    try:
        return by_hand(name, request, user, **options)
    except GraphError as error:
        return error


#: For each option of a generation config that generate() may follow, values to try.
VALUES: dict[str, list[Any]] = {
    "bad_words_ids": [[[5], [6]], [[EOS]], [[5, 6]]],
    "begin_suppress_tokens": [list(range(50)), [-1]],
    "bos_token_id": [7],
    "cache_implementation": ["static", "quantized"],
    "decoder_start_token_id": [5, [5, 6, 7]],
    "do_sample": [False, None, True],
    "early_stopping": [True],
    "encoder_no_repeat_ngram_size": [1],
    "encoder_repetition_penalty": [1.7],
    "epsilon_cutoff": [0.1],
    "eta_cutoff": [0.1],
    "exponential_decay_length_penalty": [(1, 1.5)],
    "eos_token_id": [None, 77, [77, 78]],
    "forced_bos_token_id": [17, [18, 17]],
    "forced_eos_token_id": [18, [19, 18]],
    "is_assistant": [True],
    "length_penalty": [2.0],
    "max_length": [2, 5, 9],
    "max_new_tokens": [1, 4],
    "max_time": [1e9],
    "min_length": [0, 4],
    "min_new_tokens": [0, 3],
    "min_p": [0.1],
    "no_repeat_ngram_size": [1],
    "num_beam_groups": [2],
    "num_beams": [1, 2],
    "num_return_sequences": [1, 2],
    "pad_token_id": [3],
    "remove_invalid_values": [True],
    "renormalize_logits": [True],
    "repetition_penalty": [1.0, 1.5],
    "return_dict_in_generate": [True],
    "sequence_bias": [[[[5], -9.0]]],
    "suppress_tokens": [list(range(60)), [-1, 200]],
    "temperature": [0.5],
    "top_h": [0.5],
    "top_k": [None, 3],
    "top_p": [None, 0.5],
    "typical_p": [0.5],
    "use_cache": [False],
    "use_mtp": [True],
}


@pytest.mark.parametrize("name", ["bart", "whisper"])
@pytest.mark.parametrize("option", VALUES)
def test_an_option_gives_the_tokens_of_generate_or_is_refused_by_its_name(name: str, option: str):
    model, request = tiny(name), inputs(name)
    model.generation_config.max_new_tokens = None if option in ("max_length", "max_new_tokens") else NEW
    for value in VALUES[option]:
        tokens = by_hand_or_refusal(name, model, request, **{option: value})
        if isinstance(tokens, GraphError):
            assert option in str(tokens), "the message names the option that is in the way"
            assert tokens.objects["option"] == option
        else:
            expected = after_seed(model, request, **{option: value})
            assert tokens.shape == expected.shape, (value, expected)
            assert tokens.equal(expected), (value, expected)


def test_few_options_are_refused():
    """A pipeline of refusals would pass the test above."""
    refused = []
    for option, values in VALUES.items():
        for value in values:
            try:
                read_beginning(tiny("bart"), family_of(tiny("bart")), {option: value})
            except GraphError:
                refused.append(option)
    assert refused == [
        *("cache_implementation", "decoder_start_token_id", "is_assistant", "num_beam_groups"),
        *("num_return_sequences", "return_dict_in_generate", "use_mtp"),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 9, "max_new_tokens": 3},
        {"min_length": 6, "min_new_tokens": 2},
        {"min_length": 6, "min_new_tokens": 0},
        {"forced_bos_token_id": 17, "begin_suppress_tokens": [5, 18], "min_length": 4},
        {"forced_eos_token_id": [9, 3], "suppress_tokens": [3]},
        {"forced_eos_token_id": 9, "max_new_tokens": 1, "begin_suppress_tokens": [3]},
        {"eos_token_id": PAD},
        {"forced_bos_token_id": 17, "begin_suppress_tokens": [3, 4, 5], "num_beams": 3},
        {"suppress_tokens": list(range(40)), "bad_words_ids": [[token] for token in range(30, 50)]},
        {"begin_suppress_tokens": list(range(60)), "min_new_tokens": 5},
        {"no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1, "num_beams": 3, "min_length": 4},
        {"num_beams": 3, "num_return_sequences": 3, "early_stopping": "never", "length_penalty": -1.0},
        {"do_sample": True, "num_return_sequences": 2, "top_p": 0.8, "temperature": 0.7},
        {"do_sample": True, "num_beams": 3, "top_k": 20, "encoder_repetition_penalty": 1.5},
        {"do_sample": True, "forced_eos_token_id": [8, 9], "typical_p": 0.5, "min_p": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["bart", "t5", "gpt2", "whisper"])
def test_options_together_are_what_they_are_in_generate(name: str, options: dict[str, Any]):
    """Some rows end early."""
    if name == "whisper" and {"do_sample", "num_return_sequences"} & options.keys():
        pytest.skip("generate() of Whisper reads them in its own way")
    model, request = tiny(name), inputs(name)
    model.generation_config.max_new_tokens = None if "max_length" in options else NEW
    if name != "whisper" and not {"eos_token_id", "forced_eos_token_id"} & options.keys():
        tokens = generated(model, request, max_new_tokens=NEW)
        options = {**options, "eos_token_id": [int(tokens[0, 4]), int(tokens[1, 2])]}
    assert by_hand(name, request, model, **options).equal(after_seed(model, request, **options))


@pytest.mark.slow
@settings(max_examples=16, deadline=None)
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "max_new_tokens": st.integers(1, 9),
            "max_length": st.integers(2, 12),
            "min_length": st.integers(0, 4),
            "min_new_tokens": st.integers(0, 1),
            "eos_token_id": st.one_of(st.none(), st.integers(0, 98)),
            "pad_token_id": st.integers(0, 98),
            "forced_bos_token_id": st.integers(0, 98),
            "forced_eos_token_id": st.one_of(st.integers(0, 98), st.lists(st.integers(0, 98), min_size=1)),
            "suppress_tokens": st.lists(st.integers(0, 98), max_size=30),
            "begin_suppress_tokens": st.lists(st.integers(0, 98), max_size=30),
            "bad_words_ids": st.lists(st.lists(st.integers(0, 98), min_size=1, max_size=1), min_size=1),
            "remove_invalid_values": st.booleans(),
            "num_beams": st.integers(1, 3),
            "no_repeat_ngram_size": st.integers(0, 2),
            "repetition_penalty": st.sampled_from([0.5, 1.3]),
        },
    ),
    name=st.sampled_from(["bart", "t5", "gpt2", "whisper"]),
)
def test_any_options_are_what_they_are_in_generate(options: dict[str, Any], name: str):
    model, request = tiny(name), inputs(name)
    tokens = by_hand_or_refusal(name, model, request, **options)
    if isinstance(tokens, GraphError):
        assert tokens.objects["option"] in {*options, "min_length"}
    else:
        assert tokens.equal(generated(model, request, **options))


def test_every_option_of_the_installed_version_was_gone_through():
    """What a later version has besides is refused unless it has its default; this says to go through it."""
    library = vars(transformers.GenerationConfig())
    assert library.keys() <= known_options(speech=False)
    source = inspect.getsource(transformers.models.whisper.generation_whisper)
    read = set(re.findall(r"generation_config\.([a-z]\w*)", source))
    read |= set(re.findall(r"[gs]etattr\([a-z_.]*generation_config, \"(\w+)\"", source))
    read |= {*inspect.signature(transformers.WhisperForConditionalGeneration.generate).parameters}
    plumbing = {
        *("self", "kwargs", "to_dict", "update", "from_model_config", "input_features", "attention_mask"),
        *("generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"),
        *("synced_gpus", "num_frames", "json"),
    }
    assert read - plumbing <= known_options(speech=True)


def test_an_option_that_nobody_knows_is_refused_unless_it_has_its_default():
    defaults = {"depth": 3, "swirl": None}
    check_config({"depth": 9, "swirl": None, "note": "x"}, defaults, ["depth"], "The config")
    with pytest.raises(GraphError, match="swirl=2") as raised:
        check_config({"depth": 3, "swirl": 2}, defaults, ["depth"], "The config")
    assert raised.value.option == "swirl"


ARGUMENTS = {
    *inspect.signature(transformers.BartForConditionalGeneration.generate).parameters,
    *inspect.signature(transformers.WhisperForConditionalGeneration.generate).parameters,
    *("decoder_input_ids", "encoder_outputs", "past_key_values", "tokenizer", "input_ids"),
} - {"self", "kwargs", *vars(transformers.GenerationConfig())}


@pytest.mark.parametrize("name", ["bart", "whisper"])
def test_an_argument_of_generate_is_never_said_to_be_none(name: str):
    model = tiny(name)
    own = {*inspect.signature(model.generate).parameters, *inspect.signature(model.forward).parameters}
    for option in sorted(ARGUMENTS & own):
        if option in known_options(speech=name == "whisper"):
            continue
        with pytest.raises(GraphError, match=option) as raised:
            from_transformers(model, **{option: 1})
        assert "has none" not in str(raised.value)
    with pytest.raises(GraphError, match=r"has no option 'top_kk', and generate\(\) has none.*'top_k'"):
        from_transformers(model, top_kk=3)


def test_tokens_that_the_model_does_not_know_are_refused():
    for option in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"):
        for token in (99, -1):
            with pytest.raises(GraphError, match=option):
                from_transformers(tiny("bart"), **{option: token})


def test_what_is_forced_and_suppressed_is_refused():
    with pytest.raises(GraphError, match="forced_eos_token_id"):
        from_transformers(tiny("bart"), forced_eos_token_id=9, suppress_tokens=[9])


def test_an_option_that_is_none_is_off_and_one_that_is_left_out_is_as_the_library_has_it():
    """Kind: None of the user and nothing from the user are two things to generate()."""

    def most_likely(**options: Any) -> Any:
        bart = tiny("bart")
        _, selection = read_beginning(bart, family_of(bart), {"do_sample": True, **options})
        return selection.config.top_k

    assert (most_likely(), most_likely(top_k=None), most_likely(top_k=5)) == (50, None, 5)


def test_without_a_pad_token_rows_are_filled_with_the_end():
    bart = tiny("bart")
    assert read_beginning(bart, family_of(bart), {"pad_token_id": None, "eos_token_id": [1, 2]})[1].pad == 1


def test_without_a_length_there_are_as_many_tokens_as_generate_makes():
    model, request = tiny("bart"), inputs("bart")
    tokens = by_hand("bart", request)
    assert tokens.equal(generated(model, request))
    assert tokens.shape[1] == 1 + 20


@pytest.mark.parametrize("beginning", [[[7, 8]], [[START, 7]]])
def test_sequences_begin_with_what_generate_is_given(beginning: list[list[int]]):
    model, request = tiny("bart"), inputs("bart")
    rows = torch.tensor(beginning).expand(3, -1)
    for options in ({}, {"num_beams": 2, "min_length": 6, "no_repeat_ngram_size": 1}):
        options = {"max_new_tokens": NEW, **options}
        expected = generated(model, request, **options, decoder_input_ids=rows)
        assert by_hand("bart", request, decoder_input_ids=beginning, **options).equal(expected)
