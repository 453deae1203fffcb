"""What a caller asks of a pipeline that is made from one of diffusers, checked, with the defaults filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from orchestrator import Dim, GraphError

OUTPUTS = ("pil", "pt", "uint8", "latent")


@dataclass(frozen=True, kw_only=True)
class Options:
    """See :func:`~orchestrator_stages.diffusion.convert.from_diffusers`, whose arguments these are.

    Attributes:
        factor: Pixels along the side of one latent.
    """

    height: int
    width: int
    factor: int
    batch: int | Sequence[int]
    guidance: bool
    num_inference_steps: int
    max_inference_steps: int
    guidance_scale: float
    truncate: bool
    output_type: str
    tile: int | None
    overlap: float
    max_sequence_length: int

    def __post_init__(self) -> None:
        if self.output_type not in OUTPUTS:
            names = ", ".join(map(repr, OUTPUTS))
            raise GraphError(
                f"output_type is one of {names}, not {self.output_type!r}.", option="output_type"
            )
        for name, side in (("height", self.height), ("width", self.width), ("tile", self.tile)):
            if side is not None and (not isinstance(side, int) or side < self.factor or side % self.factor):
                raise GraphError(
                    f"{name} is a positive multiple of {self.factor} pixels, not {side!r}.", option=name
                )
        if not 0 <= self.overlap < 1:
            raise GraphError(f"overlap is from 0 to less than 1, not {self.overlap!r}.", option="overlap")

    @property
    def images(self) -> Dim:
        """The dim of images."""
        return Dim("images", buckets=self.batch, batch=True)

    @property
    def steps(self) -> Dim:
        """The dim of steps."""
        return Dim("steps", buckets=sorted({self.num_inference_steps, self.max_inference_steps}))


def positive(name: str, value: Any) -> int:
    """Returns a positive int.

    Raises:
        GraphError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise GraphError(f"{name} is a positive int, not {value!r}.", option=name)
    return value


def number(name: str, value: Any) -> float:
    """Returns a number as a float.

    Raises:
        GraphError: It is none.
    """
    if not isinstance(value, Real):
        raise GraphError(f"{name} is a number, not {value!r}.", option=name)
    return float(value)
