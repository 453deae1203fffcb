"""The pictures in the documentation are those that the script draws."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    threads, arguments = torch.get_num_threads(), sys.argv
    sys.argv = ["draw_digits.py", str(folder)]
    try:
        runpy.run_path(str(ROOT / "stages" / "scripts" / "draw_digits.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
        sys.argv = arguments
    return folder


@pytest.mark.parametrize("name", ["digits.png", "digits-strip.png"])
def test_a_picture_of_the_documentation_is_what_is_drawn(drawn, name):
    shown, found = (
        np.asarray(Image.open(folder / name), dtype=int) for folder in (ROOT / "docs/images", drawn)
    )
    assert shown.shape == found.shape
    assert abs(shown - found).max() <= 2


def test_the_animation_has_all_frames(drawn):
    with Image.open(drawn / "digits.gif") as animation:
        assert (animation.n_frames, animation.size) == (25, (360, 120))
