"""From latents to pictures: the decoder half of a variational autoencoder, and what comes before and after it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator_stages.diffusion.model_stage import ModelStage


class Unpack(nn.Module):
    """Turns the tokens of Flux back into latents: each holds 2 x 2 of them.

    Args:
        height: Height of the latents, an even number.
        width: Their width, likewise.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height = height
        self.width = width

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns ``[batch, channels, height, width]`` for ``[batch, height/2 * width/2, 4*channels]``."""
        batch, _, channels = tokens.shape
        squares = tokens.reshape(batch, self.height // 2, self.width // 2, channels // 4, 2, 2)
        return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, self.height, self.width)


class DecodeLatents(ModelStage):
    """Decodes latents with an ``AutoencoderKL`` or its like.

    Latents have about unit variance for the denoiser; the decoder wants them as its encoder gave them. Which options
    of the autoencoder undo that differs from family to family in diffusers; ``scaling_factor`` always does.

    Args:
        model: The autoencoder.
        upcast: It overflows in float16 and runs in float32, as a copy.
        moments: ``latents_mean`` and ``latents_std`` are undone, where there are both.
        shift: ``shift_factor`` is undone.
    """

    def __init__(
        self, model: nn.Module, *, upcast: bool = False, moments: bool = False, shift: bool = False
    ) -> None:
        super().__init__(copy.deepcopy(model).float() if upcast else model)
        config = self.model.config
        self.scaling = config.scaling_factor
        self.shift = config.shift_factor if shift else None
        mean_and_std = (getattr(config, "latents_mean", None), getattr(config, "latents_std", None))
        self.mean, self.std = mean_and_std if moments and None not in mean_and_std else (None, None)

    def forward(self, latents: Tensor) -> Tensor:
        """Returns pictures ``[batch, 3, 8*height, 8*width]``, 0 to 1, for latents ``[batch, 4, height, width]``."""
        latents = latents.to(self.model.dtype)
        if self.std is None:
            latents = latents / self.scaling
        else:
            latents = latents * self._channels(self.std, latents) / self.scaling
            latents = latents + self._channels(self.mean, latents)
        if self.shift is not None:
            latents = latents + self.shift
        pictures: Tensor = self.model.decode(latents, return_dict=False)[0]
        return (pictures * 0.5 + 0.5).clamp(0, 1)

    @staticmethod
    def _channels(values: Any, latents: Tensor) -> Tensor:
        return torch.tensor(values).to(latents.device, latents.dtype).view(1, -1, 1, 1)


class Pixels(nn.Module):
    """Rounds pictures to bytes, channels last: a quarter of what floats take on the way to the host."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Returns ``[batch, height, width, 3]``, uint8, for ``[batch, 3, height, width]``, 0 to 1."""
        return (pictures.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8)
