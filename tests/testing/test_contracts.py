"""The project's own stages and backends keep the contracts that it asks of others'."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import orchestrator_stages
from orchestrator import Dim, TensorSpec
from orchestrator.backends.torch_backend import TorchBackend
from orchestrator.testing import BackendCase, BackendContract, NullBackend, StageCase, StageContract, stages
from orchestrator.testing.plugin import TOYS
from orchestrator.testing.pytest_plugin import make_plugins
from orchestrator_stages.demos.faces.letterbox import PHOTO
from orchestrator_stages.demos.faces.propose import PROPOSALS
from orchestrator_stages.demos.faces.refine import CANDIDATES

ROWS = TensorSpec((Dim("batch", buckets=(2, 4)), 4), pad=0)
BARE = TensorSpec(("batch", 4), pad="repeat_first")
SQUARE = TensorSpec((1, 3, 64, 64), torch.uint8)


def host(make: Any, feeds: Any, **more: Any) -> StageCase:
    return StageCase(make, feeds, host=True, **more)


TOY_CASES = {
    "double": StageCase(stages.Double, {"x": ROWS}),
    "double, any size": StageCase(stages.Double, {"x": TensorSpec((Dim.dynamic("h"), 3))}),
    "double, int": StageCase(stages.Double, {"x": TensorSpec((2, 3), torch.int64)}),
    "add": StageCase(stages.Add, {"a": ROWS, "b": ROWS}),
    "add, one port": StageCase(stages.Add, {"a": ROWS}),
    "concat": StageCase(stages.Concat, {"a": BARE, "b": BARE}, sizes={"batch": (2, 5)}),
    "split": StageCase(stages.SplitHalves, {"x": ROWS}),
    "stats": StageCase(stages.TotalAndShift, {"x": ROWS}),
    "linear": StageCase(stages.Linear, {"input": BARE}, sizes={"batch": 3}),
    "linear, by name": StageCase(lambda: "toy.linear", {"input": ROWS}, config={"features_out": 9}),
    "fixed, smaller": StageCase(stages.FixedWidth, {"x": ROWS}),
    "fixed, larger": StageCase(lambda: stages.FixedWidth({"width": 3, "pad": 1.5}), {"x": ROWS}),
    "crops": host(stages.Crops, {"x": ROWS}),
    "rows": host(stages.Rows, {"x": ROWS}),
    "slow": StageCase(lambda: stages.Slow(0.001), {"x": ROWS}),
    "a function": StageCase(lambda: torch.relu, {"x": ROWS}, inputs=("x",)),
}


@pytest.mark.parametrize("name", TOYS)
def test_every_toy_can_be_had_by_name(name):
    assert callable(make_plugins().registry.stages.get(name).load()())


class TestToyStages(StageContract):
    @pytest.fixture(params=TOY_CASES)
    def case(self, request):
        return TOY_CASES[request.param]


def plugins():
    manager = make_plugins()
    manager.register(orchestrator_stages)
    return manager


def crops(dim, side):
    return TensorSpec((Dim(dim.name, buckets=(2, 4)), 3, side, side), pad=0)


def photo(sizes):
    count = sizes["height"] * sizes["width"] * 3
    return {"photo": torch.arange(count).remainder(255).to(torch.uint8).reshape(*sizes.values(), 3)}


def annotated(sizes):
    face = {
        "box": [1.0, 1.0, 4.0, 4.0],
        "score": 0.9,
        "landmarks": [[2.0, 2.0], [3.0, 3.0]],
    }
    return {**photo(sizes), "faces": [face]}


def worded(sizes):
    return {**photo(sizes), "words": [{"text": "a", "box": [1, 1, 4, 4], "sureness": 0.9, "line": 0}]}


SHIPPED_CASES = {
    "vision-text.vision": {
        "feeds": {"image": TensorSpec((Dim("batch", buckets=(1, 2)), 3, 224, 224), pad=0)},
        "config": {"channels": 4, "hidden": 8},
    },
    "vision-text.fusion": {
        "feeds": {"vision": TensorSpec(("batch", 8), pad=0), "text": TensorSpec(("batch", 16), pad=0)},
        "sizes": {"batch": (2, 4)},
        "config": {"hidden": 8, "text": 16, "classes": 12},
    },
    "faces.letterbox": {"feeds": {"photo": PHOTO}, "host": True, "values": photo, "config": {"size": 64}},
    "faces.pyramid": {
        "feeds": {"square": SQUARE},
        "config": {"sides": [32, 16]},
        "ports": ("level1", "level2"),
    },
    "faces.pnet": {"feeds": {"image": TensorSpec((1, 3, 24, 24))}, "ports": ("scores", "offsets")},
    "faces.rnet": {"feeds": {"crops": crops(PROPOSALS, 24)}, "ports": ("scores", "offsets")},
    "faces.onet": {"feeds": {"crops": crops(CANDIDATES, 48)}, "ports": ("scores", "landmarks")},
    "faces.annotate": {"feeds": {"photo": PHOTO, "faces": list}, "host": True, "values": annotated},
    "translate.begin": {
        "feeds": {"ids": TensorSpec((Dim("rows", buckets=(1, 3)), 4), torch.int64, pad=-1)},
        "config": {"steps": 6},
        "ports": ("token", "state", "finished", "written"),
    },
    "scene-text.fit": {
        "feeds": {"photo": PHOTO},
        "host": True,
        "values": photo,
        "config": {"sides": [32, 64]},
    },
    "scene-text.annotate": {"feeds": {"photo": PHOTO, "words": list}, "host": True, "values": worded},
}


class TestShippedStages(StageContract):
    @pytest.fixture(params=SHIPPED_CASES)
    def case(self, request):
        return StageCase(make=lambda: request.param, plugins=plugins(), **SHIPPED_CASES[request.param])


class TestTorchOnTheProcessor(BackendContract):
    @pytest.fixture
    def case(self):
        return BackendCase(TorchBackend, "cpu", in_place=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
class TestTorchOnCuda(BackendContract):
    @pytest.fixture
    def case(self):
        other = "cuda:1" if torch.cuda.device_count() > 1 else ""
        return BackendCase(TorchBackend, "cuda", absent="cuda:99", other=other, exact=False)


class TestNull(BackendContract):
    @pytest.fixture(params=["forms only", "computing", "deferred", "ranks"])
    def case(self, request):
        options = {
            "forms only": {},
            "computing": {"compute": True},
            "deferred": {"compute": True, "deferred": True},
            "ranks": {
                "compute": True,
                "ranks": 4,
                "static_shapes": True,
                "output_buffers": 1,
                "eager": False,
            },
        }[request.param]
        return BackendCase(
            NullBackend, "null", options, absent="null:8", other="null:1", computes=bool(options)
        )


class TestAbsentCuda:
    """What the contract says of a device that is not there holds without one."""

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_planning_needs_no_device(self):
        BackendContract().test_planning_needs_no_device(BackendCase(TorchBackend, "cuda", absent="cuda:0"))
