"""A few of the fuzzer's pipelines in every run; ``make fuzz`` runs thousands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.properties.fuzz.generate import make_recipe
from tests.properties.fuzz.judge import judge
from tests.properties.fuzz.recipe import Recipe, script, standalone
from tests.properties.fuzz.shrink import shrink

SEEDS = 120
#: Seeds that found a fault: an optional input that is left out, with a dim of its own, beside one that is cut; a
#: refusal of a region in chunks that was taken for the failure of a stage.
ONCE = (148, 1699)
GROUPS = 8


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_pipelines_are_right_or_refused_in_words(group: int):
    for seed in (*range(group, SEEDS, GROUPS), *ONCE[group::GROUPS]):
        report = judge(make_recipe(seed, compiled=0))
        assert not report.faults, f"seed {seed}: {report.faults[0]}"
        assert not report.unclear, f"seed {seed}: {report.unclear[0]}"


def test_a_seed_makes_one_recipe():
    assert [script(make_recipe(seed)) for seed in range(20)] == [
        script(make_recipe(seed)) for seed in range(20)
    ]
    assert script(make_recipe(1)) != script(make_recipe(2))


def finds_fault(recipe: Recipe) -> bool:
    """A fault of our own: by hand, every doubling is said to be another stage."""
    for block in recipe.main.blocks():
        for stage in block.stages:
            if stage.target == "Double()" and not stage.more:
                stage.hand = "Scale(3.0)"
    return judge(recipe).signature.startswith("wrong")


def test_a_fault_is_found_and_shrinks_to_a_script_that_runs_alone(tmp_path: Path):
    seed = next(seed for seed in range(200) if finds_fault(make_recipe(seed, compiled=0)))
    small = shrink(make_recipe(seed, compiled=0), finds_fault, seconds=20)
    assert finds_fault(small)
    assert sum(len(block.ops) for block in small.main.blocks()) == 1
    assert len(small.requests) == 1
    path = tmp_path / "fault.py"
    path.write_text(standalone(small, "a fault"), encoding="utf-8")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "by hand" in done.stdout
    assert "Traceback" not in done.stderr
