"""Results are those of the modules called by hand; they are ordinary tensors; nobody's module is touched."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from orchestrator import StageError
from tests.kit import COMPUTE, Double, batch, chain, host, linear, new, pair, spec

SIZES = (1, 2, 3, 4, 5, 8, 9, 13)


def test_results_are_bit_for_bit_those_by_hand_where_nothing_is_padded():
    pipeline, vision, fusion = pair()
    image, text = torch.randn(4, 8), torch.randn(4, 4)
    with pipeline.plan(sizes={"batch": 4}).load() as session:
        logits = session(image=image, text=text)["logits"]
    with torch.no_grad():
        assert torch.equal(logits, fusion(torch.cat([vision(image), text], 1)))


@pytest.mark.parametrize("device", ["cpu", "null"])
@pytest.mark.parametrize("size", SIZES)
def test_requests_of_any_size_are_padded_and_cut_into_chunks(size: int, device: str):
    pipeline, vision, fusion = pair()
    options = COMPUTE if device == "null" else None
    image, text = torch.randn(size, 8), torch.randn(size, 4)
    with pipeline.plan(device, sizes={"batch": (2, 4)}, options=options).load() as session:
        logits = session(image=image, text=text)["logits"]
    assert logits.shape == (size, 5)
    assert torch.allclose(logits, fusion(torch.cat([vision(image), text], 1)), atol=1e-6)


@pytest.mark.parametrize("rule", [0, 5.5, "repeat_first"])
def test_the_pad_rule_decides_what_a_stage_sees(rule):
    log = []

    def look(x):
        log.append(x.clone())
        return x * 2

    plan = chain(look, takes=spec(batch("n"), 3, pad=rule)).plan(sizes={"n": 4})
    log.clear()
    x = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(plan.load()(x=x)["y"], x * 2)
    fill = x[:1].expand(2, 3) if rule == "repeat_first" else torch.full((2, 3), float(rule))
    assert torch.equal(log[0], torch.cat([x, fill]))


@pytest.mark.parametrize("device", ["cpu", "null"])
@pytest.mark.parametrize(("b", "t"), [(1, 2), (4, 5), (3, 4), (9, 5), (4, 11), (9, 12), (2, 1)])
def test_two_dims_run_in_chunks_together(b: int, t: int, device: str):
    pipeline = new()
    x, w = pipeline.input("x", spec(batch("b"), batch("t", (2, 5)), 3, pad=0)), pipeline.input("w", spec(3))
    value = pipeline.add("scale", lambda x, w: x * w)(x, w)
    pipeline.output("y", pipeline.add("turn", lambda v: v.transpose(0, 1) + 1)(value))
    pipeline.output("z", value)
    plan = pipeline.plan(device, sizes={"b": (1, 4)}, options=COMPUTE if device == "null" else None)
    value, weight = torch.randn(b, t, 3), torch.randn(3)
    with plan.load() as session:
        result = session(x=value, w=weight)
        assert session.stats == {"requests": 1, **plan.summary_for({"b": b, "t": t})}
    assert torch.equal(result["z"], value * weight)
    assert torch.equal(result["y"], (value * weight).transpose(0, 1) + 1)


def test_inputs_with_different_dims_are_cut_each_by_its_own():
    pipeline = new()
    q, k = pipeline.input("q", spec(batch("a"), 3, pad=0)), pipeline.input("k", spec(batch("b"), 3, pad=0))
    pipeline.output("y", pipeline.add("cross", lambda q, k: q @ k.T)(q, k))
    with pipeline.plan(sizes={"a": (2, 4), "b": (3,)}).load() as session:
        for a, b in ((1, 1), (4, 3), (9, 7), (3, 10)):
            left, right = torch.randn(a, 3), torch.randn(b, 3)
            assert torch.allclose(session(q=left, k=right)["y"], left @ right.T, atol=1e-6)


def test_results_are_ordinary_tensors():
    pipeline = chain(linear(4, 4), takes=spec(batch("n"), 4, pad=0))
    with pipeline.plan(sizes={"n": (2, 4)}).load() as session:
        for size in SIZES:
            for tensor in (torch.randn(size, 4), torch.randn(size, 4, requires_grad=True)):
                value = session(x=tensor)["y"]
                assert (value.requires_grad, value.grad_fn, value.is_inference()) == (False, None, False)
                value.add_(1)  # an inference tensor would refuse


def test_grad_mode_is_off_inside_and_as_it_was_outside():
    log = []

    def look(x):
        log.append(torch.is_grad_enabled())
        return x * 2

    plan = chain(look, takes=spec(2)).plan()
    session = plan.load()
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            session(x=torch.ones(2))
            assert torch.is_grad_enabled() is mode
    assert not any(log[-2:])


def test_inference_mode_works_and_is_not_left_or_entered_by_the_session():
    session = chain(linear(4, 4), takes=spec(batch("n"), 4, pad=0)).plan(sizes={"n": (2, 4)}).load()
    with torch.inference_mode():
        for size in SIZES:
            x = torch.randn(size, 4)
            assert session(x=x)["y"].is_inference()
        assert torch.is_inference_mode_enabled()
    assert not session(x=torch.randn(2, 4))["y"].is_inference()


def test_planning_and_loading_work_under_inference_mode():
    with torch.inference_mode():
        plan = chain(linear(4, 4), takes=spec(batch("n"), 4, pad=0)).plan(sizes={"n": (2, 4)})
        session = plan.load()
        assert session(x=torch.randn(3, 4))["y"].shape == (3, 4)


def test_autocast_of_the_caller_holds():
    session = chain(linear(4, 4), takes=spec(2, 4)).plan().load()
    x = torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert session(x=x)["y"].dtype is torch.bfloat16
    assert session(x=x)["y"].dtype is torch.float32


def test_a_module_on_the_right_device_is_used_as_it_is():
    ran = []

    class Own(nn.Module):
        def forward(self, x):
            ran.append(self)
            return x * 2

    module = Own().eval()
    with chain(module).plan().load() as session:
        ran.clear()
        session(x=torch.ones(2))
    assert ran == [module]
    assert ran[0] is module


def test_weights_that_change_after_the_load_are_seen():
    module = linear(2, 2)
    session = chain(module, takes=spec(2, 2)).plan().load()
    with torch.no_grad():
        module.weight.zero_()
        module.bias.fill_(3)
    assert session(x=torch.randn(2, 2))["y"].tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_a_request_leaves_its_inputs_alone():
    pipeline, *_ = pair()
    with pipeline.plan(sizes={"batch": (2, 4)}).load() as session:
        for size in SIZES:
            image, text = torch.randn(size, 8), torch.randn(size, 4)
            before = image.clone(), text.clone(), image._version
            session(image=image, text=text)
            assert torch.equal(image, before[0])
            assert torch.equal(text, before[1])
            assert image._version == before[2]


def test_results_of_two_requests_share_no_memory():
    session = chain(Double(), takes=spec(batch("n"), pad=0)).plan(sizes={"n": (2, 4)}).load()
    for size in (2, 3, 9):
        one, two = session(x=torch.ones(size))["y"], session(x=torch.ones(size))["y"]
        one.fill_(7)
        assert two.tolist() == [2.0] * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_other_dtypes_are_padded_and_cut_alike(dtype: torch.dtype, size: int):
    session = (
        chain(lambda x: x.clone(), takes=spec(batch("n"), 3, dtype=dtype, pad=0))
        .plan(sizes={"n": (2, 4)})
        .load()
    )
    x = torch.randint(0, 2, (size, 3)).to(dtype)
    assert torch.equal(session(x=x)["y"], x)


@pytest.mark.parametrize("size", [2, 3, 9])
def test_strided_inputs_and_scalars(size: int):
    pipeline = new()
    x, s = pipeline.input("x", spec(batch("n"), 3, pad=0)), pipeline.input("s", spec())
    pipeline.output("y", pipeline.add("scale", lambda x, s: x * s)(x, s))
    session = pipeline.plan(sizes={"n": (2, 4)}).load()
    x = torch.randn(3, 2 * size)[:, ::2].T
    assert not x.is_contiguous()
    assert torch.equal(session(x=x, s=torch.tensor(2.0))["y"], x * 2)


def test_a_dict_or_tuple_of_outputs_on_a_device():
    pipeline = new()
    x = pipeline.input("x", spec(batch("n"), 4, pad=0))
    outputs = pipeline.add("d", lambda x: {"half": x / 2, "unused": x, "twice": x * 2}, device="null")(x)
    low, high = pipeline.add("t", lambda x: (x[:, :2], x[:, 2:]), outputs=("low", "high"), device="null")(
        outputs["half"]
    )
    pipeline.output("low", low)
    pipeline.output("high", high)
    pipeline.output("twice", outputs["twice"])
    value = torch.randn(3, 4)
    with pipeline.plan(sizes={"n": (2, 4)}, options=COMPUTE).load() as session:
        result = session(x=value)
    assert list(result) == ["low", "high", "twice"]
    assert torch.equal(result["low"], value[:, :2] / 2)
    assert torch.equal(result["high"], value[:, 2:] / 2)
    assert torch.equal(result["twice"], value * 2)


def test_a_deep_graph_of_every_kind():
    one, two = linear(6, 6), linear(6, 6, seed=2)
    pipeline = new()
    x = pipeline.input("x", spec(batch("n"), 6, pad="repeat_first"))
    a = pipeline.add("one", one, device="null:0")(x)
    b = pipeline.add("two", two)(a)
    c = host(pipeline, "host", lambda v: v + 1, v=spec("n", 6, pad=0))(b)
    stage = pipeline.add("mix", lambda p, q, r=None, *, scale=1.0: (p + q - r) * scale, device="null:1")
    pipeline.output("y", stage(a, c, r=b, scale=0.5))
    pipeline.output("b", b)
    plan = pipeline.plan(sizes={"n": (1, 4)}, options=COMPUTE)
    with plan.load() as session:
        for size in SIZES:
            value = torch.randn(size, 6)
            with torch.no_grad():
                left = one(value)
                right = two(left)
            result = session(x=value)
            assert torch.allclose(result["y"], (left + right + 1 - right) * 0.5, atol=1e-5)
            assert torch.allclose(result["b"], right, atol=1e-5)


def test_a_result_without_content_is_an_error_each_time_and_the_next_request_works():
    """Kind K2: what planning, or an export, left behind in a stage must not come out as a result."""
    left = []

    def stage(x):
        with FakeTensorMode() if left else nullcontext():
            return torch.ones(2) if left else x * 2

    pipeline = new()
    pipeline.output("y", pipeline.add("s", stage)(pipeline.input("x", spec(2))))
    with pipeline.plan().load() as session:
        left.append(1)
        for _ in range(2):
            with pytest.raises(StageError, match=r"'y' is a fake tensor.*no content"):
                session(x=torch.ones(2))
        left.clear()
        for _ in range(2):
            assert session(x=torch.ones(2))["y"].tolist() == [2, 2]
