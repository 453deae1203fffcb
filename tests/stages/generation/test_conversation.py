"""A conversation whose cache lives on: a turn gives what generate() gives over the whole, from what is new alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from orchestrator import GraphError, InputError
from orchestrator_stages import from_transformers
from tests.kit import refuses
from tests.stages.generation.tiny import PAD, prompts, tiny

conversation_room = pytest.importorskip("orchestrator_stages.generation.conversation")
NEW, ENDS = 4, [3, 4, 5, 60, 73]
SIZES: dict[str, Any] = {"batch": (4,), "tokens": (4, 8), "max_new_tokens": NEW}


def padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("check_every", [1, 3])
def test_each_turn_reads_what_is_new_and_answers_as_to_the_whole_conversation(check_every: int):
    model = tiny("llama")
    pipeline = from_transformers(model, context=36, eos_token_id=ENDS, check_every=check_every, **SIZES)
    plan = pipeline.plan()
    rows: list[list[int]] = [[], [], []]
    with plan.load() as session:
        cache: dict[str, Any] = conversation_room.begin_conversation(plan, 3)
        names = tuple(cache)
        known = [0, 0, 0]
        for turn, lengths in enumerate([(5, 2, 3), (1, 4, 2), (2, 2, 2)]):
            said = prompts(*lengths, seed=turn)
            for row, ids, mask in zip(rows, said["input_ids"], said["attention_mask"], strict=True):
                row += ids[mask == 1].tolist()
            expected = model.generate(
                **padded(rows), max_new_tokens=NEW, do_sample=False, eos_token_id=ENDS, pad_token_id=PAD
            )
            request = padded([row[start:] for row, start in zip(rows, known, strict=True)])
            result = session.run({**request, **cache}, keep_on_device=names)
            answers = result["tokens"][:, request["input_ids"].shape[1] :]
            assert answers.equal(expected[:, max(map(len, rows)) :])
            for row, answer in zip(rows, answers.tolist(), strict=True):
                ends = [place + 1 for place, token in enumerate(answer) if token in ENDS]
                row += answer[: min(ends, default=len(answer))]
            cache = {name: result[name] for name in names}
            known = [len(row) - 1 for row in rows]
            assert result["room"].item() == 36 - 8 - NEW or turn
        refuses(InputError, "room for context=36", lambda: session(**request, **cache))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("gemma3", {}, "sliding window"),
        ("llama", {"num_beams": 2}, "one answer a turn"),
        ("llama", {"repetition_penalty": 1.5}, "look at all tokens"),
        ("llama", {"min_length": 5, "eos_token_id": 7}, "count the whole conversation"),
        ("llama", {"context": 9}, "no room for one turn"),
        ("llama", {"context": 99}, "counts 64 tokens"),
        ("llama", {"context": "long"}, "number of tokens"),
    ],
)
def test_what_no_turn_can_do_is_refused(name: str, options: dict[str, Any], text: str):
    options = {"context": 30, **SIZES, **options}
    refuses(GraphError, text, lambda: from_transformers(tiny(name), **options))


def test_on_a_device_that_compiles_a_turn_moves_its_new_tokens_alone():
    """Two conversations at the same time, the second turn of each twice from one cache, and none after the end."""
    model = tiny("llama")
    pipeline = from_transformers(model, context=24, batch=(1,), tokens=(4,), max_new_tokens=3)
    plan = pipeline.plan(device="neuron-emulated")
    begin: dict[str, Any] = conversation_room.begin_conversation(plan, 1)
    first = [prompts(4, seed=seed)["input_ids"] for seed in range(2)]
    counted = ("uploads", "upload_bytes", "downloads", "download_bytes")
    with plan.load() as session:

        def run(ids: torch.Tensor, cache: dict[str, Any]) -> dict[str, Any]:
            request = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            return session.run({**request, **cache}, keep_on_device=tuple(begin))

        with ThreadPoolExecutor(2) as pool:
            turns = list(pool.map(lambda ids: run(ids, begin), first))
            before = session.stats
            caches = [{name: turn[name] for name in begin} for turn in turns]
            requests = [(turn["tokens"][:, -1:], cache) for turn, cache in zip(turns, caches, strict=True)]
            results = list(pool.map(lambda request: run(*request), requests * 2))
        after = session.stats
        for number, result in enumerate(results):
            whole = turns[number % 2]["tokens"]
            expected = model.generate(whole, attention_mask=torch.ones_like(whole), max_new_tokens=3)
            assert result["tokens"][:, 1:].equal(expected[:, whole.shape[1] :])
        # Ids and mask go up; the position, new ids, and two looks at whether it is done come down.
        turn_bytes = {"uploads": 2, "upload_bytes": 2 * 16, "downloads": 4, "download_bytes": 4 + 12 + 2}
        assert {name: (after[name] - before[name]) // 4 for name in counted} == turn_bytes
        assert {name: after["measured"]["neuron-emulated"][name] for name in counted} == {
            name: after[name] for name in counted
        }
    refuses(InputError, "is closed", lambda: run(*requests[0]))
