"""Registering by hand: what a plugin must be, and that a refused one leaves nothing behind."""

from __future__ import annotations

import functools
import sys
import types

import pytest

from orchestrator.errors import PluginError
from orchestrator.plugin import PluginManager, hookimpl
from orchestrator.plugin.hookspecs import ADOPTING, HOOKS, OBSERVERS, REGISTERING
from orchestrator.registry import DISABLE_VARIABLE, Owner


class Names:
    """A plugin that registers the stages it is made with."""

    def __init__(self, *names: str) -> None:
        self.names = names

    @hookimpl
    def orchestrator_register_stages(self, registry):
        for name in self.names:
            registry.add(name, Names)


def module_of(*functions: object) -> types.ModuleType:
    module = types.ModuleType("made_plugin")
    for function in functions:
        setattr(module, function.__name__, function)
    return module


def refusal(manager: PluginManager, plugin: object) -> str:
    """The message with which a plugin is refused; checks that nothing of it stays."""
    before = manager.plugins, manager.registry.provides()
    with pytest.raises(PluginError) as caught:
        manager.register(plugin, "bad")
    assert (manager.plugins, manager.registry.provides()) == before
    assert all(
        observer.owner.plugin != "bad" for hook in OBSERVERS for observer in manager.observers_of(hook)
    )
    (broken,) = [plugin for plugin in manager.broken_plugins if plugin.name == "bad"]
    assert broken.error is caught.value
    assert "plugin 'bad' (registered by hand, no distribution)" in str(caught.value)
    return str(caught.value)


def test_the_hooks_are_those_of_the_contract():
    assert HOOKS == {
        "orchestrator_register_stages": ("registry",),
        "orchestrator_register_backends": ("registry",),
        "orchestrator_register_pipelines": ("registry",),
        "orchestrator_adopt_stage": ("target",),
        "orchestrator_plan_made": ("plan",),
        "orchestrator_stage_finished": ("pipeline", "call", "device", "seconds"),
        "orchestrator_request_finished": ("pipeline", "seconds", "error"),
    }
    assert {*REGISTERING, ADOPTING, *OBSERVERS} == set(HOOKS)


def test_an_object_is_registered_and_named(manager: PluginManager):
    assert manager.register(Names("a"), "mine") == Owner("mine")
    assert manager.plugins == (Owner("mine"),)
    assert manager.registry.stages.get("a").load() is Names


def test_the_name_is_by_default_that_of_the_module_or_class(manager: PluginManager):
    @hookimpl
    def orchestrator_plan_made(plan): ...

    assert manager.register(Names()) == Owner("Names")
    assert manager.register(module_of(orchestrator_plan_made)) == Owner("made_plugin")


def test_managers_share_nothing(manager: PluginManager):
    manager.register(Names("a"), "mine")
    assert "a" not in PluginManager(load_entry_points=False).registry.stages


def test_a_plugin_can_be_unregistered_whole_and_registered_anew(manager: PluginManager):
    plugin = Names("a")
    manager.register(plugin, "mine")
    manager.unregister("mine")
    assert (manager.plugins, len(manager.registry.stages)) == ((), 0)
    manager.register(plugin, "mine")
    assert "a" in manager.registry.stages


def test_unregistering_what_is_not_there_offers_the_nearest(manager: PluginManager):
    manager.register(Names(), "mine")
    with pytest.raises(PluginError, match=r"No plugin 'mime' is loaded\. Did you mean 'mine'\?"):
        manager.unregister("mime")


def test_a_second_plugin_of_the_same_name_is_refused(manager: PluginManager):
    manager.register(Names("a"), "mine")
    with pytest.raises(PluginError, match="Two plugins are named 'mine'"):
        manager.register(Names("b"), "mine")
    assert list(manager.registry.stages) == ["a"]
    assert manager.plugins == (Owner("mine"),)
    assert manager.broken_plugins == ()


def test_one_object_is_one_plugin(manager: PluginManager):
    plugin = Names("a")
    manager.register(plugin, "mine")
    assert "same object as plugin 'mine'" in refusal(manager, plugin)


def test_a_taken_name_leaves_the_whole_plugin_out(manager: PluginManager):
    manager.register(Names("a", "b"), "mine")
    message = refusal(manager, Names("c", "b"))
    assert "plugin 'mine'" in message
    assert "'b' is registered twice" in message


def test_a_mended_plugin_is_broken_no_more(manager: PluginManager):
    plugin = Names("two words")
    refusal(manager, plugin)
    plugin.names = ("one-word",)
    manager.register(plugin, "bad")
    assert manager.broken_plugins == ()
    assert list(manager.registry.stages) == ["one-word"]


def test_a_blocked_name_is_not_registered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(DISABLE_VARIABLE, "mine")
    manager = PluginManager(load_entry_points=False)
    assert manager.register(Names("a"), "mine") is None
    assert (manager.plugins, len(manager.registry.stages), manager.blocked_plugins) == ((), 0, ("mine",))


