"""Stages of NxD's own parallel layers: planned, compiled at the plan's degree, and whole on the host."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from neuronx_distributed.parallel_layers import parallel_state
from neuronx_distributed.parallel_layers.layers import (
    ColumnParallelLinear,
    ParallelEmbedding,
    RowParallelLinear,
)
from safetensors.torch import save_file
from torch import nn

from on_nxdi.adopted import width_config
from on_nxdi.kit import RANKS, close, floats
from orchestrator import CompileError, Pipeline, PlanError
from orchestrator_neuron import from_nxdi
from orchestrator_neuron.nxdi.application import work_folder
from orchestrator_neuron.nxdi.rank_files import rank_files
from orchestrator_neuron.nxdi.ranks import ranks_of_degree

OPTIONS = {"tp_degree": RANKS}


class Gathered(nn.Module):
    """All layers, joined inside; it has as many heads as NxDI's attention gives a rank."""

    def __init__(self, _config):
        super().__init__()
        self.table = ParallelEmbedding(6, 8, shard_across_embedding=True, dtype=torch.float32)
        self.up = ColumnParallelLinear(8, 16, gather_output=False, dtype=torch.float32)
        self.heads = 4 // parallel_state.get_tensor_model_parallel_size()
        self.down = RowParallelLinear(16, 8, input_is_parallel=True, dtype=torch.float32)

    def forward(self, x):
        x = x + self.table(torch.tensor([1, 4]))
        return self.down(torch.relu(self.up(x)).view(2, self.heads, 4).flatten(1))


def wrapped(kind, degree=RANKS):
    """A wrapper as NxD Inference wants it; its examples are of the shapes on one rank."""
    from neuronx_distributed_inference.models.model_wrapper import EncoderModelInstance, ModelWrapper

    class Wrapper(ModelWrapper):
        def input_generator(self):
            return [(torch.ones(2, 8),)]

        def get_model_instance(self):
            return EncoderModelInstance(self.model_cls, self.config)

    return Wrapper(config=width_config(tp_degree=degree), model_cls=kind, tag=kind.__name__)


def whole(kind):
    """The model of one rank that has it all."""
    with ranks_of_degree(1, 1):
        return kind(None).eval()


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def run(device, *stages, **inputs):
    """Runs stages, each with its checkpoint, one after the other."""
    pipeline = Pipeline("chain")
    value = pipeline.input("x", floats(2, 8))
    for number, (wrapper, weights) in enumerate(stages):
        value = pipeline.add(f"s{number}", from_nxdi(wrapper, checkpoint=weights))(value)
    pipeline.output("y", value)
    plan = pipeline.plan(device, options=OPTIONS)
    with plan.compile(tempfile.mkdtemp()).load() as session:
        return plan, session(**inputs)["y"]


def check_parallel_layers_are_planned_and_run():
    model, x = whole(Gathered), torch.randn(2, 8)
    for device in ("nxdi", "neuron-emulated"):
        plan, y = run(device, (wrapped(Gathered), state(model)), x=x)
        close(y, model(x))
        assert plan.summary["downloads"] == 1
    assert not torch.distributed.is_initialized()
    assert not parallel_state.model_parallel_is_initialized()


def check_host_model_and_a_state_of_the_process_spoil_no_compile():
    model, x = whole(Gathered), torch.randn(2, 8)
    wrapper = wrapped(Gathered)
    assert from_nxdi(wrapper).model.heads == 4
    parallel_state.set_tensor_model_parallel_size(1)
    try:
        close(run("nxdi", (wrapper, state(model)), x=x)[1], model(x))
        assert parallel_state.get_tensor_model_parallel_size() == 1
    finally:
        parallel_state.destroy_model_parallel()


def check_own_instance_builds_the_model():
    from neuronx_distributed.trace.model_builder import BaseModelInstance

    class OfWidth(nn.Linear):
        def __init__(self, width):
            super().__init__(width + 0, 4)

    wrapper = wrapped(OfWidth)
    type(wrapper).get_model_instance = lambda self: BaseModelInstance(
        module_cls=lambda: self.model_cls(8).eval(), input_output_aliases={}
    )
    model, x = nn.Linear(8, 4), torch.randn(2, 8)
    close(run("nxdi", (wrapper, state(model)), x=x)[1], model(x))


