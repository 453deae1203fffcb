"""Kind: an option that is read, but not as generate() means it. Each is followed, or refused by its name."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestrator import GraphError, StageError
from orchestrator_stages import from_transformers
from orchestrator_stages.origin import check_config
from orchestrator_stages.seq2seq.families import family_of
from orchestrator_stages.seq2seq.options import known_options, read_options
from orchestrator_stages.seq2seq.rules import read_rules
from tests.stages.tiny_models import EOS, PAD, generated, inputs, tiny, transformers

pytestmark = pytest.mark.filterwarnings("ignore:(Using the model-agnostic|Unfeasible length):UserWarning")

NEW = 7


def run(model: Any, request: dict[str, Tensor], **options: Any) -> Tensor:
    sizes = {"tokens": (16,)} if "input_ids" in request else {}
    with from_transformers(model, batch=(3,), **sizes, **options).plan("cpu").load() as session:
        return session(**request)["tokens"]


def run_or_refusal(model: Any, request: dict[str, Tensor], **options: Any) -> Tensor | GraphError:
    try:
        return run(model, request, **options)
    except GraphError as error:
        return error


#: For each option of a generation config that generate() may follow, values to try.
VALUES: dict[str, list[Any]] = {
    "bad_words_ids": [[[5], [6]], [[EOS]], [[5, 6]]],
    "begin_suppress_tokens": [list(range(50)), [-1]],
    "bos_token_id": [7],
    "cache_implementation": ["static", "quantized"],
    "decoder_start_token_id": [5, [5, 6, 7]],
    "do_sample": [False, None],
    "early_stopping": [True],
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
    "num_beams": [1, 2],
    "num_return_sequences": [1],
    "pad_token_id": [3],
    "remove_invalid_values": [True],
    "renormalize_logits": [True],
    "repetition_penalty": [1.0, 1.5],
    "return_dict_in_generate": [True],
    "sequence_bias": [[[[5], -9.0]]],
    "suppress_tokens": [list(range(60)), [-1, 200]],
    "temperature": [0.5],
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
        tokens = run_or_refusal(model, request, **{option: value})
        if isinstance(tokens, GraphError):
            assert option in str(tokens), "the message names the option that is in the way"
            assert tokens.objects["option"] == option
        else:
            expected = generated(model, request, **{option: value})
            assert tokens.shape == expected.shape, (value, expected)
            assert tokens.equal(expected), (value, expected)


def test_few_options_are_refused_of_a_value_that_is_the_default():
    """A pipeline of refusals would pass the test above."""
    refused = []
    for option, values in VALUES.items():
        for value in values:
            try:
                from_transformers(tiny("bart"), **{option: value})
            except GraphError:
                refused.append(option)
    assert refused == [
        *(
            "bad_words_ids",
            "cache_implementation",
            "decoder_start_token_id",
            "is_assistant",
            "max_time",
            "min_p",
        ),
        *(
            "no_repeat_ngram_size",
            "num_beams",
            "repetition_penalty",
            "return_dict_in_generate",
            "sequence_bias",
        ),
        *("typical_p", "use_mtp"),
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
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["bart", "t5", "whisper"])
def test_options_together_are_what_they_are_in_generate(name: str, options: dict[str, Any]):
    model, request = tiny(name), inputs(name)
    model.generation_config.max_new_tokens = None if "max_length" in options else NEW
    assert run(model, request, **options).equal(generated(model, request, **options))


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
        },
    ),
    name=st.sampled_from(["bart", "t5", "gpt2", "whisper"]),
)
def test_any_options_are_what_they_are_in_generate(options: dict[str, Any], name: str):
    model, request = tiny(name), inputs(name)
    tokens = run_or_refusal(model, request, **options)
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


@pytest.mark.parametrize(
    "option", ["prompt_ids", "no_speech_threshold", "return_timestamps", "condition_on_prev_tokens"]
)
def test_what_only_whisper_has_is_refused_by_its_name(option: str):
    with pytest.raises(GraphError, match=option):
        from_transformers(tiny("whisper"), **{option: 1})
    config = tiny("whisper")
    setattr(config.generation_config, option, 1)
    with pytest.raises(GraphError, match=option):
        from_transformers(config)


@pytest.mark.parametrize("temperature", [0.3, (0.2, 0.4)])
def test_whisper_draws_where_it_is_warm_and_that_is_refused(temperature: Any):
    with pytest.raises(GraphError, match="temperature"):
        from_transformers(tiny("whisper"), temperature=temperature)
    with pytest.raises(GraphError, match="do_sample"):
        from_transformers(tiny("whisper"), do_sample=True)
    model, request = tiny("whisper"), inputs("whisper")
    model.generation_config.temperature = 0.3
    model.generation_config.max_new_tokens = NEW
    assert run(model, request, temperature=(0.0, 0.2)).equal(
        generated(model, request, temperature=(0.0, 0.2))
    )


def multilingual() -> Any:
    model = tiny("whisper")
    config = model.generation_config
    config.lang_to_id = {"<|en|>": 60, "<|de|>": 61}
    config.task_to_id = {"transcribe": 63, "translate": 64}
    config.no_timestamps_token_id, config.is_multilingual = 98, True
    config.max_new_tokens = NEW
    return model


def test_what_whisper_begins_with_may_be_in_its_config():
    request = inputs("whisper")
    model = multilingual()
    model.generation_config.language, model.generation_config.task = "de", "translate"
    assert run(model, request).equal(generated(model, request))
    assert run(model, request, language=None).equal(generated(model, request, language=None))
    old = multilingual()
    old.generation_config.forced_decoder_ids = [[2, 63], [3, 98]]
    assert run(old, request).equal(generated(old, request))
    single = tiny("whisper")
    single.generation_config.max_new_tokens = NEW
    single.generation_config.forced_decoder_ids = [[1, None], [2, 63]]
    assert run(single, request).equal(generated(single, request))


def test_languages_that_cannot_be_are_refused():
    for options in ({"language": ["de", "en"]}, {"language": "fr"}):
        with pytest.raises(GraphError, match="language"):
            from_transformers(multilingual(), **options)
    english = multilingual()
    english.generation_config.is_multilingual = False
    with pytest.raises(GraphError, match="is_multilingual=False"):
        from_transformers(english, language="en")
    gaps = multilingual()
    gaps.generation_config.forced_decoder_ids = [[1, 60], [3, 63]]
    with pytest.raises(GraphError, match="forced_decoder_ids has gaps"):
        from_transformers(gaps)


def test_two_times_in_a_row_are_an_error_since_generate_begins_anew_there():
    model = multilingual()
    model.generation_config.no_timestamps_token_id = 0
    model.generation_config.suppress_tokens = [EOS]
    with pytest.raises(StageError, match="two times in a row"):
        run(model, inputs("whisper"), language="de")


def test_a_pad_that_the_model_writes_is_cut_as_whisper_cuts_it():
    model, request = tiny("whisper"), inputs("whisper")
    tokens = generated(model, request, max_new_tokens=NEW)
    for pad, eos in ((int(tokens[0, 2]), EOS), (int(tokens[0, 6]), int(tokens[1, 4])), (EOS, EOS)):
        options = {"pad_token_id": pad, "eos_token_id": eos, "max_new_tokens": NEW}
        assert run(model, request, **options).equal(generated(model, request, **options))


def test_tokens_that_the_model_does_not_know_are_refused():
    for option in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"):
        for token in (99, -1):
            with pytest.raises(GraphError, match=option):
                from_transformers(tiny("bart"), **{option: token})


def test_what_is_forced_and_suppressed_is_refused():
    with pytest.raises(GraphError, match="forced_eos_token_id"):
        from_transformers(tiny("bart"), forced_eos_token_id=9, suppress_tokens=[9])
    with pytest.raises(GraphError, match="forced_eos_token_id"):
        from_transformers(tiny("bart"), forced_eos_token_id=[8, 9], do_sample=True)


def test_an_option_that_is_none_is_off_and_one_that_is_left_out_is_as_the_library_has_it():
    """Kind: None of the user and nothing from the user are two things to generate()."""

    def most_likely(**options: Any) -> int:
        found = read_options(tiny("bart"), family_of(tiny("bart")), {"do_sample": True, **options})
        rules = read_rules({**found, "max_new_tokens": 3})
        assert rules.sampling is not None
        return rules.sampling.top_k

    assert (most_likely(), most_likely(top_k=None), most_likely(top_k=5)) == (50, 0, 5)
