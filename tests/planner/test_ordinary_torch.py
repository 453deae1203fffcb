"""Kinds K9 and K10: operators that take functions, and stages that fake tensors cannot run, are planned and run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops.map import map as torch_map
from torch.nested._internal import nested_tensor
from torch.nn.attention.flex_attention import flex_attention

from orchestrator import PlanError, StageError
from tests.kit import chain, new, refuses, spec


def conditional(x):
    return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


def repeated(x):
    start = torch.zeros((), dtype=torch.int64)
    return while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x * 2), (start, x))[1]


def mapped(x):
    return torch_map(lambda row: row * 2, x)


def scanned(x):
    return scan(lambda carry, row: (carry + row, carry * row), torch.zeros(4), x)[1]


def summed(x):
    return associative_scan(lambda a, b: a + b, x, 0, combine_mode="generic")


def each_row(x):
    return torch.vmap(lambda row: torch.where(row > 0, row, 1) / (row.sum() + 1))(x)


def rows_of_two_lengths(x):
    return torch.nested.nested_tensor([x[:1], x[1:]], layout=torch.jagged).values() * 2


def attended(x):
    heads = x.reshape(1, 1, -1, 4)
    return flex_attention(heads, heads, heads).reshape(-1, 4)


X = torch.rand(8, 4)


def run(stage, x=X, **declared):
    pipeline = new()
    pipeline.output("y", pipeline.add("s", stage, **declared)(pipeline.input("x", spec(*x.shape))))
    with pipeline.plan().load() as session:
        return session(x=x)["y"]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(
    "stage", [conditional, mapped, scanned, summed, attended, each_row, rows_of_two_lengths]
)
def test_an_operator_that_takes_functions_gives_what_it_gives_by_hand(stage):
    result = run(stage)
    with torch.no_grad():
        assert torch.allclose(result, stage(X), atol=1e-5)


def test_what_torch_makes_once_is_made_by_hand_after_planning():
    """K2: nested tensors keep a tensor in a global of torch, which is None before; a process without it has none."""
    places = nested_tensor.__dict__
    before = places["_dummy_instance"]
    try:
        nested_tensor._dummy_instance = None
        chain(rows_of_two_lengths, takes=spec(8, 4)).plan()
        assert places["_dummy_instance"] is None
        assert torch.equal(rows_of_two_lengths(X), X * 2)
    finally:
        nested_tensor._dummy_instance = before


def test_a_while_loop_and_both_sides_of_a_condition_run():
    assert torch.equal(run(repeated), X * 8)
    assert torch.equal(run(conditional, -X), -X - 1)


def test_dtypes_that_must_agree_are_still_looked_at():
    refuses(PlanError, "takes tensors of one dtype", chain(lambda x: x.long() @ x.T, takes=spec(2, 4)).plan)


class Masked(nn.Module):
    """In eval mode its fast path makes nested tensors, which have no fake form."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

    def forward(self, x, mask):
        return self.encoder(x, src_key_padding_mask=mask)


@pytest.mark.parametrize("declared", [None, {"output": spec(2, 6, 16)}])
def test_an_encoder_with_a_padding_mask_runs(declared):
    encoder = Masked().eval()
    pipeline = new()
    inputs = pipeline.input("x", spec(2, 6, 16)), pipeline.input("mask", spec(2, 6, dtype=torch.bool))
    pipeline.output("y", pipeline.add("s", encoder, outputs=declared)(*inputs))
    x, mask = torch.rand(2, 6, 16), torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 4:] = True
    with pipeline.plan().load() as session:
        result = session(x=x, mask=mask)["y"]
    with torch.no_grad():
        assert torch.allclose(result, encoder(x, mask), atol=1e-5)


@torch.library.custom_op("stage_orchestrator_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_an_operator_without_a_fake_form_needs_a_declaration_that_is_checked():
    stage = lambda x: doubled(x)  # noqa: E731
    refuses(PlanError, ("'a'", "without content", "outputs=", "host"), chain(stage, takes=spec(2, 4)).plan)
    x = torch.rand(2, 4)
    assert torch.equal(run(stage, x, outputs={"output": spec(2, 4)}), x * 2)
    with pytest.raises(StageError, match=r"\[2, 5\] float32"):
        run(stage, x, outputs={"output": spec(2, 5)})


def test_a_declaration_does_not_hide_a_contradiction_of_shapes():
    pipeline = new()
    stage = pipeline.add("s", nn.Linear(5, 4), outputs={"output": spec(2, 4)})
    pipeline.output("y", stage(pipeline.input("x", spec(2, 4))))
    refuses(PlanError, ("'s'", "refuses what it is fed"), pipeline.plan)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_frozen_script_runs():
    script = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()))
    assert torch.allclose(run(script, inputs=("x",)), script(X))


class Scaled(nn.Module):
    """A module with an input that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return self.linear(x) * scale


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:The .grad attribute")
@pytest.mark.parametrize(
    ("of", "ports"),
    [
        (lambda module: torch.compile(module, backend="eager"), ("x", "scale")),
        (
            lambda module: torch.compile(torch.compile(module, backend="eager"), backend="eager"),
            ("x", "scale"),
        ),
        (torch.jit.script, ("x", "scale")),
        (lambda module: torch.jit.freeze(torch.jit.script(module)), ("x", "scale")),
        (lambda module: torch.jit.trace(module, X), ("x",)),
        (lambda _: torch.jit.trace(lambda a: a * 2, X), ("a",)),
    ],
    ids=["compiled", "compiled twice", "scripted", "frozen", "traced", "traced function"],
)
def test_what_torch_compiled_has_the_ports_of_what_it_was_made_from(of: Any, ports: tuple[str, ...]):
    stage = of(Scaled().eval())
    added = new().add("s", stage)
    assert tuple(port.name for port in added.stage.inputs) == ports
    with torch.no_grad():
        assert torch.allclose(run(stage, X), stage(X))


def test_writing_into_any_input_is_seen():
    pipeline = new()
    stage = pipeline.add("s", lambda a, b: a + b.add_(1))
    pipeline.output("y", stage(pipeline.input("a", spec(2)), pipeline.input("b", spec(2))))
    assert refuses(PlanError, "writes into its input 'b'", pipeline.plan).port == "b"


def test_one_stage_called_with_two_dtypes_gives_two():
    pipeline = new()
    stage = pipeline.add("s", lambda x: x * 2)
    for name, dtype in (("a", torch.float32), ("b", torch.int64)):
        pipeline.output(f"y{name}", stage(pipeline.input(name, spec(2, dtype=dtype))))
    assert [call.outputs[0][1].dtype for call in pipeline.plan().calls] == [torch.float32, torch.int64]
