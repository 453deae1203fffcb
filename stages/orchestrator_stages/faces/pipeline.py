"""The pipeline ``faces``: a photo in, an annotated photo and the faces it shows out.

    image -> letterbox -> pyramid -> pnet, pnet#2, ... -> propose -> rnet -> refine -> onet -> finish ->
    annotate

Three things make it more than a chain. One stage, ``pnet``, is called once for each level of the pyramid,
with one set of weights. Two host stages, ``propose`` and ``refine``, decide while a request runs how many
crops the next network sees: from none, which skips that network, to more than it is compiled for, which
runs it in chunks. And the square picture goes to the device once, while the host stages read the copy that
never left the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator import Pipeline
from orchestrator_stages.faces.annotate import Annotate
from orchestrator_stages.faces.finish import Finish
from orchestrator_stages.faces.letterbox import PHOTO, SIZE, Letterbox
from orchestrator_stages.faces.propose import Propose
from orchestrator_stages.faces.pyramid import Pyramid, level_names, level_sides
from orchestrator_stages.faces.refine import Refine
from orchestrator_stages.faces.trained import onet, pnet, rnet
from orchestrator_stages.host import HostStage

Options = Mapping[str, Any]


def faces(
    *,
    size: int = SIZE,
    min_face: float = 40,
    factor: float = 0.709,
    letterbox: Options | None = None,
    propose: Options | None = None,
    refine: Options | None = None,
    finish: Options | None = None,
    annotate: Options | None = None,
) -> Pipeline:
    """Builds the pipeline.

    Its input is ``image`` ``[height, width, 3]``, uint8, RGB, of any size. Its outputs are ``annotated``, a
    picture of the same shape, and ``faces``, a list as :class:`~orchestrator_stages.faces.finish.Finish`
    describes it, empty if no face is found.

    Args:
        size: Side in pixels of the square that the photo is put into.
        min_face: Side in pixels of that square of the smallest face to be found.
        factor: How much smaller each level of the pyramid is than the one before.
        letterbox: More options for the stage of that name, as are the following.
        propose: E.g. ``{"threshold": 0.7}``.
        refine: E.g. ``{"threshold": 0.8}``.
        finish: E.g. ``{"threshold": 0.9}``.
        annotate: E.g. ``{"line": 1}``.
    """
    sides = level_sides(size, min_face, factor)
    pipeline = Pipeline("faces")
    image = pipeline.input("image", PHOTO)

    square, frame = _host(pipeline, "letterbox", Letterbox(size, **letterbox or {}))(image)
    levels = pipeline.add("pyramid", Pyramid(sides))(square)
    score = pipeline.add("pnet", pnet())
    judged = [score(levels[name]) for name in level_names(sides)]
    maps = [one[port] for one in judged for port in ("scores", "offsets")]
    crops, boxes = _host(pipeline, "propose", Propose(sides, **propose or {}))(square, frame, *maps)

    judged_crops = pipeline.add("rnet", rnet())(crops)
    crops, boxes = _host(pipeline, "refine", Refine(**refine or {}))(
        square, frame, boxes, judged_crops["scores"], judged_crops["offsets"]
    )

    found = pipeline.add("onet", onet())(crops)
    listed = _host(pipeline, "finish", Finish(**finish or {}))(
        frame, boxes, found["scores"], found["offsets"], found["landmarks"]
    )
    pipeline.output("annotated", _host(pipeline, "annotate", Annotate(**annotate or {}))(image, listed))
    pipeline.output("faces", listed)
    return pipeline


def _host(pipeline: Pipeline, name: str, stage: HostStage) -> Any:
    return pipeline.add(name, stage, device="host")
