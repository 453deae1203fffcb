"""State of an application on the emulated device: written by one program, updated by another, gone with the session."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from orchestrator import Dim
from orchestrator.program import Application, ProgramState
from orchestrator.runner.load.load import applications_of
from orchestrator.store import ArtifactStore
from orchestrator_neuron.emulated.device import DeviceError
from tests.neuron.programs import emulated_backend, load
from tests.states import CACHE, STEPS, Writer, generation, prompt, words_by_hand

pytestmark = pytest.mark.usefixtures("shared_store")

EMULATED = "neuron-emulated"


@pytest.mark.parametrize("device", ["cpu", EMULATED])
def test_words_are_those_of_the_model_by_hand_request_after_request(device: str):
    model = Writer()
    with generation(model).plan(device).load() as session:
        for seed in range(4):
            words = prompt(seed)
            assert torch.equal(session(prompt=words)["tokens"], words_by_hand(model, words))


def test_a_token_is_all_that_crosses_the_link(tmp_path: Path):
    model = Writer()
    plan = generation(model).plan(EMULATED, options={"tp_degree": 2}).compile(tmp_path)
    assert len(ArtifactStore(tmp_path).entries()) == 1
    with plan.load() as session:
        session(prompt=prompt())
        counts = session.stats
    assert counts["upload_bytes"] == 2 * prompt().nbytes
    assert counts["download_bytes"] == STEPS * 4
    assert counts["download_bytes"] == plan.summary["download_bytes"]


@pytest.mark.parametrize("reads", [False, True], ids=["an input", "of a host stage"])
def test_loops_after_one_another_go_on_with_one_cache_at_every_size(reads: bool):
    model = Writer()
    plan = generation(model, loops=(1, STEPS - 1), batch=Dim("batch", (1, 2)), reads=reads).plan(EMULATED)
    with plan.load() as session:
        for size in (2, 1, 2):
            words = prompt(size, size)
            results = session(prompt=words)
            tokens = torch.cat([results["tokens"], results["tokens-1"]])
            assert torch.equal(tokens, words_by_hand(model, words))
        # Of the five prompts in all of them nothing but words crosses the link.
        for counts in (session.stats, session.stats["measured"][EMULATED]):
            assert (counts["upload_bytes"], counts["download_bytes"]) == (5 * prompt().nbytes, 5 * STEPS * 4)


def test_chunks_of_a_request_have_the_state_one_after_the_other():
    model = Writer()
    batch = Dim("batch", (1, 2), batch=True)
    plan = generation(model, loops=(1, STEPS - 1), batch=batch, reads=True).plan(EMULATED)
    assert len(plan.states) == 1
    with plan.load() as session:
        for size in (5, 1):
            words = prompt(size, size)
            results = session(prompt=words)
            tokens = torch.cat([results["tokens"], results["tokens-1"]])
            assert torch.equal(tokens, words_by_hand(model, words))
            seen = session.stats["measured"][EMULATED]
        assert (seen["upload_bytes"], seen["download_bytes"]) == (6 * prompt().nbytes, 6 * STEPS * 4)


def test_a_stream_of_requests_in_chunks_has_the_words_of_each():
    model = Writer()
    plan = generation(model, batch=Dim("batch", (1, 2), batch=True), reads=True).plan(EMULATED)
    prompts = [prompt(seed, 3) for seed in range(3)]
    with plan.load() as session:
        results = list(session.stream({"prompt": words} for words in prompts))
    for words, result in zip(prompts, results, strict=True):
        assert torch.equal(result["tokens"], words_by_hand(model, words))


def test_requests_of_several_threads_have_their_own_words():
    model = Writer()
    with generation(model).plan(EMULATED).load() as session, ThreadPoolExecutor(3) as pool:
        prompts = [prompt(seed) for seed in range(9)]
        results = list(pool.map(lambda words: session(prompt=words)["tokens"], prompts))
    for words, result in zip(prompts, results, strict=True):
        assert torch.equal(result, words_by_hand(model, words))


def test_a_stream_has_the_words_of_each_of_its_requests():
    model = Writer()
    prompts = [prompt(seed) for seed in range(3)]
    with generation(model).plan(EMULATED).load() as session:
        results = list(session.stream({"prompt": words} for words in prompts))
    for words, result in zip(prompts, results, strict=True):
        assert torch.equal(result["tokens"], words_by_hand(model, words))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_no_state_gives_the_same_words(dtype: str):
    model = Writer()
    options = {"torch_dtype": dtype}
    plain = generation(model, collect=("token", "cache")).plan(EMULATED, options=options)
    stateful = generation(model).plan(EMULATED, options=options)
    assert (len(plain.states), len(stateful.states)) == (0, 1)
    with plain.load() as one, stateful.load() as other:
        for seed in range(2):
            assert torch.equal(one(prompt=prompt(seed))["tokens"], other(prompt=prompt(seed))["tokens"])


def _application(model: Writer) -> Application:
    pipeline = generation(model)
    ((_, application),) = applications_of(pipeline.plan(EMULATED), pipeline.graph)
    return application


def test_a_state_is_refused_until_a_program_has_written_it_and_warming_up_leaves_nothing(tmp_path: Path):
    model, words = Writer(), prompt()
    application = _application(model)
    assert application.states == (ProgramState("talk.cache", CACHE),)
    with emulated_backend() as backend:
        calls = load(backend, application, tmp_path)
        token, place = torch.zeros(1, dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
        with pytest.raises(DeviceError, match=r"'talk\.cache', which no program has written"):
            calls["talk/decode"](backend.upload(token), backend.upload(place))
        (first,) = calls["prefill"](backend.upload(words))
        second, _ = calls["talk/decode"](first, backend.upload(place))
        reference = words_by_hand(model, words)
        assert torch.equal(backend.download(second), reference[0])


def test_memory_of_a_state_is_there_once(tmp_path: Path):
    model = Writer()
    application = _application(model)
    with emulated_backend() as backend:
        calls = load(backend, application, tmp_path)
        taken = backend.open_device.allocated_bytes[0]
        weights = sum(tensor.nbytes for tensor in model.parameters())
        outputs = sum(item.spec.nbytes({}) for program in application.programs for item in program.results)
        routes = sum(program.route * 4 for program in application.programs)
        assert taken == weights + outputs + routes + CACHE.nbytes({})
        assert len(calls) == 3
