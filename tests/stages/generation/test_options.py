"""Options of generate(), followed by its own classes: the tokens are those of generate()."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestrator import GraphError, InputError
from orchestrator_stages import from_transformers
from tests.kit import refuses
from tests.stages.generation.tiny import PAD, VOCABULARY, letters, prompts, tiny, transformers

processors_room = pytest.importorskip("orchestrator_stages.generation.processors")
options_room = pytest.importorskip("orchestrator_stages.generation.options")
choose_room = pytest.importorskip("orchestrator_stages.generation.choose")
beams_room = pytest.importorskip("orchestrator_stages.generation.beams")
lengths_room = pytest.importorskip("orchestrator_stages.generation.lengths")
stopping_room = pytest.importorskip("orchestrator_stages.generation.stopping")
sampling_room = pytest.importorskip("orchestrator_stages.generation.sampling")
library = transformers.generation.logits_process

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NEW, SEED = 6, 3
MODEL, TOKENIZER = tiny("llama"), letters()
STOPS = ["ab", "bbb", "cab", "ababa", "d"]


def sized(options: dict[str, Any]) -> dict[str, Any]:
    """Options that say how much is added."""
    return options if "max_length" in options else {"max_new_tokens": NEW, **options}


def by_hand(request: dict[str, Tensor], bucket: int = 0, **options: Any) -> Tensor:
    """The tokens, by the stages of a pipeline called one after another, the model without a cache."""
    selection = options_room.prompt_selection(MODEL, sized(options), TOKENIZER)
    chain = selection.follow(VOCABULARY)
    ids, mask = request["input_ids"], request["attention_mask"]
    begin = choose_room.BeginTokens(selection, VOCABULARY, 20)
    wide = [torch.nn.functional.pad(one, (0, bucket), value=value) for one, value in ((ids, -1), (mask, 0))]
    state = begin(wide[1], wide[0])
    shape = sampling_room.TensorSpec((len(ids), *[selection.lanes] * (selection.lanes > 1), VOCABULARY))
    noise = sampling_room.SampleNoise(shape)
    random = sampling_room.SeedState().forward(SEED)
    names = list(
        (beams_room.beam_specs if selection.has_beams else choose_room.token_specs)(selection, len(ids))
    )
    stop = selection.follow_stop(VOCABULARY)
    choose = (beams_room.BeamStep if selection.has_beams else choose_room.NextToken)(selection, chain, stop)
    host = processors_room.HostProcessors(
        selection.processors,
        shape,
        selection.lanes,
        selection.before,
        is_normal=selection.has_beams,
        counting=selection.counting,
    )
    state["width"] = lengths_room.PromptWidth(len(ids), selection.longest).forward(ids)
    lanes = selection.lanes
    for step in range(selection.new):
        # The model reads everything again: the prompt and what was chosen.
        new = state["new_ids"].flatten(0, -2)[:, :step]
        whole = torch.cat([ids.repeat_interleave(lanes, 0), new], 1)
        seen = torch.cat([mask.repeat_interleave(lanes, 0), torch.ones_like(new)], 1)
        places = (seen.cumsum(1) - 1).clamp(min=0)
        logits = MODEL(input_ids=whole, attention_mask=seen, position_ids=places).logits[:, -1].float()
        logits = logits.view(len(ids), *[lanes] * (lanes > 1), VOCABULARY)
        if chain is None:
            logits = host.forward(logits, state["step"], state["new_ids"], ids, mask)
        if selection.is_sampling:
            state["noise"], random = noise.forward(random, ids)
        ports = [*(["filler"] if selection.has_beams else []), *names, *choose.ports]
        state |= choose(logits, *(state[name] for name in ports))
        if bool(state["done"]):
            break
    finish = choose_room.JoinPrompt(selection, len(ids))
    results = [state[name] for name in finish.inputs if name in state and name != "new_ids"]
    results = [state["sequences"] if selection.has_beams else state["new_ids"], *results]
    tokens: Tensor = finish.forward(ids, *results)[0]
    return tokens


def generated(request: dict[str, Tensor], **options: Any) -> Tensor:
    torch.manual_seed(SEED)
    options = {"do_sample": False, "tokenizer": TOKENIZER, **sized(options)}
    tokens: Tensor = MODEL.generate(**request, **options)
    return tokens


MANY = [3, 4, 5, 60, 73]

#: Options, one of each class of transformers and what they are with beams and drawing.
CASES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 1},
    {
        "no_repeat_ngram_size": 3,
        "num_beams": 4,
        "length_penalty": 2.0,
        "min_new_tokens": 3,
        "eos_token_id": MANY,
    },
    {"bad_words_ids": [[56, 53], [73]], "suppress_tokens": [97, 10]},
    {"sequence_bias": [[[5], 9.0], [[5, 5], -20.0]]},
    {"min_new_tokens": 3, "eos_token_id": MANY},
    {"forced_eos_token_id": [9, 7], "num_beams": 2, "pad_token_id": 8, "eos_token_id": MANY},
    {"exponential_decay_length_penalty": (1, 1.5), "eos_token_id": MANY},
    {"encoder_no_repeat_ngram_size": 2},
    {"encoder_repetition_penalty": 1.5, "num_beams": 2},
    {"begin_suppress_tokens": [97, 45], "renormalize_logits": True, "remove_invalid_values": True},
    {"num_beams": 4, "num_return_sequences": 2, "eos_token_id": MANY, "early_stopping": True},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": -1.0, "eos_token_id": MANY},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 1.5, "eos_token_id": MANY},
    {"do_sample": True},
    {"do_sample": True, "num_return_sequences": 3, "top_p": 0.8, "temperature": 0.7, "eos_token_id": MANY},
    {"do_sample": True, "num_beams": 3, "num_return_sequences": 2, "top_k": 20, "eos_token_id": MANY},
    {"do_sample": True, "typical_p": 0.5, "min_p": 0.05, "top_k": None},
    {"do_sample": True, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "top_h": 0.7},
    {"min_p": 0.5, "temperature": 0.1, "top_p": 0.1},
    {"stop_strings": STOPS[1:]},
    {"min_length": 8, "eos_token_id": MANY},
    {"max_length": 9, "forced_eos_token_id": 9, "begin_suppress_tokens": [97, 45]},
    {
        "max_length": 10,
        "num_beams": 2,
        "early_stopping": "never",
        "length_penalty": 1.5,
        "eos_token_id": MANY,
    },
    {"max_length": 9, "min_length": 7, "eos_token_id": MANY, "encoder_no_repeat_ngram_size": 2},
    {"stop_strings": "cab", "num_beams": 3, "num_return_sequences": 2, "eos_token_id": MANY},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@torch.no_grad()
def test_an_option_gives_the_tokens_of_generate(options: dict[str, Any]):
    request = prompts(5, 3, 4)
    expected = generated(request, **options)
    assert by_hand(request, **options).equal(expected)
    assert by_hand(request, bucket=3, **options).equal(expected)


LONG = {"max_length": 9, "num_beams": 2, "min_length": 7, "eos_token_id": MANY, "forced_eos_token_id": 9}


def test_lengths_with_the_prompt_are_those_of_each_request():
    pipeline = from_transformers(MODEL, batch=(4,), tokens=(8,), **LONG)
    with pipeline.plan().load() as session:
        for request in (prompts(5, 3, 4), prompts(2), prompts(8, 2)):
            assert session(**request)["tokens"].equal(generated(request, **LONG))
    # A prompt that leaves no room is refused before anything runs.
    stage = lengths_room.PromptWidth(4, 9)
    refuses(InputError, "max_length=9 counts them", lambda: stage.forward(prompts(9)["input_ids"]))


@pytest.mark.parametrize("options", [CASES[2], CASES[8], CASES[15], CASES[16]], ids=str)
def test_a_pipeline_gives_the_tokens_of_generate(options: dict[str, Any]):
    request = prompts(5, 3, 4)
    expected = generated(request, **options)
    pipeline = from_transformers(MODEL, max_new_tokens=NEW, batch=(4,), tokens=(8,), **options)
    seed = {"seed": SEED} if options.get("do_sample") else {}
    with pipeline.plan().load() as session:
        assert session(**request, **seed)["tokens"].equal(expected)


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ({"num_return_sequences": 2, "do_sample": True, "encoder_no_repeat_ngram_size": 2}, "cpu"),
        (
            {
                "num_beams": 3,
                "repetition_penalty": 1.3,
                "eos_token_id": MANY,
                "negative_prompt_ids": [[7, 8, 9]],
            },
            "cpu",
        ),
        ({"cache": (6,)}, "neuron-emulated"),
    ],
    ids=str,
)
def test_guidance_runs_the_model_a_second_time_as_generate_does(options: dict[str, Any], device: str):
    request, scale = prompts(5, 3, 4), {"guidance_scale": 1.7, "max_new_tokens": 4}
    pipeline = from_transformers(MODEL, batch=(4,), tokens=(5,), **scale, **options)
    plan = pipeline.plan(device=device)
    known = {option: value for option, value in options.items() if option != "cache"}
    if "negative_prompt_ids" in known:
        known["negative_prompt_ids"] = torch.tensor([[7, 8, 9]]).expand(3 * 3, -1)
    expected = generated(request, **{**known, **scale})
    assert not generated(request, **{**known, "max_new_tokens": 4, "guidance_scale": 1}).equal(expected)
    seed = {"seed": SEED} if options.get("do_sample") else {}
    with plan.load() as session:
        assert session(**request, **seed)["tokens"].equal(expected)
    # Both runs have one set of weights, and each a cache that is updated where it is.
    if device != "cpu":
        assert [state.name.partition(".")[2] for state in plan.states] == [
            *("keys_0", "values_0", "guide_keys_0", "guide_values_0")
        ]
        assert any({"prefill", "decode-6/decode"} <= set(item.stages) for item in plan.applications)


class Clock:
    """A clock that goes on by a second each time it is read, once it is started."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def time(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({}, 3),
        ({"num_beams": 2}, 3),
        ({"do_sample": True, "num_return_sequences": 2, "eos_token_id": MANY}, 4),
    ],
    ids=str,
)
def test_a_request_ends_by_strings_and_by_time(
    options: dict[str, Any], seconds: int, monkeypatch: pytest.MonkeyPatch
):
    options = {"stop_strings": ["abcabc", "bbba", "cc"], "max_time": seconds, **options}
    texts = ["ab b c a", "b", "aab cab"]
    request = TOKENIZER(texts, padding=True, padding_side="left", return_tensors="pt")
    request.pop("token_type_ids", None)
    pipeline = from_transformers(
        MODEL, TOKENIZER, max_new_tokens=NEW, batch=(4,), tokens=(8,), check_every=4, **options
    )
    plan = pipeline.plan()
    steps = [call.name for call in plan.calls]
    assert steps.index("clock") < steps.index("prefill")
    monkeypatch.setattr(stopping_room.library, "time", Clock())
    monkeypatch.setattr(stopping_room, "time", Clock())
    expected = generated(request, **options)
    seed = {"seed": SEED} if options.get("do_sample") else {}
    with plan.load() as session:
        assert session(text=texts, **seed)["tokens"].equal(expected)


