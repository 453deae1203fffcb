"""What is not supported is refused when the pipeline is built, and the message says what is."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from orchestrator import GraphError
from orchestrator_stages import from_transformers
from orchestrator_stages.seq2seq.rules import TokenBan, read_rules
from tests.stages.tiny_models import tiny, transformers

BASE = {"decoder_start_token_id": 7, "pad_token_id": 0, "eos_token_id": [1, 2], "max_new_tokens": 5}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_beams", 4),
        ("no_repeat_ngram_size", 3),
        ("repetition_penalty", 1.2),
        ("min_p", 0.1),
        ("typical_p", 0.9),
        ("num_return_sequences", 2),
        ("bad_words_ids", [[3, 4]]),
        ("sequence_bias", [[[3], -1.0]]),
        ("guidance_scale", 2.0),
        ("stop_strings", ["end"]),
        ("return_timestamps", True),
    ],
)
def test_options_that_change_tokens_otherwise_are_refused(option: str, value: Any):
    with pytest.raises(GraphError, match=option) as raised:
        read_rules({**BASE, option: value}, speech=option == "return_timestamps")
    assert raised.value.option == option
    assert "greedily" in str(raised.value)


def test_beams_of_the_models_own_config_are_refused_unless_turned_off():
    model = tiny("marian")
    model.generation_config.num_beams = 6
    with pytest.raises(GraphError, match=r"beam search.*num_beams=1"):
        from_transformers(model)
    from_transformers(model, num_beams=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 65}, r"64 tokens.*max_new_tokens=65"),
        ({"max_new_token": 3}, "'max_new_tokens'"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"do_sample": True, "top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 5, "min_length": 9}, "min_length"),
        ({"tokens": (16, 65)}, "65"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options: dict[str, Any], match: str):
    with pytest.raises(GraphError, match=match):
        from_transformers(tiny("bart"), **options)


def test_families_that_are_not_supported_are_told_which_are():
    unsupported = [
        transformers.T5Model(
            transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        ),
        nn.Linear(2, 2),
        "t5-small",
    ]
    for model in unsupported:
        with pytest.raises(GraphError, match=r"T5.*BART.*Whisper.*VisionEncoderDecoder"):
            from_transformers(model)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(GraphError, match="eval"):
        from_transformers(tiny("bart").train())


def test_an_unknown_language_is_refused():
    with pytest.raises(GraphError, match="language"):
        from_transformers(tiny("whisper"), language="de")


def test_lengths_of_texts_are_no_option_of_a_model_that_reads_none():
    with pytest.raises(GraphError, match="tokens"):
        from_transformers(tiny("whisper"), tokens=(16,))


def test_rules_go_by_position():
    rules = read_rules(
        {
            **BASE,
            "forced_eos_token_id": 1,
            "min_length": 4,
            "suppress_tokens": [9],
            "begin_suppress_tokens": [8],
        },
        (40, 41),
    )
    assert rules.steps == 7
    assert rules.forced_ids() == [40, 41, -1, -1, -1, -1, 1]
    rows, kinds = rules.ban_rows()
    bans = [kinds[row] for row in rows]
    assert bans[:2] == [TokenBan(), TokenBan()]
    assert bans[2] == TokenBan((1, 2, 8, 9))
    assert bans[3:] == [TokenBan((9,))] * 4


def test_without_a_pad_token_rows_are_filled_with_the_end():
    assert read_rules({**BASE, "pad_token_id": None}).pad == 1


def test_without_a_length_there_are_as_many_tokens_as_generate_makes():
    assert read_rules({**BASE, "max_new_tokens": None}).new == 20
