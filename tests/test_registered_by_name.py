"""What is used by its registered name: options it does not know are its own error, not a bare ``TypeError``."""

from __future__ import annotations

import pytest

from orchestrator import Pipeline, PluginError


def test_an_option_that_a_registered_pipeline_does_not_take_is_named():
    with pytest.raises(PluginError, match=r"registered pipeline 'vision-text'.*'bogus'") as error:
        Pipeline("outer").add("inner", "vision-text", config={"bogus": 5})
    assert error.value.config == {"bogus": 5}
    assert isinstance(error.value.__cause__, TypeError)