@settings(max_examples=12, deadline=None)
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "num_beams": st.integers(1, 4),
            "do_sample": st.booleans(),
            "early_stopping": st.sampled_from([True, False, "never"]),
            "length_penalty": st.sampled_from([-1.0, 0.0, 0.7, 2.0]),
            "eos_token_id": st.lists(st.integers(0, 98), min_size=1, max_size=30, unique=True),
            "pad_token_id": st.integers(0, 98),
            "min_new_tokens": st.integers(0, NEW),
            "min_length": st.integers(0, 9),
            "max_length": st.integers(7, 11),
            "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
            "no_repeat_ngram_size": st.integers(0, 3),
            "encoder_no_repeat_ngram_size": st.integers(0, 2),
            "bad_words_ids": st.lists(st.lists(st.integers(0, 98), min_size=1, max_size=3), min_size=1),
            "forced_eos_token_id": st.integers(0, 98),
            "temperature": st.sampled_from([0.5, 2.0]),
            "top_k": st.sampled_from([None, 2, 30]),
            "top_p": st.sampled_from([0.3, 0.9]),
            "stop_strings": st.lists(st.sampled_from(STOPS), min_size=1, max_size=3),
        },
    ),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
@torch.no_grad()
def test_any_options_give_the_tokens_of_generate(options: dict[str, Any], lengths: list[int]):
    request = prompts(*lengths)
    assert by_hand(request, bucket=len(lengths), **options).equal(generated(request, **options))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    length=st.integers(1, 9),
    size=st.integers(1, 4),
    few=st.integers(1, 4),
)
def test_a_processor_on_a_buffer_is_the_class_on_the_ids(seed: int, length: int, size: int, few: int):
    """Kind: a filled up buffer is read as if it held tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(20 - few, 20, (3, length), generator=generator)
    scores = torch.randn(3, 20, generator=generator)
    words = [[19, 18], [17], [19, 19, 19]]
    for processor in (
        library.NoRepeatNGramLogitsProcessor(size),
        library.RepetitionPenaltyLogitsProcessor(1.5),
        library.NoBadWordsLogitsProcessor(words),
        library.SequenceBiasLogitsProcessor([[word, -2.0] for word in words]),
    ):
        chain = processors_room.follow_processors([processor], 1, 10, 20)
        if chain is None:
            pytest.skip(f"{type(processor).__name__} of this version runs on the host")
        for before in range(1, length + 1):
            new = torch.nn.functional.pad(ids[:, before:], (0, 10 - length + before), value=3)
            filled = torch.nn.functional.pad(ids[:, :before], (2, 0), value=20)
            result = chain(scores, torch.tensor([length - before]), new, filled, filled >= 0)
            assert result.equal(processor(ids, scores.clone()))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 4), count=st.sampled_from([1, 3]))
def test_drawing_is_multinomial_after_the_same_seed(seed: int, rows: int, count: int):
    weights = torch.randn(rows, 50, generator=torch.Generator().manual_seed(seed)).mul(3).softmax(1)
    torch.manual_seed(seed)
    noise = sampling_room.SampleNoise(sampling_room.TensorSpec((1, 50)))
    random = sampling_room.SeedState().forward(seed)
    for _ in range(2):
        drawn, random = noise.forward(random, weights)
        expected = torch.multinomial(weights, count)
        assert sampling_room.draw_tokens(weights, drawn, count).equal(expected)


def test_the_generator_of_the_caller_is_left_alone():
    before = torch.get_rng_state()
    with torch.no_grad():
        by_hand(prompts(3), do_sample=True)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"penalty_alpha": 0.5, "top_k": 4}, "penalty_alpha"),
        ({"repetition_penalty": -1.0}, "penalty"),
        ({"guidance_scale": 2.0, "context": 12}, "guidance_scale"),
        ({"guidance_scale": 2.0, "negative_prompt_ids": [[5, 99]]}, "negative_prompt_ids has 99"),
        ({"guidance_scale": 2.0, "negative_prompt_ids": [5]}, "one row of ids"),
        ({"negative_prompt_ids": [[5]]}, "read with guidance_scale alone"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_name(options: dict[str, Any], message: str):
    with pytest.raises(GraphError, match=message):
        from_transformers(MODEL, batch=(1,), tokens=(4,), **options)


def test_the_plan_says_what_runs_on_the_host():
    pipeline = from_transformers(
        MODEL, batch=(1,), tokens=(4,), max_new_tokens=3, encoder_no_repeat_ngram_size=2
    )
    assert "process" in str(pipeline.plan())
    assert MODEL.config.pad_token_id == PAD
