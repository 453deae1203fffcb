"""A plugin makes stages of objects of another library, which `Pipeline.add` then takes as they are."""

from __future__ import annotations

import pytest
import torch

from orchestrator import ModelWrapper, Pipeline, PluginError, TensorSpec, hookimpl
from orchestrator.plugin import PluginManager
from orchestrator.testing.pytest_plugin import make_plugins


class Foreign:
    """An object of another library: it cannot even be called."""


class Adopts:
    """Adopts what is foreign, and notes what it was shown."""

    def __init__(self, made: object = None) -> None:
        self.made = made
        self.seen: list[object] = []

    @hookimpl
    def orchestrator_adopt_stage(self, target):
        self.seen.append(target)
        if not isinstance(target, Foreign):
            return None
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


@pytest.fixture
def plugins() -> PluginManager:
    return make_plugins()


def doubled() -> ModelWrapper:
    class Wrapper(ModelWrapper):
        def forward(self, x):
            return 2 * x

    return Wrapper()


def run(plugins: PluginManager, stage: object) -> torch.Tensor:
    pipeline = Pipeline("p", plugins=plugins)
    pipeline.output("y", pipeline.add("stage", stage)(pipeline.input("x", TensorSpec((2, 3)))))
    with pipeline.plan("cpu").load() as session:
        return session(x=torch.ones(2, 3))["y"]


def test_an_adopted_object_runs(plugins: PluginManager):
    plugins.register(Adopts(doubled()), "adopts")
    assert run(plugins, Foreign()).tolist() == [[2.0] * 3] * 2


def test_plain_modules_stay_what_they_are(plugins: PluginManager):
    plugin = Adopts(doubled())
    plugins.register(plugin, "adopts")
    module = torch.nn.Identity()
    assert run(plugins, module).tolist() == [[1.0] * 3] * 2
    assert plugin.seen == [module]
    run(plugins, doubled())
    assert plugin.seen == [module], "a wrapper of this project's own needs nobody to adopt it"


def test_the_first_that_knows_the_object_adopts_it(plugins: PluginManager):
    other, knows = Adopts(None), Adopts(doubled())
    plugins.register(other, "other")
    plugins.register(knows, "knows")
    assert run(plugins, Foreign()).tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("made", [ValueError("no config"), torch.nn.Identity()], ids=["raises", "no wrapper"])
def test_a_plugin_that_fails_at_it_is_named(plugins: PluginManager, made: object):
    plugins.register(Adopts(made), "adopts")
    with pytest.raises(PluginError, match="adopts") as caught:
        run(plugins, Foreign())
    if isinstance(made, Exception):
        assert caught.value.__cause__ is made
        assert "no config" in str(caught.value)


def test_nobody_knows_it():
    with pytest.raises(Exception, match="a stage is a module, a function"):
        run(make_plugins(), Foreign())
