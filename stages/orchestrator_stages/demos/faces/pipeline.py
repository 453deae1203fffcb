"""The pipeline ``faces``: a photo in, an annotated photo and the faces it shows out.

    image -> letterbox -> pyramid -> pnet, pnet#2, ... -> propose -> rnet -> refine -> onet -> finish ->
    annotate

Three things make it more than a chain. One stage, ``pnet``, is called once for each level of the pyramid,
with one set of weights. Two host stages, ``propose`` and ``refine``, decide while a request runs how many
crops the next network sees: from none, which skips that network, to more than it is compiled for, which
runs it in chunks. And the square picture goes to the device once, while the host stages read the copy that
never left the host. Every stage is used by its registered name, as anybody's pipeline would.
"""

from __future__ import annotations

from orchestrator import Pipeline
from orchestrator_stages.demos.faces.letterbox import PHOTO, SIZE
from orchestrator_stages.demos.faces.pyramid import level_names, level_sides


def faces(*, size: int = SIZE, min_face: float = 40, factor: float = 0.709) -> Pipeline:
    """Builds the pipeline.

    Its input is ``image`` ``[height, width, 3]``, uint8, RGB, of any size. Its outputs are ``annotated``, a
    picture of the same shape, and ``faces``, a list as :class:`~orchestrator_stages.demos.faces.finish.Finish`
    describes it, empty if no face is found. Options of single stages, such as the thresholds, are set with
    :func:`orchestrator.pipeline.stage_overrides` or ``--set propose.threshold=0.7``.

    Args:
        size: Side in pixels of the square that the photo is put into.
        min_face: Side in pixels of that square of the smallest face to be found.
        factor: How much smaller each level of the pyramid is than the one before.
    """
    sides = level_sides(size, min_face, factor)
    pipeline = Pipeline("faces")
    image = pipeline.input("image", PHOTO)

    letterbox = pipeline.add("letterbox", "faces.letterbox", device="host", config={"size": size})
    pyramid = pipeline.add("pyramid", "faces.pyramid", config={"sides": sides})
    pnet = pipeline.add("pnet", "faces.pnet")
    propose = pipeline.add("propose", "faces.propose", device="host", config={"sides": sides})
    rnet = pipeline.add("rnet", "faces.rnet")
    refine = pipeline.add("refine", "faces.refine", device="host")
    onet = pipeline.add("onet", "faces.onet")
    finish = pipeline.add("finish", "faces.finish", device="host")
    annotate = pipeline.add("annotate", "faces.annotate", device="host")

    # Each network answers for the crops of the host step before it, and the next host step drops most of them.
    square, frame = letterbox(image)
    levels = pyramid(square)
    proposals = [pnet(levels[name]) for name in level_names(sides)]
    crops, boxes = propose(square, frame, *(one[port] for one in proposals for port in ("scores", "offsets")))

    refinements = rnet(crops)
    crops, boxes = refine(square, frame, boxes, refinements["scores"], refinements["offsets"])

    detections = onet(crops)
    face_list = finish(frame, boxes, detections["scores"], detections["offsets"], detections["landmarks"])
    pipeline.output("annotated", annotate(image, face_list))
    pipeline.output("faces", face_list)
    return pipeline
