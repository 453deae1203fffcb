"""Connected components, next to those of scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_stages.demos.scene_text.components import label_components

ndimage = pytest.importorskip("scipy.ndimage")


@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(0, 12), st.floats(0, 1))
def test_same_as_scipy(seed, rows, columns, density):
    mask = np.random.default_rng(seed).random((rows, columns)) < density
    expected, _ = ndimage.label(mask)
    assert label_components(torch.from_numpy(mask)).numpy().tolist() == expected.tolist()


def test_a_spiral_is_one_component():
    mask = torch.zeros(9, 9, dtype=torch.bool)
    row, column, direction = 0, 0, (0, 1)
    for length in (8, 8, 8, 6, 6, 4, 4, 2):
        for _ in range(length):
            mask[row, column] = True
            row, column = row + direction[0], column + direction[1]
        direction = direction[1], -direction[0]
    assert label_components(mask).unique().tolist() == [0, 1]


def test_corners_do_not_touch():
    assert label_components(torch.eye(3, dtype=torch.bool)).tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 3]]
