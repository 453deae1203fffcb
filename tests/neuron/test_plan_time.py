"""What planning for Neuron refuses and notes, and what programs are traced with. It needs no device and no packages."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import Dim, Pipeline, Plan, TensorSpec
from orchestrator.errors import GraphError, PlanError
from orchestrator_neuron.module import ProgramModule, example_inputs
from orchestrator_neuron.nxdi import packages
from orchestrator_neuron.nxdi.adopt import AdoptedStage
from tests.neuron.programs import program, spec

DEVICE = "neuron-emulated"
both = pytest.mark.parametrize("device", ["nxdi", DEVICE])


def pipeline_of(stage: Any, spec_of_input: TensorSpec, **more: Any) -> Pipeline:
    pipeline = Pipeline("one")
    pipeline.output("y", pipeline.add("net", stage, **more)(pipeline.input("x", spec_of_input)))
    return pipeline


def plan_of(stage: Any, spec_of_input: TensorSpec, device: str = DEVICE, **more: Any) -> Plan:
    return pipeline_of(stage, spec_of_input, **more).plan(
        device=device, options={"world_size": 2, "tp_degree": 2}
    )


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128], ids=str)
def test_dtypes_that_no_program_computes_with_are_refused(device: str, dtype: torch.dtype) -> None:
    stages = {"input": (lambda x: x.abs().float(), dtype), "output": (lambda x: x.to(dtype), torch.float32)}
    for side, (stage, input_dtype) in stages.items():
        with pytest.raises(PlanError, match=rf"The {side} port .* does not compute with {dtype}") as excinfo:
            plan_of(stage, TensorSpec((2, 4), input_dtype), device)
        assert excinfo.value.stage == "net"
        assert pipeline_of(stage, TensorSpec((2, 4), input_dtype)).plan(device="cpu")


@both
def test_a_world_size_of_one_stage_is_refused(device: str) -> None:
    with pytest.raises(
        PlanError, match=r"'net' asks for world_size=4, but all stages of one process share one"
    ):
        plan_of(nn.Linear(4, 4), TensorSpec((2, 4)), device, config={"world_size": 4})
    assert plan_of(nn.Linear(4, 4), TensorSpec((2, 4)), device, config={"world_size": 2}).groups[0].ranks == 2


def test_a_process_has_one_logical_core_configuration() -> None:
    with pytest.raises(PlanError, match=r"'net' asks for logical_nc_config=1"):
        plan_of(nn.Linear(4, 4), TensorSpec((2, 4)), config={"logical_nc_config": 1})


@both
def test_a_process_may_run_a_share_of_the_ranks(device: str) -> None:
    """Each process of a group has equally many, and no part of an output is in another one."""
    net, x = nn.Linear(4, 4), TensorSpec((2, 4))
    share = {"tp_degree": 4, "local_ranks_size": 2, "start_rank_id": 2}
    plan = pipeline_of(net, x).plan(device, options=share)
    assert plan.summary["uploads"] == plan.groups[0].ranks == 2
    (note,) = plan.notes
    assert note.startswith(
        "2 of 4 ranks run in this process. Each process of the group gets the same requests"
    )
    for options, why in (
        ({**share, "start_rank_id": 1}, "Ranks 1 to 2 of 4 are no share of a process"),
        ({**share, "start_rank_id": 4}, "Ranks 4 to 5 of 4"),
        ({**share, "local_ranks_size": 3, "start_rank_id": 0}, "Ranks 0 to 2 of 4"),
        ({**share, "start_rank_id": -1}, "'start_rank_id' is an int from 0 on, not -1"),
    ):
        with pytest.raises(PlanError, match=why):
            pipeline_of(net, x).plan(device, options=options)
    with pytest.raises(PlanError, match="2 of its 4 parts are in other processes"):
        pipeline_of(net, x, config={"sharded": {"output": 1}}).plan(device, options=share)


@pytest.mark.parametrize("platform", ["trn1", "inf2"])
def test_a_core_of_trn1_and_inf2_is_one_core_with_16_gb(platform: str) -> None:
    pipeline = pipeline_of(nn.Linear(4, 4), TensorSpec((2, 4)))
    plan = pipeline.plan(DEVICE, options={"platform": platform})
    assert dict(plan.budget) == {DEVICE: 16_000_000_000}
    assert plan.groups[0].option("logical_nc_config") == 1
    assert pipeline.bind(Plan.from_json(plan.to_json())) == plan
    with pytest.raises(PlanError, match="a core is a core"):
        pipeline.plan(DEVICE, options={"platform": platform, "logical_nc_config": 2})
    with pytest.raises(PlanError, match="'platform' is 'trn1' or"):
        pipeline.plan(DEVICE, options={"platform": "trn"})


@pytest.mark.parametrize(("target", "name"), [("trn1", "trn1"), ("trn3pds", "trn3"), ("gen7", "trn2")])
def test_the_platform_of_this_machine_is_planned_for(
    target: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", target)
    packages.platform.cache_clear()
    try:
        plan = plan_of(nn.Linear(4, 4), TensorSpec((2, 4)), "nxdi")
        assert plan.groups[0].option("platform", "trn2") == name
    finally:
        packages.platform.cache_clear()


@both
@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"outptu": 1}, r"declares 'outptu' as sharded, but has no such output. Did you mean 'output'\?"),
        ({"output": 0}, "sharded along dim 0; that must be one of its dims of fixed size"),
    ],
    ids=["unknown port", "named dim"],
)
def test_parts_of_what_is_not_there_or_has_a_name_are_refused(device: str, parts: Any, says: str) -> None:
    spec_of_input = TensorSpec((Dim("batch", buckets=(2, 4)), 4), pad=0)
    with pytest.raises(PlanError, match=says):
        plan_of(nn.Linear(4, 4), spec_of_input, device, config={"sharded": parts})


@both
def test_cut_weights_without_a_word_of_the_outputs_are_refused(device: str) -> None:
    """A part would pass for the whole; a stage that gathers says so."""
    cut = {"checkpoint": {"weight": torch.randn(4, 4)}, "shard_weights": {"weight": 0}}
    net = nn.Linear(4, 2, bias=False)
    with pytest.raises(
        PlanError, match=r"cuts 'weight' over 2 ranks .* config=\{'sharded': \{'output': dim\}\}"
    ):
        plan_of(net, spec(2, 4), device, config=cut)
    for sharded in ({}, {"output": 1}):
        plan_of(net, spec(2, 4), device, config={**cut, "sharded": sharded})


@both
def test_a_stage_that_decides_a_size_is_refused_on_the_device_and_runs_on_the_host(device: str) -> None:
    def positive(x: torch.Tensor) -> torch.Tensor:
        return x[x > 0]

    outputs = {"output": TensorSpec((Dim("found", buckets=(2, 8)),))}
    with pytest.raises(PlanError, match=r"'net' .* decides the size of 'found' while it runs") as excinfo:
        plan_of(positive, TensorSpec((8,)), device, outputs=outputs)
    for part in (f"{device!r} compiles static shapes", "device='host'", "a fixed size and a mask"):
        assert part in str(excinfo.value)
    on_host = pipeline_of(positive, TensorSpec((8,)), outputs=outputs, device="host")
    assert [dim.decided_by for dim in on_host.plan(device=device).dims] == ["net.output"]


def test_no_second_program_where_its_buffer_does_not_fit() -> None:
    pipeline = Pipeline("chain")
    stage = pipeline.add("net", nn.ReLU())
    pipeline.output("y", stage(stage(pipeline.input("x", TensorSpec((250,))))))
    note = "No program is compiled a second time: its output buffers would not fit the memory budget."
    for budget, programs in ((3000, ["net", "net[route 1]"]), (2999, ["net"])):
        plan = pipeline.plan(device=DEVICE, memory=budget)
        assert [item.name for item in plan.programs] == programs
        assert (note in plan.notes) == (len(programs) == 1)


class Multiply(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x * mask


def _read(module: nn.Module, examples: tuple[torch.Tensor, ...]) -> list[bool]:
    """For each input, whether the output would change with it: a compiler that folds keeps those alone."""
    before = module(*examples)
    variants = [
        [value + (at == which) for at, value in enumerate(examples)] for which in range(len(examples))
    ]
    return [not torch.equal(module(*values)[0], before[0]) for values in variants]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=str)
def test_programs_are_traced_with_ones(dtype: torch.dtype) -> None:
    form = spec("n", 4, dtype=dtype)
    item = program({"x": form, "mask": form}, {"output": form}, sizes=({"n": 2}, {"n": 3}))
    for sizes in item.sizes:
        examples = example_inputs(item, sizes)
        assert [(tuple(value.shape), value.dtype) for value in examples] == [((sizes["n"], 4), dtype)] * 2
        assert all(bool((value == 1).all()) for value in examples)
        module = ProgramModule(Multiply(), None, item, sizes)
        assert _read(module, examples) == [True, True]
        assert _read(module, (examples[0], torch.zeros_like(examples[1]))) == [False, True]


@pytest.mark.parametrize("first", [0, 1])
def test_a_mask_is_read_in_every_request(first: int) -> None:
    pipeline = Pipeline("masked")
    x, mask = (pipeline.input(name, TensorSpec((2, 4))) for name in ("x", "mask"))
    pipeline.output("y", pipeline.add("net", Multiply())(x, mask))
    plan = pipeline.plan(device=DEVICE)
    assert [item.port for item in plan.programs[0].inputs] == ["x", "mask"]
    value = torch.rand(2, 4)
    with plan.load() as session:
        for factor in (first, 1 - first, 2):
            assert torch.equal(session(x=value, mask=torch.full((2, 4), float(factor)))["y"], value * factor)


class ScaledLinear(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(config.width, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands in for the classes of NxD Inference, as far as planning looks at them."""
    # Told by module and name, as the plugin tells them; whatever planning must not call raises.

    class ModelWrapper:
        pipeline_execution = async_mode = False
        model = compiler_args = None
        model_init_kwargs = None

        def __init__(self, config: Any, model_cls: Any, tag: str = "") -> None:
            self.config, self.model_cls, self.tag = config, model_cls, tag

        def input_generator(self) -> Any:
            raise AssertionError("those of a language model")

        def forward(self, *_: Any) -> Any:
            raise AssertionError("that of a language model")

    class NeuronApplicationBase:
        model_path = ""

        def __init__(self, *models: Any) -> None:
            self.models = list(models)

    module = ModuleType("orchestrator_neuron.nxdi.classes")
    for kind in (ModelWrapper, NeuronApplicationBase):
        kind.__module__ = "neuronx_distributed_inference.models"
        setattr(module, kind.__name__, kind)
    monkeypatch.setattr(packages, "require", lambda: None)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("orchestrator_neuron.nxdi.classes", module, raising=False)
    # Models are built inside NxD's parallel state, and there is no NxD.
    monkeypatch.setattr(AdoptedStage, "_build", lambda stage, *_: stage.model_cls(stage.config).eval())
    return module