class PartsOut(nn.Module):
    def __init__(self, _config):
        super().__init__()
        self.up = ColumnParallelLinear(8, 16, bias=False, gather_output=False, dtype=torch.float32)

    def forward(self, x):
        return torch.relu(self.up(x))


class PartsIn(nn.Module):
    def __init__(self, _config):
        super().__init__()
        self.down = RowParallelLinear(16, 8, bias=False, input_is_parallel=True, dtype=torch.float32)

    def forward(self, h):
        return self.down(h)


def check_parts_stay_on_their_ranks_between_parallel_stages():
    one, two, x = whole(PartsOut), whole(PartsIn), torch.randn(2, 8)
    stages = [(wrapped(PartsOut), state(one)), (wrapped(PartsIn), state(two))]
    for device in ("nxdi", "neuron-emulated", "cpu"):
        plan, y = run(device, *stages, x=x)
        close(y, two(one(x)))
        assert plan.summary["downloads"] == (device != "cpu")
    # Read by a host, the parts of all ranks are joined.
    plan, y = run("nxdi", stages[0], x=x)
    close(y, one(x))
    assert plan.summary["downloads"] == RANKS


def check_memory_counts_a_ranks_share():
    for device, share in (("nxdi", RANKS), ("neuron-emulated", 1)):
        plan, _ = run(device, (wrapped(PartsOut), state(whole(PartsOut))), x=torch.ones(2, 8))
        assert dict(plan.weights) == {device: 8 * 16 * 4 // share}


def check_parts_that_no_stage_gives_are_refused():
    weights = state(whole(PartsIn))
    pipeline = Pipeline("alone")
    down = pipeline.add("down", from_nxdi(wrapped(PartsIn), checkpoint=weights))
    pipeline.output("y", down(pipeline.input("h", floats(2, 16))))
    with pytest.raises(
        PlanError, match=r"'down\.h' takes on each rank a part .* dim 1, but 'h' gives \[2, 16\]"
    ):
        pipeline.plan("nxdi", options=OPTIONS)


def check_a_degree_that_does_not_divide():
    pipeline = Pipeline("odd")
    up = pipeline.add("up", from_nxdi(wrapped(PartsOut, degree=3)))
    pipeline.output("y", up(pipeline.input("x", floats(2, 8))))
    with pytest.raises(
        PlanError, match=r"'up' cannot be built for 3 ranks.*16 is not divisible by 3.*tp_degree"
    ):
        pipeline.plan("nxdi", options={"tp_degree": 3, "world_size": 3})


def check_where_weights_come_from_is_said():
    x = torch.ones(2, 8)
    for checkpoint, text in (
        (None, "drawn at random, others each time that it is loaded, since"),
        ("random", "drawn at random, others each time that it is loaded."),
        ("some/folder", "the checkpoint 'some/folder'."),
        (state(whole(Gathered)), "a state_dict."),
    ):
        pipeline = Pipeline("source")
        stage = pipeline.add("m", from_nxdi(wrapped(Gathered), checkpoint=checkpoint))
        pipeline.output("y", stage(pipeline.input("x", floats(2, 8))))
        for device in ("nxdi", "neuron-emulated"):
            notes = " ".join(pipeline.plan(device, options=OPTIONS).notes)
            assert f"Weights of 'm': {text}" in notes
    # A device that knows no checkpoint says it, too, when the model is made.
    with pytest.warns(UserWarning, match="drawn at random"):
        run("cpu", (wrapped(Gathered), None), x=x)
    with pytest.raises(CompileError, match=r"'missing\.safetensors', does not exist"):
        run("nxdi", (wrapped(Gathered), "missing.safetensors"), x=x)


def saved_parts(model, degree=RANKS):
    """A folder as NxD Inference's own application saves it, with the parts of each rank."""
    from neuronx_distributed_inference.models.application_base import NeuronApplicationBase

    class Saved(NeuronApplicationBase):
        def __init__(self, *args):
            super().__init__(*args)
            self.models.append(wrapped(type(model), degree))

        @classmethod
        def get_state_dict(cls, _path, _config):
            return state(model)

    folder = tempfile.mkdtemp()
    with work_folder(Path(folder)):
        Saved(tempfile.mkdtemp(), width_config(tp_degree=degree, save_sharded_checkpoint=True)).compile(
            folder
        )
    return folder


class Strided(nn.Module):
    """A layer whose parts are two pieces each."""

    def __init__(self, _config):
        super().__init__()
        self.up = ColumnParallelLinear(8, 16, bias=False, stride=2, dtype=torch.float32)
        self.shift = nn.Parameter(torch.randn(16))

    def forward(self, x):
        return self.up(x) + self.shift


def check_checkpoints_that_are_cut_already():
    x = torch.randn(2, 8)
    for kind in (Gathered, Strided):
        model = whole(kind)
        folder = saved_parts(model)
        names = sorted(path.name for path in Path(folder, "weights").iterdir())
        assert names == [f"tp{rank}_sharded_checkpoint.safetensors" for rank in range(RANKS)]
        # Where one rank has it all, the parts are joined as the layers cut them; the device joins what Strided gives
        # by rank, so that its columns come in another order there.
        devices = ("cpu", "neuron-emulated", "nxdi")[: 3 if kind is Gathered else 2]
        for device in devices:
            close(run(device, (wrapped(kind), folder), x=x)[1], model(x))
    with pytest.raises(CompileError, match=r"cut for 2 ranks, and the plan has 1"):
        rank_files("m", folder, 1)
    Path(folder, "weights", names[0]).unlink()
    for device in ("cpu", "nxdi"):
        with pytest.raises(
            CompileError, match=r"has no 'tp0_sharded_checkpoint\.safetensors'.* \(1 of 2 ranks"
        ):
            run(device, (wrapped(kind), folder), x=x)


class Wide(nn.Module):
    def __init__(self, _config):
        super().__init__()
        self.ups = nn.ModuleList(
            ColumnParallelLinear(8, 1 << 15, bias=False, gather_output=False, dtype=torch.float32)
            for _ in range(16)
        )

    def forward(self, x):
        return sum(up(x).sum(-1, keepdim=True) for up in self.ups) * 0 + x[:, :1]


def check_no_weights_are_whole_on_the_host_while_they_are_loaded():
    """Peak of the host's own memory until the upload: under 1.2 times a rank's share and the largest weight."""
    folder, size = Path(tempfile.mkdtemp()), 8 * (1 << 15) * 4
    weights = {f"ups.{number}.weight": torch.randn(1 << 15, 8) for number in range(16)}
    save_file(weights, folder / "model.safetensors")
    (folder / "weights").mkdir()
    for rank in range(RANKS):
        parts = {name: tensor.chunk(RANKS)[rank].contiguous() for name, tensor in weights.items()}
        save_file(parts, folder / "weights" / f"tp{rank}_sharded_checkpoint.safetensors")
    del weights, parts
    share = 16 * size // RANKS
    for checkpoint in (folder / "model.safetensors", folder / "weights"):
        pipeline = Pipeline("wide")
        wide = pipeline.add("wide", from_nxdi(wrapped(Wide), checkpoint=checkpoint))
        pipeline.output("y", wide(pipeline.input("x", floats(2, 8))))
        compiled = pipeline.plan("nxdi", options=OPTIONS).compile(tempfile.mkdtemp())
        with peak_before_upload() as peak, compiled.load():
            pass
        sys.stdout.write(f"{checkpoint.name}: peak {peak[0]:,}, a rank's share is {share:,}\n")
        assert peak[0] < 1.2 * share + size


@contextlib.contextmanager
def peak_before_upload():
    """Yields a list with the growth of memory that no file backs until weights go up, without what programs take."""
    peak, done, reading, start = [0], threading.Event(), threading.Lock(), [own_memory()]
    read, upload = torch.jit.load, torch.ops.neuron._parallel_load

    def watch():
        while not done.wait(0.002):
            with reading:
                peak[0] = max(peak[0], own_memory() - start[0])

    # The simulated compiler's file holds weights of a rank, which a compiled program does not.
    def read_apart(*args, **options):
        with reading:
            before = own_memory()
            model = read(*args, **options)
            start[0] += own_memory() - before
        return model

    def upload_last(ranks):
        done.set()
        return upload(ranks)

    torch.jit.load, torch.ops.neuron._parallel_load = read_apart, upload_last
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        torch.jit.load, torch.ops.neuron._parallel_load = read, upload
        done.set()
        thread.join()


def own_memory():
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", text)[1])
