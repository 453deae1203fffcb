"""Draw the pictures of the pipeline ``digits`` that the documentation shows.

    python stages/scripts/draw_digits.py docs/images

``digits.png`` has a column for each digit and a row for each kind of prompt. ``digits-strip.png`` shows how
pictures come out of noise, and ``digits.gif`` the same in motion.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from orchestrator.pipeline import stage_overrides
from orchestrator_stages.demos.digits.pipeline import digits
from orchestrator_stages.demos.digits.words import NUMBERS

ROWS = ("{}", "a thin {}", "a bold {}", "a {} leaning left", "the bold digit {} leaning right")
SHOWN = ("the bold digit 7 leaning right", "a thin 3", "a bold 8 leaning left")
FRAMES, GREYS = 25, 16
FRAME, LAST_FRAME = 80, 2000
"""How long the frames of the animation are shown, in milliseconds."""

SEED = 7
"""Seed of the grid; the strip has the default."""


def grid() -> Tensor:
    """Returns a picture of all digits in each row's way."""
    prompts = [row.format(number) for row in ROWS for number in NUMBERS]
    with stage_overrides({"sheet": {"scale": 2}}), digits().plan().load() as session:
        picture: Tensor = session(prompt="\n".join(prompts), seed=SEED)["picture"]
    return picture


def denoising(columns: int, scale: int) -> Tensor:
    """Returns a strip of the denoising of some prompts: a row for each, and as many columns as asked for."""
    options = {"strip": {"columns": columns, "scale": scale}}
    with stage_overrides(options), digits(strip=True).plan().load() as session:
        picture: Tensor = session(prompt="\n".join(SHOWN))["strip"]
    return picture


def animate(strip: Tensor, frames: int, file: Path) -> None:
    """Writes the columns of a strip as the frames of a GIF that repeats; the last one is shown for long."""
    height, width = strip.shape[0] // len(SHOWN), strip.shape[1] // frames
    columns = strip.reshape(len(SHOWN), height, frames, width).permute(2, 1, 0, 3).flatten(2)
    pictures = [Image.fromarray(frame.numpy()).quantize(GREYS) for frame in columns]
    durations = [FRAME] * (frames - 1) + [LAST_FRAME]
    pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def main() -> None:
    """Draw all pictures into the folder named on the command line."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    Image.fromarray(grid().numpy()).save(out / "digits.png", optimize=True)
    Image.fromarray(denoising(10, scale=2).numpy()).save(out / "digits-strip.png", optimize=True)
    animate(denoising(FRAMES, scale=3), FRAMES, out / "digits.gif")


if __name__ == "__main__":
    main()