def test_a_registry_kept_beyond_the_hook_takes_nothing_more(manager: PluginManager):
    kept = []

    class Keeps:
        @hookimpl
        def orchestrator_register_stages(self, registry):
            kept.append(registry)

    manager.register(Keeps(), "keeper")
    with pytest.raises(PluginError, match=r"plugin 'keeper'.*after its hook has returned"):
        kept[0].add("late", Names)


# --- Hooks that are none


@hookimpl
def orchestrator_register_stage(registry): ...


def orchestrator_plan_made(plan): ...


def orchestrator_setup(): ...


@hookimpl(specname="orchestrator_plan_maid")
def on_plan(plan): ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (orchestrator_register_stage, ("no hook", "Did you mean 'orchestrator_register_stages'")),
        (orchestrator_setup, ("'orchestrator_setup', which is no hook", "kept for hooks")),
        (orchestrator_plan_made, ("orchestrator_plan_made(plan) without its marker", "@hookimpl")),
        (on_plan, ("'on_plan' (specname='orchestrator_plan_maid')", "Did you mean 'orchestrator_plan_made'")),
    ],
)
def test_a_function_that_would_never_be_called_is_refused(
    function: object, words: tuple[str, ...], manager: PluginManager
):
    message = refusal(manager, module_of(function))
    assert all(part in message for part in words), message


@pytest.mark.parametrize("plugin", [types.ModuleType("empty"), object(), None, 3, ["a"], Names.__init__])
def test_what_has_no_hook_is_refused(plugin: object, manager: PluginManager):
    assert "has no hook" in refusal(manager, plugin)


def test_nothing_is_no_plugin_even_when_a_name_is_blocked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(DISABLE_VARIABLE, "mine")
    assert "has no hook" in refusal(PluginManager(load_entry_points=False), None)


def test_an_optional_hook_may_be_unknown(manager: PluginManager):
    class Newer(Names):
        @hookimpl(optionalhook=True)
        def orchestrator_from_the_future(self, anything): ...

    manager.register(Newer("a"), "newer")
    assert "a" in manager.registry.stages


def test_a_hook_may_have_a_name_of_its_own(manager: PluginManager):
    class Plugin:
        @hookimpl(specname="orchestrator_register_stages")
        def first(self, registry):
            registry.add("a", Names)

        @hookimpl(specname="orchestrator_register_stages")
        def second(self, registry):
            registry.add("b", Names)

    manager.register(Plugin(), "mine")
    assert list(manager.registry.stages) == ["a", "b"]


def test_imported_modules_and_properties_are_no_hooks(manager: PluginManager):
    class Plugin(Names):
        orchestrator_stages = sys  # as `import orchestrator_stages` leaves it in a module

        @property
        def orchestrator_property(self):
            raise AssertionError("not ours to run")

        @functools.cached_property
        def costly(self):
            raise AttributeError("not ours to run")

    manager.register(Plugin("a"), "mine")
    assert "a" in manager.registry.stages


# --- Signatures


def second(call, second): ...


def star(*everything): ...


def double_star(call, **rest): ...


def positional(call, /): ...


async def coroutine(call): ...


def generator(call):
    yield


def wrapper(call):
    return (yield)


@pytest.mark.parametrize(
    ("function", "options", "fix"),
    [
        (second, {}, "there is no 'second'. Did you mean 'seconds'?"),
        (star, {}, "'*everything' cannot be passed by name"),
        (double_star, {}, "'**rest' cannot be passed by name"),
        (positional, {}, "cannot be passed by name"),
        (coroutine, {}, "write 'def' in place of 'async def'"),
        (generator, {}, "drop the wrapper option and the yield"),
        (wrapper, {"wrapper": True}, "drop the wrapper option and the yield"),
    ],
)
def test_a_wrong_signature_is_refused_with_the_real_one(
    function: object, options: dict[str, bool], fix: str, manager: PluginManager
):
    marked = hookimpl(specname="orchestrator_stage_finished", **options)(function)
    message = refusal(manager, module_of(marked))
    assert "orchestrator_stage_finished(pipeline, call, device, seconds)" in message
    assert fix in message


def test_a_registering_hook_needs_its_registry(manager: PluginManager):
    class Plugin:
        @hookimpl
        def orchestrator_register_stages(self): ...

    assert "add that parameter" in refusal(manager, Plugin())


def test_a_class_in_place_of_an_instance_is_refused(manager: PluginManager):
    assert "'Names' is a class; register an instance" in refusal(manager, Names)


def test_static_and_class_methods_are_hooks(manager: PluginManager):
    class Plugin:
        @staticmethod
        @hookimpl
        def orchestrator_register_stages(registry):
            registry.add("static", Names)

        @classmethod
        @hookimpl
        def orchestrator_register_pipelines(cls, registry):
            registry.add("class", cls)

    manager.register(Plugin, "mine")
    assert "static" in manager.registry.stages
    assert manager.registry.pipelines.get("class").load() is Plugin


def test_a_parameter_with_a_default_may_be_one_of_a_later_version(manager: PluginManager):
    class Plugin:
        @hookimpl
        def orchestrator_register_stages(self, registry, scope="all"):
            registry.add(scope, Names)

    manager.register(Plugin(), "mine")
    assert "all" in manager.registry.stages
