"""The pipeline ``scene-text``: a photo in, its words and lines out.

    image -> fit -> detector -> words -> for the crops of each width: reader -> spell -> annotate

How large a photo is, how many words it shows and how wide they are is known only while a request runs. The photo goes
to the smallest size that the detector is compiled for, each crop to the smallest width of the reader, and crops of one
width are read in batches. A photo without words skips the reader.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from orchestrator import Dim, GraphError, Pipeline, TensorSpec
from orchestrator_stages.demos.faces.letterbox import PHOTO
from orchestrator_stages.demos.scene_text.detector import CELL, MULTIPLE
from orchestrator_stages.demos.scene_text.fit import SIDES
from orchestrator_stages.demos.scene_text.reader import HEIGHT, STRIP
from orchestrator_stages.demos.scene_text.words import WIDTHS

BATCHES = (1, 4, 8, 16)
"""Numbers of words that are read at once."""


def scene_text(
    *, sides: Sequence[int] = SIDES, widths: Sequence[int] = WIDTHS, words: Sequence[int] = BATCHES
) -> Pipeline:
    """Builds the pipeline.

    Its input is ``image`` ``[height, width, 3]``, uint8, RGB, of any size. Its outputs are ``text``, a ``str`` with one
    line for each line of the photo; ``words``, a list as :class:`~orchestrator_stages.demos.scene_text.spell.Spell`
    describes it; and ``annotated``, a picture of the shape of ``image``.

    Args:
        sides: Sides of a photo in pixels that the detector is compiled for, in every combination of height and width;
            multiples of 32.
        widths: Widths of crops in pixels that the reader is compiled for; multiples of 4.
        words: Numbers of words that are read at once.

    Raises:
        GraphError: A side or a width is no such multiple.
    """
    _check("side", sides, CELL * MULTIPLE)
    _check("width", widths, STRIP)
    pipeline = Pipeline("scene-text")
    image = pipeline.input("image", PHOTO)
    fit = pipeline.add("fit", "scene-text.fit", device="host", config={"sides": tuple(sides)})
    detector = pipeline.add("detector", "scene-text.detector")
    find = pipeline.add("words", "scene-text.words", device="host", config={"widths": tuple(widths)})
    spell = pipeline.add("spell", "scene-text.spell", device="host")
    annotate = pipeline.add("annotate", "scene-text.annotate", device="host")

    # Boxes are those of the photo, not of the fitted picture, so crops are cut at full sharpness.
    picture, frame = fit(image)
    crops, boxes = find(image, frame, detector(picture))
    letters, sureness = pipeline.map("read", _word(widths, words), over={"crops": crops})
    word_list, text = spell(letters, sureness, boxes)
    pipeline.output("text", text)
    pipeline.output("words", word_list)
    pipeline.output("annotated", annotate(image, word_list))
    return pipeline


def _check(what: str, sizes: Sequence[int], multiple: int) -> None:
    for size in sizes:
        if size < 1 or size % multiple:
            raise GraphError(f"A {what} is a multiple of {multiple} pixels, not {size}.", size=size)


def _word(widths: Sequence[int], words: Sequence[int]) -> Pipeline:
    """A batch of words of one width: ``crops`` to ``letters`` and ``sureness``."""
    body = Pipeline("word")
    # The reader reads in both directions, so that a crop filled up with anything is another one.
    strips = Dim("strips", [width // STRIP for width in widths], exact=True)
    rows = Dim("words", words, batch=True)
    crops = body.input("crops", TensorSpec((rows, HEIGHT, strips, STRIP), torch.uint8, pad=0))
    read = body.add("reader", "scene-text.reader")(crops)
    body.output("letters", read["letters"])
    body.output("sureness", read["sureness"])
    return body
