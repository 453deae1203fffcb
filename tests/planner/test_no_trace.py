"""Planning runs nothing real: it leaves no trace in a user's modules and allocates nothing of a tensor's size."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import torch
from torch import nn

from orchestrator import ModelWrapper
from tests.kit import chain, host, linear, new, spec


class Nosy(nn.Module):
    """Notes each run in its attributes, its buffers, its parts and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros(1))
        self.count = 0
        self.seen: list[torch.Tensor] = []
        self.cache: dict[str, torch.Tensor] = {}

    def forward(self, x):
        self.count += 1
        self.seen.append(x)
        self.cache["last"] = x
        self.fresh = x
        self.linear.note = self.count
        self.steps += 1
        return self.linear(x)


def state(module: nn.Module) -> list[object]:
    """Everything a module holds: identities and versions of tensors, contents of attributes."""
    held: list[object] = []
    for path, part in module.named_modules():
        for name, value in sorted(part.__dict__.items()):
            held.append((path, name, repr(value)))
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        held.append((name, id(tensor), tensor.data_ptr(), tensor._version, type(tensor).__name__))
    return held


def test_a_module_is_as_it_was():
    module = Nosy().eval()
    before = state(module)
    chain(module, takes=spec("n", 4, pad=0)).plan(sizes={"n": (2, 4, 8)})
    assert state(module) == before
    assert (module.count, module.seen, module.cache) == (0, [], {})
    assert not hasattr(module, "fresh")


def test_a_module_that_cannot_be_copied_is_as_it_was_too():
    class Uncopied(Nosy):
        def __deepcopy__(self, memo):
            raise TypeError("there is one of these")

    module = Uncopied().eval()
    before = state(module)
    plan = chain(module, takes=spec("n", 4, pad=0)).plan(sizes={"n": (2, 4)})
    assert str(plan.calls[0].outputs[0][1]) == "[n, 4] float32"
    after = state(module)
    assert [item for item in after if len(item) == 5] == [item for item in before if len(item) == 5]
    assert (module.count, hasattr(module, "fresh")) == (0, False)


def test_a_bound_method_leaves_its_owner_alone():
    class Owner:
        def __init__(self):
            self.calls = 0
            self.linear = linear(4, 4)

        def run(self, x):
            self.calls += 1
            return self.linear(x)

    owner = Owner()
    weight = owner.linear.weight
    chain(owner.run, takes=spec(2, 4)).plan()
    assert owner.calls == 0
    assert owner.linear.weight is weight


def test_hooks_and_grads_stay():
    module = linear(4, 4)
    fired = []
    module.register_forward_hook(lambda *_: fired.append(1))
    module.weight.grad = torch.ones_like(module.weight)
    grad = module.weight.grad
    chain(module, takes=spec(2, 4)).plan()
    assert module.weight.grad is grad
    assert len(module._forward_hooks) == 1


class Noisy(nn.Module):
    def __init__(self, config=None) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) + torch.rand_like(x) + torch.randn(4)


@pytest.mark.parametrize("make", [lambda: Noisy().eval(), lambda: ModelWrapper({}, Noisy)])
def test_random_numbers_go_on_as_if_nothing_was_planned(make):
    target = make()
    states = torch.get_rng_state(), random.getstate()
    chain(target, takes=spec("n", 4, pad=0)).plan(sizes={"n": (2, 4)})
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_a_wrapper_is_not_built():
    wrapper = ModelWrapper({"in_features": 4, "out_features": 4}, nn.Linear)
    before = dict(wrapper.__dict__)
    plan = chain(wrapper, takes=spec(2, 4)).plan()
    assert wrapper.__dict__ == before
    assert dict(plan.weights) == {"cpu": 80}


def test_host_stages_and_constants_are_not_touched():
    ran = []
    pipeline = new()
    x = pipeline.input("x", spec(2))
    constant = torch.ones(2)
    value = pipeline.add("s", lambda x, c: x + c)(x, constant)
    pipeline.output("y", host(pipeline, "h", lambda v: ran.append(v), out=spec(2))(value))
    pipeline.plan()
    assert ran == []
    assert constant._version == 0


def test_grad_mode_and_default_dtype_stay():
    with torch.enable_grad():
        chain(linear(4, 4), takes=spec(2, 4)).plan()
        assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32


def test_nothing_of_a_tensors_size_is_allocated():
    gigabyte = 1 << 30
    pipeline = chain(
        nn.ReLU(),
        lambda x: torch.cat([x, x]),
        lambda x: x.double() @ x.double().T,
        takes=spec(10, gigabyte // 4),
    )
    tracemalloc.start()
    before = torch.empty(1)  # torch is warm
    plan = pipeline.plan()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert before.numel() == 1
    assert plan.edges[0].bytes == 10 * gigabyte
    assert peak < 50e6
    assert resident() < 8 * gigabyte


def resident() -> int:
    """The most memory this process ever held, in bytes."""
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_model_larger_than_memory_is_planned_from_its_class():
    class Huge(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(40_000, 40_000, bias=False) for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    plan = chain(ModelWrapper({}, Huge), takes=spec(2, 40_000)).plan()
    assert dict(plan.weights) == {"cpu": 4 * 4 * 40_000**2}
    assert resident() < 20e9


def test_parameters_on_meta_are_planned_like_others():
    with torch.device("meta"):
        module = nn.Linear(4, 3)
    plan = chain(module, takes=spec(2, 4)).plan()
    assert (plan.calls[0].outputs[0][1], dict(plan.weights)) == (spec(2, 3), {"cpu": 60})


def test_shape_errors_are_not_logged(caplog):
    with pytest.raises(Exception, match="refuses"):
        chain(nn.Linear(3, 3), takes=spec(2, 4)).plan()
    assert caplog.records == []


class _Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3])[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.mean


class _MakesViews(ModelWrapper):
    def make_model(self) -> nn.Module:
        return _Normalised()


def test_a_view_of_a_view_that_a_model_keeps_is_its_own():
    """Kind: torch alone holds what lies between a view and its base, where Python does not look."""
    pipeline = new()
    x = pipeline.input("x", spec(3, 2, 2))
    pipeline.output("y", pipeline.add("normalise", _MakesViews(), inputs={"x": spec(3, 2, 2)})(x))
    assert pipeline.plan().calls[0].outputs[0][1] == spec(3, 2, 2)
