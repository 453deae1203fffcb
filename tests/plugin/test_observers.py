"""Observers: who listens is known beforehand, and one that raises harms nobody."""

from __future__ import annotations

import logging

import pytest

from orchestrator.errors import PluginError
from orchestrator.plugin import PluginManager, hookimpl

FINISHED = "orchestrator_stage_finished"
CALL = {"pipeline": "p", "call": "enc#2", "device": "cpu", "seconds": 0.5}


class Listener:
    """Writes down what it is told; `fail` makes it raise first."""

    def __init__(self, name: str = "", told: list[object] | None = None) -> None:
        self.name = name
        self.told: list[object] = [] if told is None else told
        self.fail: BaseException | None = None

    @hookimpl
    def orchestrator_stage_finished(self, call, seconds):
        self.told.append((self.name, call, seconds))
        if self.fail is not None:
            raise self.fail


def test_nobody_listens(manager: PluginManager):
    assert not manager.observers_of(FINISHED)
    manager.notify(FINISHED, **CALL)


def test_an_observer_is_told_what_it_asks_for(manager: PluginManager):
    listener = Listener("one")
    manager.register(listener, "one")
    (observer,) = manager.observers_of(FINISHED)
    assert (observer.hook, observer.owner.plugin) == (FINISHED, "one")
    observer(**CALL)
    assert listener.told == [("one", "enc#2", 0.5)]
    assert not manager.observers_of("orchestrator_plan_made")


def test_a_parameter_with_a_default_is_told_too(manager: PluginManager):
    told = []

    class Plugin:
        @hookimpl
        def orchestrator_stage_finished(self, call, *, device="?", tokens=7):
            told.append((call, device, tokens))

    manager.register(Plugin(), "one")
    manager.notify(FINISHED, **CALL)
    assert told == [("enc#2", "cpu", 7)]


def test_observers_are_called_in_the_order_pluggy_gives(manager: PluginManager):
    told: list[object] = []

    class First(Listener):
        @hookimpl(tryfirst=True)
        def orchestrator_stage_finished(self, call, seconds):
            super().orchestrator_stage_finished(call, seconds)

    class Last(Listener):
        @hookimpl(trylast=True)
        def orchestrator_stage_finished(self, call, seconds):
            super().orchestrator_stage_finished(call, seconds)

    for plugin in (First("first", told), Last("last", told), Listener("middle", told)):
        manager.register(plugin, plugin.name)
    manager.notify(FINISHED, **CALL)
    assert [name for name, *_ in told] == ["first", "middle", "last"]


def test_one_that_raises_is_logged_once_and_goes_on_being_told(
    manager: PluginManager, caplog: pytest.LogCaptureFixture
):
    bad, good = Listener("bad"), Listener("good")
    bad.fail = RuntimeError("full disk")
    manager.register(bad, "bad")
    manager.register(good, "good")
    observers = manager.observers_of(FINISHED)
    with caplog.at_level(logging.DEBUG, logger="orchestrator"):
        for _ in range(3):
            for observer in observers:
                observer(**CALL)
        manager.notify(FINISHED, **CALL)
    assert len(bad.told) == len(good.told) == 4
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("orchestrator", "ERROR")
    assert "plugin 'bad'" in record.getMessage()
    assert FINISHED in record.getMessage()
    assert record.exc_info[1] is bad.fail


def test_ctrl_c_in_an_observer_is_not_swallowed(manager: PluginManager):
    listener = Listener()
    listener.fail = KeyboardInterrupt()
    manager.register(listener, "one")
    with pytest.raises(KeyboardInterrupt):
        manager.notify(FINISHED, **CALL)


def test_observers_are_those_at_the_time_of_asking(manager: PluginManager):
    listener = Listener()
    manager.register(listener, "one")
    observers = manager.observers_of(FINISHED)
    manager.unregister("one")
    assert not manager.observers_of(FINISHED)
    observers[0](**CALL)
    assert len(listener.told) == 1


@pytest.mark.parametrize("hook", ["orchestrator_stage_finish", "orchestrator_register_stages"])
def test_what_is_no_observing_hook_is_refused(hook: str, manager: PluginManager):
    with pytest.raises(PluginError, match=r"no hook with observers\. (Did you mean|Known)"):
        manager.observers_of(hook)
