"""Options that generate() of Whisper reads in its own way: each is followed, or refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import GraphError
from orchestrator_stages import from_transformers
from tests.stages.seq2seq.by_hand import after_seed, by_hand
from tests.stages.tiny_models import EOS, generated, inputs, tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NEW = 7


def multilingual() -> Any:
    model = tiny("whisper")
    config = model.generation_config
    config.lang_to_id = {"<|en|>": 60, "<|de|>": 61}
    config.task_to_id = {"transcribe": 63, "translate": 64}
    config.no_timestamps_token_id, config.is_multilingual = 98, True
    config.max_new_tokens = NEW
    return model


@pytest.mark.parametrize(
    "option", ["prompt_ids", "no_speech_threshold", "return_token_timestamps", "condition_on_prev_tokens"]
)
def test_what_only_whisper_has_is_refused_by_its_name(option: str):
    with pytest.raises(GraphError, match=option):
        from_transformers(tiny("whisper"), **{option: 1})
    config = tiny("whisper")
    setattr(config.generation_config, option, 1)
    with pytest.raises(GraphError, match=option):
        from_transformers(config)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.5, "top_k": 5, "num_beams": 3},
        {
            "temperature": (1.2, 0.4),
            "num_return_sequences": 2,
            "do_sample": True,
            "no_repeat_ngram_size": 1,
        },
        {"temperature": (0.0, 0.2)},
        {"num_return_sequences": 2, "num_beams": 2},
    ],
    ids=str,
)
def test_whisper_draws_where_it_is_warm_and_gives_copies_where_it_is_not(options: dict[str, Any]):
    model, request = tiny("whisper"), inputs("whisper")
    model.generation_config.temperature = 0.3
    model.generation_config.max_new_tokens = NEW
    assert by_hand("whisper", request, model, **options).equal(after_seed(model, request, **options))
    with pytest.raises(GraphError, match="do_sample"):
        from_transformers(model, do_sample=True)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"temperature": 1.0}], ids=str)
def test_whisper_writes_times_as_generate_does(options: dict[str, Any]):
    """Of recordings that one pass reads; one that generate() reads in several is an error that says so."""
    model, request = multilingual(), inputs("whisper")
    config = model.generation_config
    config.no_timestamps_token_id, config.max_initial_timestamp_index = 47, 10
    outcomes = set()
    for new in (2, 3, 5):
        for row in range(3):
            config.max_new_tokens = new
            one = {name: value[row : row + 1] for name, value in request.items()}
            passes = []
            options = {**options, "language": "de", "return_timestamps": True}
            expected = after_seed(model, one, monitor_progress=passes.append, **options)
            outcomes.add(len(passes) > 1)
            if len(passes) > 1:
                with pytest.raises(ValueError, match=r"two times in a row.*Leave out return_timestamps"):
                    by_hand("whisper", one, model, **options)
            else:
                assert by_hand("whisper", one, model, **options).equal(expected)
                assert (expected >= 48).any()
    assert False in outcomes
    with pytest.raises(GraphError, match="no_timestamps_token_id"):
        from_transformers(tiny("whisper"), return_timestamps=True)


def test_what_whisper_begins_with_may_be_in_its_config():
    request = inputs("whisper")
    model = multilingual()
    model.generation_config.language, model.generation_config.task = "de", "translate"
    assert by_hand("whisper", request, model).equal(generated(model, request))
    without = generated(model, request, language=None)
    assert by_hand("whisper", request, model, language=None).equal(without)
    old = multilingual()
    old.generation_config.forced_decoder_ids = [[2, 63], [3, 98]]
    assert by_hand("whisper", request, old).equal(generated(old, request))
    single = tiny("whisper")
    single.generation_config.max_new_tokens = NEW
    single.generation_config.forced_decoder_ids = [[1, None], [2, 63]]
    assert by_hand("whisper", request, single).equal(generated(single, request))


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
    model.generation_config.no_timestamps_token_id = 47
    model.generation_config.suppress_tokens = [EOS, *range(48)]
    with pytest.raises(ValueError, match="two times in a row"):
        by_hand("whisper", inputs("whisper"), model, language="de")


def test_a_pad_that_the_model_writes_is_cut_as_whisper_cuts_it():
    model, request = tiny("whisper"), inputs("whisper")
    tokens = generated(model, request, max_new_tokens=NEW)
    for pad, eos in ((int(tokens[0, 2]), EOS), (int(tokens[0, 6]), int(tokens[1, 4])), (EOS, EOS)):
        options = {"pad_token_id": pad, "eos_token_id": eos, "max_new_tokens": NEW}
        assert by_hand("whisper", request, **options).equal(generated(model, request, **options))


@pytest.mark.parametrize("language", [None, "de", "german"])
@pytest.mark.parametrize("task", [None, "translate"])
def test_whisper_is_told_language_and_task(language: str | None, task: str | None):
    model, request = multilingual(), inputs("whisper")
    model.generation_config.begin_suppress_tokens = [1, 2, 3]
    options = {"language": language, "task": task}
    assert by_hand("whisper", request, model, **options).equal(generated(model, request, **options))


@pytest.mark.parametrize("language", [60, None])
def test_whisper_follows_forced_ids_of_old_checkpoints(language: int | None):
    model, request = tiny("whisper"), inputs("whisper")
    model.generation_config.lang_to_id = {"<|en|>": 60, "<|de|>": 61}
    model.generation_config.forced_decoder_ids = [[1, language], [2, 63]]
    model.generation_config.max_new_tokens = NEW
    assert by_hand("whisper", request, model).equal(generated(model, request))
