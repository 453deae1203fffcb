"""The pipeline ``sign``: a photo of a sign in, what it says in another language out.

It is made of two others: ``scene-text`` reads the photo line by line, ``translate`` translates the lines. Five networks
take part, in two loops over what a photo happens to show: its words, and the sentences they form.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator import Pipeline
from orchestrator_stages.demos.faces.letterbox import PHOTO
from orchestrator_stages.demos.scene_text.fit import SIDES
from orchestrator_stages.demos.scene_text.pipeline import scene_text
from orchestrator_stages.demos.scene_text.words import WIDTHS
from orchestrator_stages.demos.translate.pipeline import translate
from orchestrator_stages.demos.translate.tokens import LENGTHS


def sign(
    *, sides: Sequence[int] = SIDES, widths: Sequence[int] = WIDTHS, tokens: Sequence[int] = LENGTHS
) -> Pipeline:
    """Builds the pipeline, for English signs.

    Its input is ``image`` ``[height, width, 3]``, uint8, RGB, of any size. Its outputs are ``translation``, the lines
    of the photo in Portuguese; ``text``, the same in English; ``words``, a list as
    :class:`~orchestrator_stages.demos.scene_text.spell.Spell` describes it; and ``annotated``, the photo with the
    boxes of the words. A photo without words gives empty ones.

    Args:
        sides: As for :func:`~orchestrator_stages.demos.scene_text.pipeline.scene_text`.
        widths: Likewise.
        tokens: As for :func:`~orchestrator_stages.demos.translate.pipeline.translate`.
    """
    pipeline = Pipeline("sign")
    read = pipeline.add("read", scene_text(sides=sides, widths=widths))(pipeline.input("image", PHOTO))
    translation = pipeline.add("translate", translate(tokens=tokens))(read["text"])
    pipeline.output("translation", translation)
    for name in ("text", "words", "annotated"):
        pipeline.output(name, read[name])
    return pipeline
