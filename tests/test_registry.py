"""Typed registries: names are unique and fit, entries load on use, every error says who and what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.errors import PluginError
from orchestrator.registry import (
    BackendRegistry,
    BrokenPlugin,
    NameRegistry,
    Owner,
    PipelineRegistry,
    Registry,
    RegistryEntry,
    StageRegistry,
)

ACME = Owner("acme", "acme-stages", "1.2")
OTHER = Owner("other", "other-stages", "0.3")


class Stage:
    """Something a name can stand for."""


def test_an_entry_says_what_it_is_and_who_gave_it():
    stages = StageRegistry(ACME)
    stages.add("acme.upscale", "acme.upscale:Upscale", summary="Doubles a picture")
    entry = stages.get("acme.upscale")
    assert entry == RegistryEntry("stage", "acme.upscale", "acme.upscale:Upscale", "Doubles a picture", ACME)
    assert (entry.plugin, entry.distribution, entry.version) == ("acme", "acme-stages", "1.2")


def test_names_are_iterated_in_order_whatever_the_order_of_adding():
    stages = StageRegistry()
    for name in ("b", "c", "a"):
        stages.add(name, Stage)
    assert list(stages) == ["a", "b", "c"]
    assert [entry.name for entry in stages.entries()] == ["a", "b", "c"]
    assert len(stages) == 3
    assert "b" in stages
    assert "d" not in stages


def test_reading_goes_on_while_names_are_added():
    stages = StageRegistry()
    stages.add("a", Stage)
    for name in stages:
        stages.add(f"{name}.more", Stage)
    assert list(stages) == ["a", "a.more"]


@pytest.mark.parametrize("kind", [StageRegistry, BackendRegistry, PipelineRegistry])
@pytest.mark.parametrize("name", ["vision-text", "vision-text.fusion", "größe", "a/b", "v1_2"])
def test_legal_names(kind: type[NameRegistry], name: str):
    registry = kind()
    registry.add(name, Stage)
    assert registry.get(name).load() is Stage


@pytest.mark.parametrize("kind", [StageRegistry, BackendRegistry, PipelineRegistry])
@pytest.mark.parametrize(
    "name", ["", " ", "two words", "tab\t", "a->b", "module:Name", "--flag", "a\x00b", None, 7]
)
def test_unfit_names_are_refused(kind: type[NameRegistry], name: str):
    registry = kind(ACME)
    with pytest.raises(PluginError, match=r"plugin 'acme' \(distribution acme-stages 1\.2\).*name") as error:
        registry.add(name, Stage)
    assert error.value.plugin == "acme"
    assert len(registry) == 0


@pytest.mark.parametrize(
    "target", ["acme.upscale", "acme upscale:Upscale", ":Upscale", "acme:", "1acme:A", "a.:b", None, 3]
)
def test_unfit_targets_are_refused(target: object):
    with pytest.raises(PluginError, match=r"target.*(package\.module:Attribute|import path)"):
        StageRegistry(ACME).add("upscale", target)


@pytest.mark.parametrize("summary", [None, 3, "two\nlines"])
def test_unfit_summaries_are_refused(summary: str):
    with pytest.raises(PluginError, match="one line of text"):
        StageRegistry(ACME).add("upscale", Stage, summary=summary)


def test_an_unknown_name_offers_the_nearest():
    stages = StageRegistry()
    stages.add("vision", Stage)
    with pytest.raises(
        PluginError, match=r"No stage is registered as 'visoin'\. Did you mean 'vision'\?"
    ) as error:
        stages.get("visoin")
    assert (error.value.kind, error.value.name, error.value.known) == ("stage", "visoin", ("vision",))


def test_a_name_twice_in_one_plugin_is_refused():
    stages = StageRegistry(ACME)
    stages.add("upscale", "acme.a:A")
    with pytest.raises(
        PluginError, match=r"'upscale' is registered twice by plugin 'acme'.*'acme\.a:A'.*'acme\.b:B'.*Rename"
    ):
        stages.add("upscale", "acme.b:B")
    assert stages.get("upscale").target == "acme.a:A"


# --- Loading


def test_a_target_is_imported_on_use_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lazy_target_module.py").write_text("class Outer:\n    class Inner: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    stages = StageRegistry()
    stages.add("inner", "lazy_target_module:Outer.Inner")
    entry = stages.get("inner")
    assert "lazy_target_module" not in sys.modules
    try:
        assert entry.load().__name__ == "Inner"
        assert entry.load() is entry.load()
    finally:
        sys.modules.pop("lazy_target_module", None)


@pytest.mark.parametrize(
    ("source", "attribute", "message"),
    [
        pytest.param(
            "raise RuntimeError('no device')", "A", "RuntimeError: no device.*Repair or upgrade", id="raises"
        ),
        pytest.param("def broken(:", "A", "SyntaxError.*Repair or upgrade", id="syntax"),
        pytest.param("import absent_dependency", "A", "Install 'absent_dependency'", id="dependency"),
        pytest.param(
            "Upscale = int",
            "Upscal",
            "no 'Upscal'.*Did you mean 'Upscale'.*Correct the target",
            id="attribute",
        ),
        pytest.param(
            "number = 3", "number", "type 'int'.*class or a factory.*Correct the target", id="not callable"
        ),
    ],
)
def test_a_target_that_cannot_be_loaded(
    source: str, attribute: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken_target_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    target = f"broken_target_module:{attribute}"
    entry = RegistryEntry("stage", "upscale", target, owner=ACME)
    try:
        with pytest.raises(PluginError, match=f"(?s){message}") as caught:
            entry.load()
    finally:
        sys.modules.pop("broken_target_module", None)
    error = caught.value
    for words in ("stage 'upscale'", "plugin 'acme'", "acme-stages 1.2", repr(target)):
        assert words in str(error)
    assert (error.plugin, error.distribution, error.target) == ("acme", "acme-stages", target)


def test_a_target_in_a_module_that_does_not_exist():
    with pytest.raises(PluginError, match="Correct the target") as error:
        RegistryEntry("stage", "upscale", "no_such_package.module:A", owner=ACME).load()
    assert isinstance(error.value.__cause__, ModuleNotFoundError)


def test_ctrl_c_while_a_target_is_imported_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "interrupted_module.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        RegistryEntry("stage", "upscale", "interrupted_module:A").load()


# --- Backends


def test_a_backend_is_found_by_the_family_of_a_device_string():
    backends = BackendRegistry()
    backends.add("torch", Stage, devices=("cpu", "cuda"))
    backends.add("null", Stage)
    assert backends.devices == ("cpu", "cuda", "null")
    assert backends.for_device("cuda:1").name == "torch"
    assert backends.for_device("cpu").name == "torch"
    assert backends.for_device("null:0").name == "null"


def test_one_device_need_not_be_a_tuple():
    backends = BackendRegistry()
    backends.add("torch", Stage, devices="cuda")
    assert backends.get("torch").devices == ("cuda",)


def test_an_unknown_device_offers_the_nearest():
    backends = BackendRegistry()
    backends.add("torch", Stage, devices=("cpu", "cuda"))
    with pytest.raises(PluginError, match=r"'cudo:0'\. Did you mean 'cuda'\?") as error:
        backends.for_device("cudo:0")
    assert error.value.device == "cudo:0"
    assert error.value.known == ("cpu", "cuda")


@pytest.mark.parametrize("device", ["", "cuda:0", "host", "two words", None])
def test_unfit_devices_are_refused(device: str):
    backends = BackendRegistry(ACME)
    with pytest.raises(PluginError, match=r"plugin 'acme'.*device"):
        backends.add("torch", Stage, devices=(device,))
    assert backends.devices == ()


def test_a_device_family_has_one_backend():
    backends = BackendRegistry()
    backends.add("torch", Stage, devices=("cpu", "cuda"))
    with pytest.raises(PluginError, match="backend for device 'cuda' is registered twice"):
        backends.add("rival", Stage, devices=("tpu", "cuda"))
    assert backends.devices == ("cpu", "cuda")


# --- The three together


def staged(owner: Owner, *stages: str, devices: tuple[str, ...] = ()) -> Registry:
    registry = Registry(owner)
    for name in stages:
        registry.stages.add(name, Stage)
    if devices:
        registry.backends.add(f"{owner.plugin}-backend", Stage, devices=devices)
    return registry


def test_what_is_adopted_keeps_its_owner_and_can_be_dropped():
    registry = Registry()
    registry.adopt(staged(ACME, "a", devices=("x",)))
    registry.adopt(staged(OTHER, "b"))
    assert registry.stages.get("a").owner == ACME
    assert registry.stages.get("b").owner == OTHER
    registry.drop(ACME)
    assert list(registry.stages) == ["b"]
    assert registry.backends.devices == ()


@pytest.mark.parametrize("second", [staged(OTHER, "new", "a"), staged(OTHER, "new", devices=("y", "x"))])
def test_all_is_adopted_or_nothing(second: Registry):
    registry = Registry()
    registry.adopt(staged(ACME, "a", devices=("x",)))
    before = registry.provides()
    with pytest.raises(PluginError, match="registered twice") as error:
        registry.adopt(second)
    assert registry.provides() == before
    for words in (
        "plugin 'acme' (distribution acme-stages 1.2)",
        "plugin 'other' (distribution other-stages 0.3)",
    ):
        assert words in str(error.value)
    assert "ORCHESTRATOR_DISABLE_PLUGINS=other" in str(error.value)
    assert error.value.plugins == ("acme", "other")
    assert error.value.distributions == ("acme-stages", "other-stages")


def test_nothing_can_be_added_to_a_registry_that_was_adopted():
    late = staged(ACME, "a")
    Registry().adopt(late)
    with pytest.raises(PluginError, match="after its hook has returned"):
        late.stages.add("b", Stage)


def broken(owner: Owner, *names: tuple[str, str]) -> BrokenPlugin:
    error = PluginError(f"{owner} cannot be loaded: it is out of tune.")
    return BrokenPlugin(owner.plugin, owner.distribution, owner.version, error, names)


def test_an_unknown_name_tells_which_broken_plugin_gives_it():
    registry = Registry()
    registry.adopt(staged(ACME, "upscal"))
    registry.add_broken(broken(OTHER, ("stage", "upscale"), ("device", "tpu")))
    with pytest.raises(PluginError, match=r"comes with a broken plugin.*'other'.*out of tune") as error:
        registry.stages.get("upscale")
    assert "Did you mean" not in str(error.value)
    with pytest.raises(PluginError, match=r"comes with a broken plugin.*'other'"):
        registry.backends.for_device("tpu:0")


def test_an_unknown_name_tells_which_plugins_may_give_it():
    registry = Registry()
    registry.adopt(staged(ACME, "upscal"))
    registry.add_broken(broken(OTHER))
    registry.block(["third"])
    with pytest.raises(
        PluginError, match=r"Did you mean 'upscal'\?.*may come with.*'other'.*leaves out: 'third'"
    ):
        registry.stages.get("upscale")


def test_a_plugin_that_was_mended_is_broken_no_more():
    registry = Registry()
    registry.add_broken(broken(ACME))
    registry.add_broken(broken(ACME))
    assert len(registry.broken_plugins) == 1
    registry.adopt(staged(ACME, "a"))
    assert registry.broken_plugins == ()