def _config() -> SimpleNamespace:
    neuron = SimpleNamespace(
        async_mode=False,
        on_cpu=False,
        cast_type="config",
        torch_dtype=torch.float32,
        tp_degree=2,
        world_size=2,
        local_ranks_size=2,
        start_rank_id=0,
        logical_nc_config=2,
    )
    return SimpleNamespace(neuron_config=neuron, width=4)


@pytest.mark.parametrize("batch", [2, 3])
def test_a_wrapper_without_example_inputs_takes_its_shapes_from_the_graph(
    stand_in: ModuleType, batch: int
) -> None:
    wrapper = stand_in.ModelWrapper(_config(), ScaledLinear, "net")
    plan = plan_of(wrapper, TensorSpec((batch, 4)), "nxdi")
    (compiled_program,) = plan.programs
    assert [(item.port, item.spec) for item in compiled_program.inputs] == [("x", TensorSpec((batch, 4)))]
    assert [item.spec for item in compiled_program.outputs] == [TensorSpec((batch, 4))]


def test_an_application_without_example_inputs_is_refused(stand_in: ModuleType) -> None:
    application = stand_in.NeuronApplicationBase(stand_in.ModelWrapper(_config(), ScaledLinear, "net"))
    with pytest.raises(GraphError, match="override input_generator"):
        plan_of(application, TensorSpec((2, 4)), "nxdi")


