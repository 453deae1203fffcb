"""The public surface is one short, sorted list, and each name in it exists and is documented."""

from __future__ import annotations

import inspect

import pytest

import orchestrator


def test_the_list_is_short_and_sorted():
    assert len(orchestrator.__all__) <= 25
    assert list(orchestrator.__all__) == sorted(orchestrator.__all__)


def test_dir_shows_every_public_name():
    assert set(orchestrator.__all__) <= set(dir(orchestrator))


@pytest.mark.parametrize("name", orchestrator.__all__)
def test_a_public_name_exists_and_says_what_it_is(name: str):
    value = getattr(orchestrator, name)
    if inspect.isclass(value):
        assert inspect.getdoc(value)


def test_a_mistyped_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Pipelin"):
        _ = orchestrator.Pipelin
