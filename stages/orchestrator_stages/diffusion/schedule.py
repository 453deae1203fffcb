"""What all schedulers have in common: options, a table for a number of steps, a stage that takes one step.

Options have the names, defaults and meaning of those of diffusers' scheduler of the same name, so that
``DDIM.from_config(pipe.scheduler.config)`` reads them. An option that would change the result and is not known
here is refused, never ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from orchestrator import GraphError

if TYPE_CHECKING:
    from typing_extensions import Self


class Table(NamedTuple):
    """What a scheduler knows of each of ``n`` steps.

    Attributes:
        timesteps: ``[n]``: what the denoiser is told; int64 or float32, as diffusers has it.
        rows: ``[n, k]``, float32: what the stages of the scheduler read; each says what its columns are.
        start: The standard deviation of the noise that the first step is given.
    """

    timesteps: Tensor
    rows: Tensor
    start: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduler:
    """Base class: a subclass is a frozen dataclass of options.

    Attributes:
        columns: How many columns a row of its table has.
        timestep_dtype: Element type of the timesteps.
        refused: Options of diffusers' scheduler with the one value that is supported.
        unread: Options that change nothing as long as those are as they are.
    """

    columns: ClassVar[int]
    timestep_dtype: ClassVar[torch.dtype] = torch.float32
    refused: ClassVar[Mapping[str, Any]] = {}
    unread: ClassVar[frozenset[str]] = frozenset()

    num_train_timesteps: int = 1000

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the options of diffusers' scheduler of this kind; what is no option of it is ignored, as there.

        Raises:
            GraphError: An option has a value that is not supported.
        """
        for option, value in cls.refused.items():
            if config.get(option, value) != value:
                raise GraphError(
                    f"{cls.__name__} does not support {option}={config[option]!r}; set it to {value!r}.",
                    scheduler=cls.__name__,
                    option=option,
                )
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in config.items() if name in known})

    def table(self, steps: int) -> Table:
        """Makes the table for a number of steps.

        Raises:
            ValueError: The number is not positive, or more than there are timesteps.
        """
        raise NotImplementedError

    def step(self) -> nn.Module:
        """Returns the stage ``(output, latents, row) -> latents``."""
        raise NotImplementedError

    def scale(self) -> nn.Module | None:
        """Returns the stage ``(latents, row) -> latents`` as the denoiser wants them; None where they stay."""
        return None

    def checked(self, steps: int) -> int:
        """Returns a number of steps, if it is one."""
        if (
            isinstance(steps, bool)
            or not isinstance(steps, int)
            or not 1 <= steps <= self.num_train_timesteps
        ):
            raise ValueError(
                f"The number of steps is an int from 1 to {self.num_train_timesteps}, the number of timesteps in "
                f"training, not {steps!r}."
            )
        return steps

    def one_of(self, option: str, *known: str) -> None:
        """Refuses a value of an option that is none of those known.

        Raises:
            GraphError: It is.
        """
        value = getattr(self, option)
        if value not in known:
            raise GraphError(
                f"{option} of {type(self).__name__} is one of {', '.join(map(repr, known))}, not {value!r}.",
                scheduler=type(self).__name__,
                option=option,
            )
