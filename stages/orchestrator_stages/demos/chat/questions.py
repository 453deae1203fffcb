"""What may be asked about a picture, and what is true of it.

A question names shapes by kind, by colour, or by both. An answer lists shapes from left to right.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator_stages.demos.chat.scenes import COLOURS, KINDS, Scene, Shape

NUMBERS = ("none", "one", "two", "three")
SIDES: dict[str, Callable[[Shape, Shape], bool]] = {
    "left of": lambda shape, other: shape.place[0] < other.place[0],
    "right of": lambda shape, other: shape.place[0] > other.place[0],
    "above": lambda shape, other: shape.place[1] < other.place[1],
    "below": lambda shape, other: shape.place[1] > other.place[1],
}
"""Whether a shape lies on that side of another one."""

SHARES = {
    "colour": 15,
    "number": 15,
    "side": 25,
    "which": 8,
    "presence": 8,
    "size": 7,
    "ground": 3,
    "all": 19,
}
"""How often each sort of question is asked: for the colour of a kind, how many there are, what is beside a shape, which
shape has a colour, whether one is there, how large it is, for the ground, and for everything."""


def plural(kind: str) -> str:
    """Returns the word for several shapes of a kind."""
    return f"{kind}es" if kind == "cross" else f"{kind}s"


def listing(words: Sequence[str]) -> str:
    """Returns words with commas and an *and* between them, or ``nothing``."""
    *first, last = words or ["nothing"]
    return f"{', '.join(first)} and {last}" if first else last


def with_article(words: str) -> str:
    """Returns words after the article that they take."""
    return f"{'an' if words.startswith('orange') else 'a'} {words}"


def name(shape: Shape) -> str:
    """Returns a shape's colour and kind, with an article."""
    return with_article(f"{shape.colour} {shape.kind}")


def _of_kind(scene: Scene, kind: str, colour: str = "") -> list[Shape]:
    """Returns the shapes of a kind, and of a colour where one is asked for."""
    return [shape for shape in scene.shapes if shape.kind == kind and colour in ("", shape.colour)]


def _unless_one(shapes: Sequence[Shape], kind: str, colour: str = "") -> str:
    """Returns why a question about *the* shape has no answer: there is none, or there are several; else nothing."""
    if not shapes:
        return f"there is no {f'{colour} {kind}'.strip()}"
    return f"there are {NUMBERS[len(shapes)]} {f'{colour} {plural(kind)}'.strip()}" if len(shapes) > 1 else ""


def colour_of(scene: Scene, kind: str) -> str:
    """Answers: what colour is the circle?"""
    shapes = _of_kind(scene, kind)
    return (
        listing(list(dict.fromkeys(shape.colour for shape in shapes)))
        if shapes
        else _unless_one(shapes, kind)
    )


def size_of(scene: Scene, kind: str) -> str:
    """Answers: is the circle large or small?"""
    shapes = _of_kind(scene, kind)
    return _unless_one(shapes, kind) or shapes[0].size


def beside(scene: Scene, side: str, kind: str, colour: str = "") -> str:
    """Answers: what is left of the red circle?"""
    others = _of_kind(scene, kind, colour)
    return _unless_one(others, kind, colour) or listing(
        [name(shape) for shape in scene.shapes if SIDES[side](shape, others[0])]
    )


def of_colour(scene: Scene, colour: str) -> str:
    """Answers: which shape is red?"""
    return listing([f"the {shape.kind}" for shape in scene.shapes if shape.colour == colour])


def is_there(scene: Scene, kind: str, colour: str) -> str:
    """Answers: is there a red circle?"""
    return "yes" if _of_kind(scene, kind, colour) else "no"


def describe(scene: Scene) -> str:
    """Answers: describe the picture."""
    shapes = [with_article(f"{shape.size} {shape.colour} {shape.kind}") for shape in scene.shapes]
    return f"{listing(shapes)} on {scene.ground}"


@dataclass(frozen=True)
class _Subject:
    """What a question is about.

    Attributes:
        scene: What the picture shows.
        chance: Chooses the words.
        kind: A kind that may be asked about.
        colour: Likewise.
    """

    scene: Scene
    chance: random.Random
    kind: str
    colour: str


def random_question(
    scene: Scene, chance: random.Random, shares: Mapping[str, float] = SHARES
) -> tuple[str, str]:
    """Returns a question about a scene and its answer: more often than not about what it shows.

    Args:
        scene: What the picture shows.
        chance: Chooses; the same state of it gives the same question.
        shares: How often each sort of question is asked: those of ``SHARES``, with other numbers.
    """
    # What is asked about is mostly there, so that the answers are as varied as the pictures.
    shape = chance.choice(scene.shapes)
    kind = shape.kind if chance.random() < 0.8 else chance.choice(KINDS)
    colour = shape.colour if chance.random() < 0.7 else chance.choice(tuple(COLOURS))
    sort = chance.choices(tuple(shares), list(shares.values()))[0]
    question, answer = _ASK[sort](_Subject(scene, chance, kind, colour))
    return question if chance.random() < 0.8 else question.rstrip("?."), answer


def _ask_colour(about: _Subject) -> tuple[str, str]:
    word = about.chance.choice(("what", "which"))
    return f"{word} colour is the {about.kind}?", colour_of(about.scene, about.kind)


def _ask_number(about: _Subject) -> tuple[str, str]:
    shapes = about.scene.shapes
    things, number = about.chance.choice(
        [
            (plural(about.kind), len(_of_kind(about.scene, about.kind))),
            (f"{about.colour} shapes", sum(shape.colour == about.colour for shape in shapes)),
            ("shapes", len(shapes)),
        ]
    )
    return f"how many {things}{about.chance.choice(('', ' are there'))}?", NUMBERS[number]


def _ask_side(about: _Subject) -> tuple[str, str]:
    side = about.chance.choice(tuple(SIDES))
    colour = about.colour if about.chance.random() < 0.5 else ""
    words = side if side in ("above", "below") or about.chance.random() < 0.7 else f"to the {side}"
    question = f"what is {words} the {f'{colour} {about.kind}'.strip()}?"
    return question, beside(about.scene, side, about.kind, colour)


def _ask_which(about: _Subject) -> tuple[str, str]:
    word = about.chance.choice(("what", "which shape"))
    return f"{word} is {about.colour}?", of_colour(about.scene, about.colour)


def _ask_presence(about: _Subject) -> tuple[str, str]:
    answer = is_there(about.scene, about.kind, about.colour)
    return f"is there {with_article(f'{about.colour} {about.kind}')}?", answer


def _ask_size(about: _Subject) -> tuple[str, str]:
    sizes = about.chance.choice(("large or small", "small or large"))
    return f"is the {about.kind} {sizes}?", size_of(about.scene, about.kind)


def _ask_ground(about: _Subject) -> tuple[str, str]:
    return f"{about.chance.choice(('what', 'which'))} colour is the background?", about.scene.ground


def _ask_all(about: _Subject) -> tuple[str, str]:
    question = about.chance.choice(("describe the picture.", "what do you see?", "what is in the picture?"))
    return question, describe(about.scene)


_ASK: dict[str, Callable[[_Subject], tuple[str, str]]] = {
    "colour": _ask_colour,
    "number": _ask_number,
    "side": _ask_side,
    "which": _ask_which,
    "presence": _ask_presence,
    "size": _ask_size,
    "ground": _ask_ground,
    "all": _ask_all,
}
"""How a question of each of ``SHARES`` is asked."""
