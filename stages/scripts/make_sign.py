"""Draw the picture of a sign for the docs, and what the pipeline ``sign`` makes of it.

    python stages/scripts/make_sign.py

Writes ``images/sign.jpg``, ``images/sign-words.jpg`` and ``_data/sign.json`` into ``docs``. The first is drawn here,
slightly turned, shaded, blurred and noisy as a photo is; the others are outputs of the pipeline. It needs the
optional packages of the extra ``sign``.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from orchestrator_stages.demos.sign import sign

DOCS = Path(__file__).parents[2] / "docs"
LINES = ("Please close the window", "before you leave the room")
SIZE = (640, 288)
QUALITY = 88


def draw() -> Image.Image:
    """Returns the picture, RGB; the same one each time."""
    board = Image.new("RGBA", SIZE)
    pen = ImageDraw.Draw(board)
    pen.rounded_rectangle((60, 56, 580, 232), 18, fill="#1b6b45", outline="white", width=5)
    font = ImageFont.load_default(38)
    for number, line in enumerate(LINES):
        pen.text((SIZE[0] / 2, 112 + 62 * number), line, font=font, fill="white", anchor="mm")
    board = board.rotate(1.0, resample=Image.Resampling.BICUBIC)
    picture = Image.new("RGB", SIZE, "#c9bfae")
    picture.paste(board, mask=board)
    picture = picture.filter(ImageFilter.GaussianBlur(0.7))
    shade = np.linspace(1.05, 0.8, SIZE[0])[None, :, None]
    noise = np.random.default_rng(0).normal(0, 3, (SIZE[1], SIZE[0], 1))
    return Image.fromarray((np.asarray(picture) * shade + noise).clip(0, 255).astype(np.uint8))


def shown(found: dict[str, Any]) -> str:
    """Returns outputs as JSON, one word a line."""
    texts = [f'  "{name}": {dumped(found[name])}' for name in ("translation", "text")]
    words = ",\n".join(f"    {dumped(word)}" for word in found["words"])
    return "{\n" + ",\n".join([*texts, f'  "words": [\n{words}\n  ]']) + "\n}\n"


def dumped(value: Any) -> str:
    """Returns a value as JSON in one line."""
    return json.dumps(value, ensure_ascii=False)


def main(docs: Path) -> None:
    """Writes the three files into folders of ``docs``."""
    images = docs / "images"
    draw().save(images / "sign.jpg", quality=QUALITY)
    with Image.open(images / "sign.jpg") as file:
        photo = torch.from_numpy(np.array(file))
    with sign().plan(device="cpu").load() as session:
        found = session(image=photo)
    Image.fromarray(found["annotated"].numpy()).save(images / "sign-words.jpg", quality=QUALITY)
    (docs / "_data" / "sign.json").write_text(shown(found), encoding="utf-8")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("docs", nargs="?", type=Path, default=DOCS)
    main(parser.parse_args().docs)