class Half(nn.Module):
    """One of several ranks has some of the rows of a weight of 8, or of its columns."""

    def __init__(self, degree: int, dim: int) -> None:
        super().__init__()
        sizes = [8, 8]
        sizes[dim] //= degree
        self.weight = nn.Parameter(torch.ones(sizes))
        self.weight.tensor_model_parallel = True  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


def test_parts_stay_on_their_ranks_where_the_next_stage_takes_them(
    stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up gives parts, and down takes them; each is of one rank's shapes and weights."""
    monkeypatch.setattr(AdoptedStage, "_build", lambda stage, degree, *_: Half(degree, stage.config.dim))

    class Wrapper(stand_in.ModelWrapper):  # type: ignore[misc, name-defined]
        def input_generator(self) -> list[tuple[torch.Tensor]]:
            return [(torch.ones(2, 4 if self.config.dim else 8),)]

    def wrapper(dim: int) -> Any:
        return Wrapper(SimpleNamespace(neuron_config=_config().neuron_config, dim=dim), Half, "net")

    def plan(device: str, *dims: int) -> Plan:
        pipeline = Pipeline("halves")
        value = pipeline.input("x", TensorSpec((2, 8)))
        for number, dim in enumerate(dims):
            value = pipeline.add(f"s{number}", wrapper(dim))(value)
        pipeline.output("y", value)
        return pipeline.plan(device, options={"tp_degree": 2})

    both = plan("nxdi", 0, 1)
    assert [item.spec for program in both.programs for item in program.outputs] == [
        TensorSpec((2, 4)),
        TensorSpec((2, 8)),
    ]
    assert (both.summary["downloads"], dict(both.weights)) == (1, {"nxdi": 2 * 8 * 4 * 4})
    # On devices where one has it all, nothing is in parts; and what others read is joined on the host.
    assert dict(plan(DEVICE, 0, 1).weights) == {DEVICE: 2 * 8 * 8 * 4}
    assert plan("nxdi", 0).summary["downloads"] == 2
    for dims in ((1,), (1, 1)):
        with pytest.raises(
            PlanError, match=r"takes on each rank a part of its value along dim 1, but .* \[2, 8\]"
        ):
            plan("nxdi", *dims)


@pytest.mark.parametrize("own", [{"world_size": 2}, {"logical_nc_config": 2}, {"hazards": "solve"}], ids=str)
def test_a_stage_may_say_what_holds_for_the_process_anyway(own: dict[str, object]):
    pipeline = Pipeline("p")
    stage = pipeline.add("stage", torch.nn.Linear(4, 3), config=own)
    pipeline.output("y", stage(pipeline.input("x", TensorSpec((2, 4)))))
    assert pipeline.plan("neuron-emulated", options={"tp_degree": 2}).groups[0].ranks == 2
