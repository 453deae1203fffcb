"""Draw pictures for the pipeline ``chat``, and say what may be asked about them and what is true.

    python stages/scripts/draw_shapes.py docs/images/shapes.png
    python stages/scripts/draw_shapes.py mine.png --seed 7 --side 480

The first is the picture that the documentation shows, and the example of the pipeline.
"""

from __future__ import annotations

import random
import sys
from argparse import ArgumentParser
from pathlib import Path

from PIL import Image

from orchestrator_stages.demos.chat.pipeline import EXAMPLE, EXAMPLE_SIDE
from orchestrator_stages.demos.chat.questions import random_question
from orchestrator_stages.demos.chat.scenes import draw, random_scene

QUESTIONS = 5


def main() -> None:
    """Draw one picture into the file named on the command line."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="file to write to")
    parser.add_argument("--seed", type=int, default=EXAMPLE)
    parser.add_argument("--side", type=int, default=EXAMPLE_SIDE, help="height and width in pixels")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    scene = random_scene(chance)
    (picture,) = draw([scene], arguments.side)
    pixels = (picture.permute(1, 2, 0) * 255).round().byte()
    Image.fromarray(pixels.numpy()).save(arguments.out, optimize=True)
    for _ in range(QUESTIONS):
        question, answer = random_question(scene, chance)
        sys.stdout.write(f"{question} {answer}\n")


if __name__ == "__main__":
    main()
