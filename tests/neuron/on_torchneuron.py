"""The device ``neuron`` of TorchNeuron, on the simulated one: a process by itself, which has one spare device type.

Each ``check_*`` function is one test of ``test_torchneuron.py``; run as a script, this says what went wrong.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import runpy
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator import CompileError, Dim, Pipeline, PlanError, TensorSpec
from orchestrator.errors import PlanOptionError
from orchestrator.testing.backend_contract import BackendCase, BackendContract
from orchestrator_neuron.torchneuron import installation, simulated
from orchestrator_neuron.torchneuron.backend import TorchNeuronBackend
from tests.neuron.small_pipelines import (
    WIDTH,
    N,
    Running,
    attention,
    items,
    loop,
    one_stage,
    rows,
    running,
    three_stages,
)


def check_compiles_as_often_as_there_are_buckets(board: simulated.Board):
    """200 random sizes over three stages: nothing is compiled after load, neither a graph nor an operation."""
    pipeline = three_stages()
    board.compiles.clear()
    on_cpu = pipeline.plan(device="cpu").load()
    with pipeline.plan(device="neuron").load() as session:
        assert len(board.compiles) == 3 * len(N.buckets)
        signatures = set(board.signatures)
        board.reset()
        draw = random.Random(7)
        for _ in range(200):
            x = torch.randn(draw.randint(1, 8), WIDTH)
            torch.testing.assert_close(session(x=x)["y"], on_cpu(x=x)["y"])
        assert len(board.compiles) == 3 * len(N.buckets)
        assert board.signatures == signatures
        stats = session.stats
        assert stats["measured"]["neuron:0"] == {"compiles": 9}
        assert stats["compiles"] == 0
        for name in ("uploads", "upload_bytes", "downloads", "download_bytes"):
            assert stats[name] == getattr(board, name), name


def check_programs_of_an_earlier_load_are_in_the_cache(board: simulated.Board):
    """Graphs are the same each time: a second load, of other weights, finds all of them."""
    board.compiles.clear()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(board, "cache", Path(folder))
        for rounds in (1, 2):
            torch._dynamo.reset()
            one_stage(nn.Linear(WIDTH, WIDTH).eval(), N, WIDTH).plan(device="neuron").load().close()
            assert len(board.compiles) == len(list(Path(folder).iterdir())) == len(N.buckets)
            assert board.cached == (rounds - 1) * len(N.buckets)


def check_a_cold_load_compiles_for_the_requests_that_come(board: simulated.Board):
    """With ``warm=False`` nothing is compiled at load, and each bucket once, when a request brings it."""
    board.compiles.clear()
    with three_stages().plan(device="neuron").load(warm=False) as session:
        assert not board.compiles
        for rows in (3, 4, 3):
            session(x=torch.randn(rows, WIDTH))
        assert session.stats["compiles"] == len(board.compiles) == 3


def check_many_buckets_are_compiled_each(board: simulated.Board):
    """More sizes than Dynamo keeps for one function."""
    board.compiles.clear()
    sizes = tuple(range(1, torch._dynamo.config.recompile_limit + 2))
    with one_stage(nn.ReLU(), Dim("n", sizes), 4).plan(device="neuron").load() as session:
        assert len(board.compiles) == len(sizes)
        assert session(x=-torch.ones(sizes[-1], 4))["y"].eq(0).all()
    assert len(board.compiles) == len(sizes)


def check_the_names_of_the_device(_board: simulated.Board):
    """``neuron`` is TorchNeuron where torch knows it, also under the name that torch had before; ``nxdi`` is not."""
    pipeline = three_stages()
    for device in ("neuron", "neuron:0", "privateuseone:0", torch.device("neuron")):
        group = pipeline.plan(device=device).groups[0]
        assert (group.device, group.backend) == ("neuron:0", "neuron")
    assert pipeline.plan(device="neuron:1").groups[0].device == "neuron:1"
    group = pipeline.plan(device="nxdi").groups[0]
    assert (group.device, group.backend) == ("nxdi", "nxdi")


def check_two_cores(board: simulated.Board):
    """Each core is a group of its own, with its memory; between two a value goes over the host."""
    pipeline = three_stages()
    plan = pipeline.plan(device="neuron:0", placement={"c": "neuron:1"}, memory={"neuron:1": "2kB"})
    assert dict(plan.weights).keys() == {"neuron:0", "neuron:1"}
    with plan.load() as session:
        board.reset()
        x = torch.randn(4, WIDTH)
        torch.testing.assert_close(session(x=x)["y"], pipeline.plan().load()(x=x)["y"])
        assert (board.uploads, board.downloads) == (2, 2)
        assert session.stats["upload_bytes"] == board.upload_bytes
    with pytest.raises(PlanError, match=r"memory|budget"):
        pipeline.plan(device="neuron:0", placement={"c": "neuron:1"}, memory={"neuron:1": 400})


def check_a_core_that_is_not_there(_board: simulated.Board):
    with pytest.raises(CompileError, match="torch sees 2 logical Neuron cores"):
        three_stages().plan(device="neuron:7").load()


def check_a_dim_of_any_size_is_refused(_board: simulated.Board):
    with pytest.raises(
        PlanError, match=r"has no buckets \(any=True\), but 'neuron:0' compiles static shapes"
    ):
        one_stage(nn.Linear(4, 4), Dim("n", any=True), 4).plan(device="neuron")


def check_float64_is_refused(_board: simulated.Board):
    with pytest.raises(PlanError, match="64-bit floating point in 32"):
        one_stage(nn.Identity(), 2, 4, dtype=torch.float64).plan(device="neuron")


def check_what_cannot_be_one_graph_is_refused_at_load(_board: simulated.Board):
    """The stage is named, with the way out; run operation by operation it is right."""

    def breaks(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(CompileError, match=r"Stage 'net' cannot be compiled .*config=\{'eager': True\}"):
        one_stage(breaks, 2, 4).plan(device="neuron").load()
    with one_stage(breaks, 2, 4).plan(device="neuron", options={"eager": True}).load() as session:
        assert session(x=torch.zeros(2, 4))["y"].eq(1).all()
        assert session.stats["measured"]["neuron:0"]["compiles"] == 0


def check_operations_that_fall_back(board: simulated.Board):
    """They are notes of the plan and crossings in its counts; the device counts the same for random sizes."""
    pipeline = running()
    plan = pipeline.plan(device="neuron")
    (note,) = plan.notes
    assert note.startswith("Call 'sum' runs aten::cumsum, aten::cumprod on the host")
    # At 8 rows: x and the weight come down, both results go up; beside these, the request itself.
    assert plan.summary["download_bytes"] == 2 * 8 * WIDTH * 4 + WIDTH * 4
    assert plan.summary["uploads"] == plan.summary["downloads"] == 3
    assert type(plan).from_json(plan.to_json()) == plan
    for wrong, why in (
        ({"upload_bytes": 1}, "call 'sum' is"),
        ({"uploads": -1}, "on the host"),
        ({"sizes": (("n", 3),)}, "at sizes .*which it never has"),
        ({"sizes": (("n", 4),)}, "says twice"),
    ):
        record = replace(plan.call("sum").host_operations[0], **wrong)
        calls = (
            replace(call, host_operations=(record, *call.host_operations[1:])) if call.name == "sum" else call
            for call in plan.calls
        )
        with pytest.raises(PlanError, match=why):
            pipeline.bind(replace(plan, calls=tuple(calls)))
    on_cpu = pipeline.plan().load()
    board.compiles.clear()
    with pipeline.bind(plan).load() as session:
        assert len(board.compiles) == 2 * len(N.buckets)
        board.reset()
        signatures = set(board.signatures)
        draw = random.Random(8)
        for _ in range(20):
            x = torch.randn(draw.randint(1, 8), WIDTH)
            torch.testing.assert_close(session(x=x)["y"], on_cpu(x=x)["y"])
        for name in ("uploads", "upload_bytes", "downloads", "download_bytes"):
            assert session.stats[name] == getattr(board, name), name
        assert board.fallbacks == {"aten::cumsum": 20, "aten::cumprod": 20}
        assert board.signatures == signatures


def check_operations_that_fall_back_refused(board: simulated.Board):
    """While planning where that is known, else at load; a stage that is compiled whole has no such operation."""
    options = {"fallback": "refuse"}
    with pytest.raises(
        PlanError, match=r"Stage 'sum' runs aten::cumsum, aten::cumprod, which TorchNeuron has no"
    ):
        running().plan(device="neuron", options=options)
    assert not three_stages().plan(device="neuron", options=options).notes
    plan = one_stage(nn.ReLU(), 2, 4).plan(device="neuron", options={**options, "eager": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(sys.modules["torch_neuronx"]), "get_fallback_ops", lambda: ["aten::relu"])
        with pytest.raises(
            CompileError, match="Stage 'net' ran aten::relu on the host, which the plan does not say"
        ):
            plan.load()
        with pytest.warns(UserWarning, match="Stage 'net' ran aten::relu on the host"):
            one_stage(nn.ReLU(), 2, 4).plan(device="neuron", options={"eager": True}).load().close()
    whole = Pipeline("whole")
    whole.output(
        "y",
        whole.add("sum", Running().eval(), config={"eager": False})(whole.input("x", TensorSpec((2, WIDTH)))),
    )
    with pytest.raises(CompileError, match=r"No lowering for \['aten::cumprod', 'aten::cumsum'\]"):
        whole.plan(device="neuron", options=options).load()


def check_other_pipelines(board: simulated.Board):
    """Chunks, loops, maps, states, convolutions and lookups: as on the CPU, as counted, nothing compiled after load."""
    steps = {"x": torch.randn(2, WIDTH), "factors": torch.randn(3, 1)}
    picture = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    qk = {name: torch.randn(1, 2, 4, WIDTH) for name in "qk"}
    for pipeline, requests in (
        (three_stages(Dim("n", (2, 4), batch=True)), rows(1, 3, 4, 7, 9)),
        (loop(in_place=False), [steps]),
        (loop(in_place=True), [steps]),
        (items(), [{"items": list(torch.randn(count, WIDTH))} for count in (0, 1, 3)]),
        (attention(), [qk]),
        (one_stage(picture, 1, 3, 8, 8), [{"x": torch.randn(1, 3, 8, 8)}]),
        (
            one_stage(nn.Embedding(9, 4).eval(), 2, 3, dtype=torch.int64),
            [{"x": torch.randint(0, 9, (2, 3))}],
        ),
    ):
        plan, on_cpu = pipeline.plan(device="neuron"), pipeline.plan().load()
        assert not plan.notes
        with plan.load() as session:
            board.reset()
            known = (set(board.signatures), len(board.compiles))
            for request in requests:
                torch.testing.assert_close(session(**request)["y"], on_cpu(**request)["y"])
            assert (board.signatures, len(board.compiles)) == known, plan.pipeline
            for name in ("uploads", "upload_bytes", "downloads", "download_bytes"):
                assert session.stats[name] == getattr(board, name), (plan.pipeline, name)


def check_layouts_and_modes(board: simulated.Board):
    """A graph is compiled for one layout and one set of modes; whatever a caller has set, none is compiled again."""
    pipeline = Pipeline("turned")
    value = pipeline.input("x", TensorSpec((N, 1, WIDTH), pad=0.0))
    value = pipeline.add("turn", lambda x: x.transpose(1, 2) * 2)(value)
    value = pipeline.add("back", lambda x: x.transpose(1, 2)[:, :, :1])(value)
    pipeline.output("y", pipeline.add("last", nn.Linear(1, 4).eval())(value))
    on_cpu = pipeline.plan().load()
    with pipeline.plan(device="neuron").load() as session:
        compiles, signatures = len(board.compiles), set(board.signatures)
        for modes in (
            contextlib.nullcontext(),
            torch.inference_mode(),
            torch.enable_grad(),
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            x = torch.randn(WIDTH, 1, 3).transpose(0, 2)
            with modes:
                result = session(x=x)["y"]
            torch.testing.assert_close(result, on_cpu(x=x)["y"])
        assert (len(board.compiles), board.signatures) == (compiles, signatures)


class TestContract(BackendContract):
    @pytest.fixture
    def case(self):
        return BackendCase(
            TorchNeuronBackend, "neuron", {"eager": True}, absent="neuron:7", other="neuron:1", exact=False
        )


def check_the_contract_of_backends(_board: simulated.Board):
    """All that the runner asks of a device, tried on this one."""
    arguments = ["-q", "-x", "-W", "ignore", "-p", "no:cacheprovider", f"{__file__}::TestContract"]
    assert pytest.main(arguments) == 0


def check_the_example_of_the_docs(board: simulated.Board):
    path = Path(__file__).parents[2] / "docs" / "how-to" / "torchneuron_example.py"
    assert runpy.run_path(str(path))["main"](board) == 2


def check_memory_of_a_core(board: simulated.Board):
    """A core with less memory than planned for is refused when it is opened, with the way out."""
    plan = three_stages().plan(device="neuron")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board, "memory", 1_000_000)
        with pytest.raises(
            CompileError, match=r"has 1000000 bytes of memory, and the plan may use 24000000000"
        ):
            plan.load()
        three_stages().plan(device="neuron", memory={"neuron:0": 1_000_000}).load().close()


def check_options(_board: simulated.Board):
    with pytest.raises(PlanOptionError, match=r"'fallback' is 'allow' or 'refuse', not 'maybe'"):
        three_stages().plan(device="neuron", options={"fallback": "maybe"})
    with pytest.raises(PlanOptionError, match="logical_nc_config"):
        three_stages().plan(device="neuron", options={"logical_nc_config": 3})


def check_versions(_board: simulated.Board):
    """A package for another torch is refused; one that this was not written against is warned of."""
    plan = three_stages().plan(device="neuron")
    release = ".".join(torch.__version__.split(".")[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(installation, "package_version", lambda: "2.4.3.0")
        with pytest.raises(
            CompileError, match=rf"torch-neuronx 2\.4\.3\.0 is for torch 2\.4.*{re.escape(release)}"
        ):
            plan.load()
        patch.setattr(installation, "PACKAGE", installation.packages.Package("x", "x", (9,), (10,), "9"))
        patch.setattr(installation, "package_version", lambda: f"{release}.3.0")
        with pytest.warns(UserWarning, match="other versions may work"):
            plan.load().close()


def check_without_torchneuron(_board: simulated.Board):
    """The name means NxD Inference then, and the plan says so; a plan for one is not run by the other."""
    plan = three_stages().plan(device="neuron")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(installation, "is_known", lambda: False)
        other = three_stages().plan(device="neuron")
        assert other.groups[0].device == "nxdi"
        assert any("'neuron' is NxD Inference here" in note for note in other.notes)
        assert not three_stages().plan(device="nxdi").notes
        with pytest.raises(PlanError, match=r"torch has no device 'neuron:1' here.*'nxdi'"):
            three_stages().plan(device="neuron:1")
        with pytest.raises(
            CompileError, match=r"made for 'neuron:0' of the backend 'neuron', and here .*'nxdi'"
        ):
            plan.load()


CHECKS: dict[str, Callable[[simulated.Board], None]] = {
    name.removeprefix("check_"): function
    for name, function in list(globals().items())
    if name.startswith("check_")
}


def main() -> None:
    """Runs all checks on one simulated board and prints, as JSON, what went wrong by check."""
    board = simulated.install(missing=("aten::cumsum", "aten::cumprod"))
    results = {}
    for name, check in CHECKS.items():
        torch._dynamo.reset()
        try:
            check(board)
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
