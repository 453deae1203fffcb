"""Commands on pipelines with loops, maps and branches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch

from orchestrator.cli.progress import Meter
from orchestrator.cli.values import describe, read_input, write_output
from tests.cli import shop
from tests.cli.conftest import Shell

TARGETS = ("shop:counting", "shop:pieces", "shop:maybe")


@pytest.fixture
def data(folder: Path) -> Path:
    numpy.save(folder / "limit.npy", numpy.full(1, 4, dtype=numpy.float32))
    numpy.save(folder / "x.npy", numpy.ones(3, dtype=numpy.float32))
    items = {str(at): torch.full((1 + at % 8,), float(at)) for at in range(11)}
    safetensors.torch.save_file(items, folder / "items.safetensors")
    return folder


# Drawing.


def test_a_loop_is_drawn_as_a_frame_around_its_body(shell: Shell):
    lines = shell("draw", "shop:counting").out.splitlines()
    assert lines[5:16] == [
        '    subgraph g0["loop outer: 2 times"]',
        '        n4{{"enter"}}',
        '        n5{{"leave"}}',
        '        subgraph g1["loop outer/inner: until done, at most 10 times"]',
        '            n2["outer/inner/count"]',
        '            n6{{"enter"}}',
        '            n7{{"leave"}}',
        "        end",
        "    end",
        '    n0 -->|"limit"| n2',
        '    n1 -->|"n"| n4',
    ]
    assert '    n5 -.->|"n"| n4' in lines


def test_a_loop_is_a_cluster_in_dot(shell: Shell):
    lines = shell("draw", "shop:counting", "-f", "dot").out.splitlines()
    outer, inner = (
        lines.index(f"{indent}subgraph cluster_g{at} {{") for at, indent in ((0, "    "), (1, " " * 8))
    )
    ends = [at for at, line in enumerate(lines) if line.strip() == "}"]
    assert (
        outer
        < inner
        < lines.index('            n2 [label="outer/inner/count" shape=box]')
        < ends[0]
        < ends[1]
    )
    assert '    n7 -> n6 [label="n" style=dotted constraint=false]' in lines


def test_a_branch_and_a_map_say_what_they_hang_on(shell: Shell):
    branch = shell("draw", "shop:maybe").out
    assert 'subgraph g0["branch see: if image given"]' in branch
    assert "[3] float32, optional" in branch
    assert 'subgraph g0["map each: in batches over item"]' in shell("draw", "shop:pieces").out
    assert "-.->" not in branch


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", ["mermaid", "dot"])
def test_every_node_is_drawn_once(shell: Shell, target: str, form: str):
    graph = getattr(shop, target.partition(":")[2])().freeze()
    lines = [line.strip() for line in shell("draw", target, "-f", form).out.splitlines()]
    for at in range(len(graph.nx)):
        drawn = [
            line for line in lines if line.startswith((f"n{at}[", f"n{at}(", f"n{at}{{", f"n{at} [label"))
        ]
        assert len(drawn) == 1


# Other commands.


@pytest.mark.parametrize("target", TARGETS)
def test_loops_are_planned_and_validated(shell: Shell, target: str):
    assert shell("validate", target, "--json").data["graph"]["loops"] >= 1
    kinds = {step["is"] for step in shell("plan", target, "--json").data["steps"]}
    assert kinds & {"LoopStep", "MapStep", "BranchStep"}
    shell("plan", target)


def test_validate_counts_optional_inputs(shell: Shell):
    assert (
        "inputs 2 (optional 1), stages 2, calls 2, loops 1, outputs 1" in shell("validate", "shop:maybe").out
    )


def test_dims_of_items_take_sizes(shell: Shell):
    done = shell("plan", "shop:pieces", "--sizes", "w=8", "--sizes", "items=1", "--json").data
    assert {dim["name"]: dim["buckets"] for dim in done["dims"]} == {"items": [1], "w": [8]}


def test_an_edge_and_a_stage_of_a_body_are_named_by_their_path(shell: Shell):
    edge = "outer/inner/count.n -> outer/inner.n[next]"
    edges = shell("plan", "shop:counting", "--residency", f"{edge}=host", "--json").data["edges"]
    reason = next(each["reason"] for each in edges if f"{each['source']} -> {each['target']}" == edge)
    assert reason.startswith("forced to the host")
    shell("plan", "shop:counting", "--placement", "outer/inner/count=cpu")
    shell("plan", "shop:counting", "--placement", "outer/inner=cpu")


def test_options_reach_a_stage_of_a_body_by_its_path(shell: Shell, data: Path):
    words = ("run", "shop:twice", "-i", f"x={data / 'x.npy'}", "--json")
    assert shell(*words).data["outputs"]["y"]["values"] == [4, 4, 4]
    assert shell(*words, "--set", "twice/scale.factor=3").data["outputs"]["y"]["values"] == [9, 9, 9]
    assert "Did you mean 'twice/scale'" in shell(*words, "--set", "again/scale.factor=3", code=2).err


def test_options_of_one_of_several_stages_of_a_name_are_refused(shell: Shell):
    done = shell("plan", "shop:twice", "--set", "both=true", "--set", "twice/scale.factor=3", code=2)
    assert (
        "'twice/scale', 'more/scale' are added as 'scale'. --set scale.OPTION=VALUE sets them all" in done.err
    )
    shell("plan", "shop:twice", "--set", "both=true", "--set", "scale.factor=3")


@pytest.mark.usefixtures("data")
def test_an_optional_input_may_be_left_out(shell: Shell):
    with_it = shell("run", "shop:maybe", "-i", "text=x.npy", "-i", "image=x.npy", "--json").data
    without = shell("run", "shop:maybe", "-i", "text=x.npy", "--json").data
    assert with_it["outputs"]["y"]["values"] == [4, 4, 4]
    assert without["outputs"]["y"]["values"] == [2, 2, 2]
    assert (with_it["stats"]["dispatches"], without["stats"]["dispatches"]) == (2, 1)


def test_a_missing_input_is_named_before_optional_ones(shell: Shell):
    lines = shell("run", "shop:maybe", code=2).err.splitlines()
    assert lines[1].strip().startswith("text: [3] float32")
    assert lines[2].strip() == "image: [3] float32, from .npy or .safetensors (optional)"


def test_a_loop_runs(shell: Shell, data: Path):
    done = shell("run", "shop:counting", "-i", f"limit={data / 'limit.npy'}", "--json").data
    assert done["outputs"]["n"]["values"] == [10]
    assert done["stats"]["dispatches"] == 6
    assert done["plan"]["dispatches"] == 21


# Lists of tensors.


def test_a_list_of_tensors_goes_through_files(shell: Shell, data: Path):
    shell("run", "shop:pieces", "-i", "items=items.safetensors", "-o", "out")
    for at in range(11):
        assert numpy.load(data / "out" / "twice" / f"{at}.npy").tolist() == [2.0 * at] * (1 + at % 8)


@pytest.mark.usefixtures("data")
def test_a_list_of_tensors_is_shown_item_by_item(shell: Shell):
    words = ("run", "shop:pieces", "-i", "items=items.safetensors")
    items = shell(*words, "--json").data["outputs"]["twice"]["items"]
    assert [item["shape"] for item in items] == [[1 + at % 8] for at in range(11)]
    rows = [line.split() for line in shell(*words).out.splitlines()]
    assert [row[0] for row in rows] == ["output", *(f"twice[{at}]" for at in range(11))]


def test_no_items_are_an_empty_list(shell: Shell, data: Path):
    (data / "none.json").write_text("[]")
    assert shell("run", "shop:pieces", "-i", "items=none.json", "--json").data["outputs"]["twice"] == {
        "value": []
    }
    shell("run", "shop:pieces", "-i", "items=none.json", "-o", "out")
    assert json.loads((data / "out" / "twice.json").read_text()) == []


def test_files_of_an_earlier_run_do_not_stay(tmp_path: Path):
    assert write_output(tmp_path, "out", [torch.ones(2), torch.zeros(3)]) == tmp_path / "out"
    (tmp_path / "out" / "notes.txt").write_text("mine")
    write_output(tmp_path, "out", [torch.ones(4)])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.npy", "notes.txt"]


def test_tensors_are_read_in_the_order_of_their_numbers(tmp_path: Path):
    path = tmp_path / "all.safetensors"
    safetensors.torch.save_file({f"t{at}": torch.tensor([at]) for at in (10, 9, 2)}, path)
    assert [int(item) for item in read_input("x", str(path), list)] == [2, 9, 10]


def test_a_mixed_list_is_no_list_of_tensors():
    assert describe("out", [torch.ones(1), "a"]) == {"value": [[1.0], "a"]}


# Progress.


def follow(pipeline, sizes: dict[str, int], **inputs) -> list[tuple[int, int]]:
    """What a bar shows in the course of a request."""
    plan = pipeline.plan(device="cpu", sizes=sizes)
    meter = Meter(plan)
    shown = [(meter.finished_calls, meter.total)]
    with plan.load() as session, session.trace() as trace:
        session.run(inputs)
    for span in trace.spans:
        if span.kind == "call":
            meter.advance(span.name)
            shown.append((meter.finished_calls, meter.total))
    assert all(0 <= done <= total for done, total in shown)
    assert [done for done, _ in shown] == list(range(len(shown)))
    assert shown[-1][0] == shown[-1][1] == session.stats["dispatches"]
    return shown


def test_a_loop_that_ends_early_fills_the_bar():
    shown = follow(shop.counting(), {}, limit=torch.full((1,), 4.0))
    assert shown[0] == (0, 21)
    assert shown[-2:] == [(5, 21), (6, 6)]


def test_more_items_than_planned_do_not_overflow():
    shown = follow(shop.pieces(most=2), {}, items=[torch.ones(2)] * 7)
    assert shown[0] == (0, 1)
    assert shown[-1] == (4, 4)


def test_a_branch_that_does_not_run_is_not_waited_for():
    assert follow(shop.maybe(), {}, text=torch.ones(3)) == [(0, 2), (1, 1)]


def test_chunks_of_a_request_are_counted_one_after_another():
    shown = follow(shop.bare(), {"n": 2}, x=torch.ones(5, 3))
    assert shown[-1] == (3, 3)
