"""Plugins of installed distributions: found, loaded one by one, and a broken one harms no other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import PluginError
from orchestrator.plugin import PluginManager
from orchestrator.registry import DISABLE_VARIABLE, BrokenPlugin, Owner

REGISTERS = """
@hookimpl
def orchestrator_register_stages(registry):
    registry.add("{name}.stage", "{name}_stages:Stage", summary="A stage")

@hookimpl
def orchestrator_register_backends(registry):
    registry.add("{name}-backend", "{name}_stages:Backend", devices=("{name}",))

@hookimpl
def orchestrator_register_pipelines(registry):
    registry.add("{name}-pipeline", "{name}_stages:build")
"""


def broken_plugin(manager: PluginManager, name: str) -> BrokenPlugin:
    (found,) = [plugin for plugin in manager.broken_plugins if plugin.name == name]
    return found


def stages_of(manager: PluginManager, *plugins: str) -> list[str]:
    return [entry.name for entry in manager.registry.stages.entries() if entry.plugin in plugins]


def test_a_distribution_registers_by_entry_point(site):
    site.plugin("zebra", REGISTERS.format(name="zebra"), version="2.5")
    site.module("zebra_stages", "class Stage: pass\nclass Backend: pass\ndef build(): return 'built'")
    manager = PluginManager()
    owner = Owner("zebra", "zebra-dist", "2.5")
    assert owner in manager.plugins
    assert manager.registry.stages.get("zebra.stage").owner == owner
    assert manager.registry.backends.for_device("zebra:3").name == "zebra-backend"
    assert "zebra_stages" not in sys.modules
    assert manager.registry.pipelines.get("zebra-pipeline").load()() == "built"


def test_an_entry_point_may_name_an_object(site):
    site.module(
        "zebra_plugin",
        """
        from orchestrator.plugin import hookimpl
        class Plugin:
            def __init__(self, names): self.names = names
            @hookimpl
            def orchestrator_register_stages(self, registry):
                for name in self.names: registry.add(name, Plugin)
        class Holder:
            plugin = Plugin(("zebra.a", "zebra.b"))
        """,
    )
    site.distribution("zebra-dist", {"zebra": "zebra_plugin:Holder.plugin"})
    assert stages_of(PluginManager(), "zebra") == ["zebra.a", "zebra.b"]


def test_entry_points_can_be_left_alone(site):
    site.plugin("zebra", REGISTERS.format(name="zebra"))
    manager = PluginManager(load_entry_points=False)
    assert manager.plugins == ()
    assert "zebra_plugin" not in sys.modules


def test_loading_again_finds_what_was_installed_since(site):
    site.plugin("zebra", REGISTERS.format(name="zebra"))
    manager = PluginManager()
    before = manager.plugins
    site.plugin("yak", REGISTERS.format(name="yak"))
    manager.load_entry_points()
    assert set(manager.plugins) - set(before) == {Owner("yak", "yak-dist", "1.0")}
    assert stages_of(manager, "zebra", "yak") == ["yak.stage", "zebra.stage"]


FAULTS = {
    "missing dependency": ("import absent_dependency", r"ModuleNotFoundError.*Install 'absent_dependency'"),
    "wrong import": (
        "from json import absent_name",
        r"ImportError.*absent_name.*Upgrade or repair 'bad-dist'",
    ),
    "syntax": ("def broken(:", r"SyntaxError"),
    "raises": ("raise RuntimeError('no licence')", r"RuntimeError: no licence"),
    "exits": ("import sys; sys.exit(3)", r"SystemExit: 3"),
    "hook raises": (
        "@hookimpl\ndef orchestrator_register_stages(registry): 1 / 0",
        r"failed while it registered: ZeroDivisionError.*Upgrade or repair 'bad-dist'",
    ),
    "hook exits": (
        "@hookimpl\ndef orchestrator_register_stages(registry): raise SystemExit(2)",
        r"failed while it registered: SystemExit",
    ),
    "unfit name": (
        "@hookimpl\ndef orchestrator_register_stages(registry): registry.add('two words', 'a:B')",
        r"adds the stage 'two words'",
    ),
    "wrong signature": (
        "@hookimpl\ndef orchestrator_register_stages(register): pass",
        r"orchestrator_register_stages\(register\).*orchestrator_register_stages\(registry\).*'registry'\?",
    ),
    "unknown hook": (
        "@hookimpl\ndef orchestrator_register_stage(registry): pass",
        r"'orchestrator_register_stage', which is no hook.*Did you mean 'orchestrator_register_stages'",
    ),
    "no hook": ("answer = 42", r"has no hook: module 'bad_plugin'"),
    "taken name": (
        "@hookimpl\ndef orchestrator_register_stages(registry): registry.add('aardvark.stage', 'a:B')",
        r"'aardvark.stage' is registered twice: by plugin 'aardvark'.*by plugin 'bad' \(distribution",
    ),
}


@pytest.mark.parametrize(("source", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_broken_plugin_is_recorded_and_the_others_work(source: str, message: str, site):
    site.plugin("aardvark", REGISTERS.format(name="aardvark"))
    site.plugin("bad", source, version="0.9")
    site.plugin("zebra", REGISTERS.format(name="zebra"))
    manager = PluginManager()
    assert stages_of(manager, "aardvark", "bad", "zebra") == ["aardvark.stage", "zebra.stage"]
    assert "bad" not in {owner.plugin for owner in manager.plugins}
    broken = broken_plugin(manager, "bad")
    assert (broken.distribution, broken.version) == ("bad-dist", "0.9")
    text = " ".join(str(broken.error).split())
    assert broken.owner == Owner("bad", "bad-dist", "0.9")
    assert "plugin 'bad' (distribution bad-dist 0.9)" in text
    assert re.search(message, text)


def test_the_error_of_a_broken_plugin_keeps_its_cause(site):
    site.plugin("bad", "raise RuntimeError('no licence')")
    cause = broken_plugin(PluginManager(), "bad").error.__cause__
    assert isinstance(cause, RuntimeError)
    assert cause.__traceback__ is not None


def test_ctrl_c_while_a_plugin_is_imported_is_not_swallowed(site):
    site.plugin("bad", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        PluginManager()


def test_a_broken_plugin_is_fatal_only_for_a_name_it_would_give(site):
    site.plugin("aardvark", REGISTERS.format(name="aardvark"))
    site.plugin(
        "bad",
        REGISTERS.format(name="bad") + "\n@hookimpl\ndef orchestrator_plan_maid(plan): pass\n",
    )
    site.plugin("worse", REGISTERS.format(name="worse") + "\nimport absent_dependency\n")
    registry = PluginManager().registry
    assert registry.stages.get("aardvark.stage").name == "aardvark.stage"
    for unknown in ("bad.stage", "worse.stage"):
        with pytest.raises(
            PluginError, match=r"(?s)broken plugin.*'bad'.*broken plugin.*'worse'.*absent_dependency"
        ):
            registry.stages.get(unknown)


def test_the_error_for_a_name_names_the_plugin_that_added_it_before_it_failed(site):
    site.plugin(
        "bad",
        """
        @hookimpl
        def orchestrator_register_stages(registry):
            registry.add("bad.good", "a:B")
            registry.add("bad.good", "a:C")
        """,
    )
    site.plugin("worse", "import absent_dependency")
    registry = PluginManager().registry
    with pytest.raises(
        PluginError, match=r"'bad\.good'\. It comes with a broken plugin\. .*twice by plugin 'bad'"
    ) as caught:
        registry.stages.get("bad.good")
    assert "worse" not in str(caught.value)


def test_of_a_plugin_that_fails_in_its_last_hook_nothing_is_left(site):
    site.plugin(
        "bad",
        """
        @hookimpl
        def orchestrator_register_stages(registry): registry.add("bad.stage", "a:B")
        @hookimpl
        def orchestrator_register_backends(registry): registry.add("bad", "a:B")
        @hookimpl
        def orchestrator_register_pipelines(registry): raise OSError("disk")
        @hookimpl
        def orchestrator_plan_made(plan): raise AssertionError("must not be called")
        """,
    )
    manager = PluginManager()
    assert stages_of(manager, "bad") == []
    assert "bad" not in manager.registry.backends.devices
    assert "bad" not in {observer.owner.plugin for observer in manager.observers_of("orchestrator_plan_made")}
    assert {("stage", "bad.stage"), ("device", "bad")} <= set(broken_plugin(manager, "bad").provides)


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_of_two_plugins_with_one_name_the_first_by_distribution_is_loaded(order: tuple[str, str], site):
    for name in order:
        site.module(
            f"{name}_plugin", f"from orchestrator.plugin import hookimpl\n{REGISTERS.format(name=name)}"
        )
        site.distribution(f"{name}-dist", {"twin": f"{name}_plugin"})
    manager = PluginManager()
    assert Owner("twin", "one-dist", "1.0") in manager.plugins
    broken = broken_plugin(manager, "twin")
    assert broken.distribution == "two-dist"
    assert broken.error.distributions == ("one-dist", "two-dist")
    assert "one-dist 1.0" in str(broken.error)
    assert "two-dist 1.0" in str(broken.error)


def test_of_two_plugins_with_one_stage_name_the_first_by_plugin_is_loaded(site):
    for name in ("zebra", "aardvark"):
        site.plugin(name, REGISTERS.format(name="same"))
    manager = PluginManager()
    assert manager.registry.stages.get("same.stage").plugin == "aardvark"
    assert broken_plugin(manager, "zebra").error.plugins == ("aardvark", "zebra")


def test_what_the_core_ships_cannot_be_displaced(site):
    site.plugin("aaa", REGISTERS.format(name="same"))
    site.module("core_plugin", f"from orchestrator.plugin import hookimpl\n{REGISTERS.format(name='same')}")
    site.distribution("stage-orchestrator", {"zzz": "core_plugin"})
    assert PluginManager().registry.stages.get("same.stage").plugin == "zzz"


@pytest.mark.parametrize(
    "target", ["bad_plugin:absent", "absent_module", "not a module", ":", "bad_plugin:Holder.absent"]
)
def test_an_entry_point_that_names_nothing(target: str, site):
    site.module("bad_plugin", "class Holder: pass")
    site.distribution("bad-dist", {"bad": target})
    site.plugin("zebra", REGISTERS.format(name="zebra"))
    manager = PluginManager()
    assert stages_of(manager, "zebra") == ["zebra.stage"]
    assert f"cannot be loaded from {target!r}" in str(broken_plugin(manager, "bad").error)


def test_entry_points_that_cannot_be_read(site):
    site.raw_distribution("bad-dist", "[orchestrator]\nno equals sign here\n", version="0.1")
    site.plugin("zebra", REGISTERS.format(name="zebra"))
    manager = PluginManager()
    assert stages_of(manager, "zebra") == ["zebra.stage"]
    assert "bad-dist" in {plugin.distribution for plugin in manager.broken_plugins}


def test_another_packages_unreadable_entry_points_are_not_our_business(site):
    site.raw_distribution("bad-dist", "[console_scripts]\nno equals sign here\n")
    site.plugin("zebra", REGISTERS.format(name="zebra"))
    manager = PluginManager()
    assert stages_of(manager, "zebra") == ["zebra.stage"]
    assert "bad-dist" not in {plugin.distribution for plugin in manager.broken_plugins}


def test_a_distribution_without_metadata(site):
    site.plugin("zebra", REGISTERS.format(name="zebra"))
    (site.folder / "zebra_dist-1.0.dist-info" / "METADATA").unlink()
    assert stages_of(PluginManager(), "zebra") == ["zebra.stage"]


# --- Left out on purpose


@pytest.mark.parametrize("names", ["bad,zebra", " zebra , bad,", "zebra,bad,never-installed"])
def test_plugins_are_left_out_by_name(names: str, site, monkeypatch: pytest.MonkeyPatch):
    for name in ("aardvark", "zebra"):
        site.plugin(name, REGISTERS.format(name=name))
    site.plugin("bad", "raise RuntimeError")
    monkeypatch.setenv(DISABLE_VARIABLE, names)
    manager = PluginManager()
    assert stages_of(manager, "aardvark", "zebra") == ["aardvark.stage"]
    assert {"bad", "zebra"} <= set(manager.blocked_plugins)
    assert "bad" not in {plugin.name for plugin in manager.broken_plugins}
    assert "zebra_plugin" not in sys.modules
    with pytest.raises(PluginError, match=r"ORCHESTRATOR_DISABLE_PLUGINS leaves out: .*'zebra'"):
        manager.registry.stages.get("zebra.stage")


def test_the_variable_is_read_when_a_manager_is_made(site, monkeypatch: pytest.MonkeyPatch):
    site.plugin("zebra", REGISTERS.format(name="zebra"))
    monkeypatch.setenv(DISABLE_VARIABLE, "zebra")
    assert stages_of(PluginManager(), "zebra") == []
    monkeypatch.setenv(DISABLE_VARIABLE, "")
    assert stages_of(PluginManager(), "zebra") == ["zebra.stage"]


# --- In an interpreter of its own


def interpret(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_default_manager_is_one_for_all_threads_even_when_a_plugin_asks_for_it(site):
    site.plugin(
        "zebra",
        """
        import time
        from orchestrator.plugin import default_manager
        partial = default_manager()
        time.sleep(0.2)
        @hookimpl
        def orchestrator_register_stages(registry): registry.add("zebra.stage", "a:B")
        """,
    )
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from orchestrator.plugin import default_manager\n"
        "def ask(_):\n"
        "    manager = default_manager()\n"
        "    return id(manager), 'zebra.stage' in manager.registry.stages\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    print(len(set(pool.map(ask, range(8)))), ask(0)[1])\n"
    )
    assert interpret(code, site.folder) == "1 True"


def test_the_plugin_host_loads_neither_torch_nor_networkx(site):
    site.plugin("zebra", REGISTERS.format(name="zebra"))
    code = (
        "from orchestrator.plugin import PluginManager\n"
        "PluginManager(load_entry_points=False)\n"
        "print(sorted({'torch', 'networkx', 'numpy'} & set(sys.modules)))\n"
    )
    assert interpret(code, site.folder) == "[]"
