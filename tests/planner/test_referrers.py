"""Referrers agree with the collector, object by object, and few scans of the heap answer for many objects."""

from __future__ import annotations

import gc
import types

import pytest

from orchestrator.isolation import referrers as module
from orchestrator.isolation.referrers import Referrers


@pytest.fixture
def scans(monkeypatch):
    """The number of objects that each scan of the heap asked for."""
    sizes = []

    def get_referrers(*items):
        sizes.append(len(items))
        return gc.get_referrers(*items)

    replaced = types.SimpleNamespace(
        get_freeze_count=gc.get_freeze_count,
        **{name: getattr(gc, name) for name in ("get_objects", "get_referents")},
    )
    replaced.get_referrers = get_referrers
    monkeypatch.setattr(module, "gc", replaced)
    return sizes


class Owner:
    pass


OLD = {"table": {}}
OWNER = Owner()


def run():
    """What a run may leave: a chain of a hundred lists above a leaf, in a table; and an attribute beside it."""
    leaf = [object()]
    top, ids = leaf, []
    for _ in range(100):
        top = [top]
        ids.append(id(top))
    OLD["table"]["top"] = top
    OWNER.leaf = leaf
    return leaf, ids


def is_end(holder):
    return isinstance(holder, types.FrameType)


def test_a_chain_is_no_scan_for_each_object(scans):
    gc.collect(0)
    gc.disable()
    try:
        item, ids = run()
        new_ids = set(map(id, gc.get_objects(generation=0)))
        gc.collect(0)
        referrers = Referrers(new_ids)
        start = [item]
        referrers.follow(start, is_end)
        assert any(other in (OWNER, vars(OWNER)) for other in referrers.of(item))
        # Each list is in the next one, and in nothing else; the last one is in the old table.
        for identity in ids:
            (item,) = [other for other in referrers.of(item) if type(other) is list and other is not start]
            assert id(item) == identity
        # An empty dict is unknown to the collector, so that the table looks new too.
        assert any(other is OLD["table"] for other in referrers.of(item))
        assert any(other is OLD for other in referrers.of(OLD["table"]))
        assert len(scans) == 1
        assert scans[0] < 10
    finally:
        gc.enable()
        OLD["table"].clear()
        vars(OWNER).clear()


def test_what_is_frozen_refers_too():
    holder: list[object] = []
    gc.freeze()
    try:
        item = [1]
        holder.append(item)
        assert any(other is holder for other in Referrers(set()).of(item))
    finally:
        gc.unfreeze()
