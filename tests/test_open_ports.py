"""Ports of callables with ``*args`` or ``**kwargs``: declared by ``inputs=``, passed where the callable wants them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator import ModelWrapper, Pipeline, TensorSpec


class ManyOptions(nn.Module):
    """Takes what it is not asked for, like the models of large libraries do."""

    def forward(self, ids=None, mask=None, pixels=None, **options):
        assert mask is None
        return ids + 10 * pixels + sum(options.values())


def run(stage, **ports):
    pipeline = Pipeline("open")
    values = [pipeline.input(f"in {name}", TensorSpec((2,))) for name in ports]
    pipeline.output("y", pipeline.add("stage", stage, inputs=list(ports))(*values))
    with pipeline.plan(device="cpu").load() as session:
        arguments = {f"in {name}": torch.full((2,), float(value)) for name, value in ports.items()}
        return session(**arguments)["y"][0].item()


def test_a_declared_port_is_passed_by_its_parameter_name_whatever_is_left_out_before_it():
    assert run(ManyOptions(), ids=1, pixels=2) == 21
    assert run(ManyOptions(), pixels=2, ids=1) == 21
    assert run(ModelWrapper(model_cls=ManyOptions), pixels=2, ids=1) == 21


def test_what_only_kwargs_can_take_is_passed_by_name_even_if_it_is_a_keyword_of_python():
    assert run(ManyOptions(), **{"ids": 1, "pixels": 2, "class": 100, "lambda": 200}) == 321
    assert run(lambda **kwargs: kwargs["a"] - kwargs["b c"], **{"a": 5, "b c": 2}) == 3


def test_names_of_ones_own_go_by_position():
    def minus(x, y, **_options):
        return x - y

    assert run(minus, p=5, q=2) == 3


@pytest.mark.parametrize("ports", [{"a": 5, "b": 2, "c": 1}, {"p": 5, "q": 2, "r": 1}])
def test_args_take_the_rest_by_position(ports):
    assert run(lambda a, *rest: a - sum(rest), **ports) == 2


def test_keyword_only_parameters_beside_args_go_by_name():
    def scale_by(*values, scale):
        return sum(values) * scale

    assert run(scale_by, a=1, b=2, scale=10) == 30
