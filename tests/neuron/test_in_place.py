"""States that a program writes itself: what it gives, and leaves, is what it gives as a function."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from orchestrator_neuron.emulated.graph_file import dump, load
from orchestrator_neuron.emulated.in_place import write_states

SHAPE = (2, 5, 3)


class Program(nn.Module):
    """A step over two states: gives something, and what each state is afterwards."""

    def __init__(self, step) -> None:
        super().__init__()
        self.states = nn.ParameterList(
            nn.Parameter(torch.randn(SHAPE), requires_grad=False) for _ in range(2)
        )
        self.step = step

    def forward(self, x: Tensor, at: Tensor) -> tuple[Tensor, ...]:
        return self.step(x, at, *self.states)


def token(x, at, first, second):
    """One row of each, and what is read of them then."""
    first, second = first.clone(), second.clone()
    first.index_copy_(1, at, x)
    second = second.index_copy_(1, at, 2 * x)
    return (first[:, :3] * second[:, :3]).sum(), first, second


def prompt(x, at, first, second):
    """New ones within a border."""
    return x.sum() + at, pad(x, (0, 0, 1, 3)), pad(x, (0, 0, 0, 4), value=1.0)


def function(x, at, first, second):
    """New tensors, of which more is read."""
    first = first.index_copy(1, at, x)
    other = torch.cat([x, x, second[:, 1:4]], 1)
    return first.amax() + other.mean(), first, other


def old_values(x, at, first, second):
    """What they were is given, too: one whole, one a view that is read late."""
    after = first.clone()
    after.index_copy_(1, at, x)
    late = second[:, 1:2]
    other = second.clone().index_copy_(1, at, x)
    return late + other.sum(), first, after, other


def exchange(x, at, first, second):
    """Each becomes the other one."""
    return x + 0, second.clone(), first.clone()


def shift(x, at, first, second):
    """One becomes a view of itself, the other stays; and one within a border what the other was."""
    return x + first.sum(), pad(second[:, :4], (0, 0, 1, 0)), second


def twice(x, at, first, second):
    """Both become the same."""
    both = first.clone().index_copy_(1, at, x)
    return x * 2, both, both


def views(x, at, first, second):
    """What is given is a view of what a state becomes; the other is a view of something."""
    after = first.clone().index_copy_(1, at, x)
    return after[:, 1], after, torch.cat([second, x], 1)[:, 1:]


@pytest.mark.parametrize("step", [token, prompt, function, old_values, exchange, shift, twice, views])
def test_a_program_that_writes_its_states_gives_and_leaves_the_same(step) -> None:
    torch.manual_seed(0)
    module, x, at = Program(step), torch.randn(2, 1, 3), torch.tensor([2])
    with torch.no_grad():
        graph = load(dump(torch.export.export(module, (x, at), strict=False)))
        reference = [value.clone() for value in module(x, at)]
        others = len(reference) - 2
        states = [state.detach().clone() for state in module.states]
        write_states(graph.module, {0: others, 1: others + 1})
        values = graph.module(*states, x, at)
        outputs = [value.clone() for value in values[:others]]
        for state, value in zip(states, values[others:], strict=True):
            state.copy_(value)
    for value, expected in zip([*outputs, *states], reference, strict=True):
        assert torch.equal(value, expected)
    # Those that an expert would write in place are.
    if step in (token, prompt, function):
        assert all(value is state for value, state in zip(values[others:], states, strict=True))
