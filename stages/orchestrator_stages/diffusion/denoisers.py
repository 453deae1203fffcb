"""The denoisers of the families as stages: latents, timestep and prompt to what of the latents is noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator_stages.diffusion.model_stage import ModelStage


class Denoiser(ModelStage):
    """Base class of denoisers.

    Args:
        model: The model.
        prompt_only: Of a condition that holds both prompts of guidance, only that with the prompt is read.
    """

    def __init__(self, model: nn.Module, *, prompt_only: bool = False) -> None:
        super().__init__(model)
        self.prompt_only = prompt_only

    def alone(self) -> Denoiser:
        """Returns the same denoiser for a batch without the negative prompt."""
        return type(self)(self.model, prompt_only=True)

    def read(self, condition: Tensor, dims: int) -> Tensor:
        """Returns a batch of a condition.

        Args:
            condition: ``[batch, ...]``, or ``[2, batch/2, ...]``: without the prompt, and with it.
            dims: How many dims a batch of it has.
        """
        if condition.dim() == dims:
            return condition
        return condition[1] if self.prompt_only else condition.flatten(0, 1)


class UNet(Denoiser):
    """The denoiser of Stable Diffusion, a ``UNet2DConditionModel``."""

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Returns ``[batch, channels, height, width]``.

        Args:
            latents: The same shape.
            timestep: A scalar ``[]``.
            text: ``[batch, tokens, width]``, or ``[2, batch/2, ...]``.
        """
        text = self.read(text, 3)
        output: Tensor = self.model(latents, timestep, encoder_hidden_states=text, return_dict=False)[0]
        return output


class UNetXL(Denoiser):
    """The denoiser of SDXL: it also reads the pooled prompt, and how the pictures of its training were cropped."""

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, pooled_text: Tensor, time_ids: Tensor
    ) -> Tensor:
        """Returns ``[batch, channels, height, width]``.

        Args:
            latents: The same shape.
            timestep: A scalar ``[]``.
            text: ``[batch, tokens, width]``, or ``[2, batch/2, ...]``.
            pooled_text: ``[batch, projection]``, or ``[2, batch/2, ...]``.
            time_ids: ``[1, 6]``: original height and width, top and left of the crop, target height and width.
        """
        conditions = {
            "text_embeds": self.read(pooled_text, 2),
            "time_ids": time_ids.expand(latents.shape[0], -1),
        }
        output: Tensor = self.model(
            latents,
            timestep,
            encoder_hidden_states=self.read(text, 3),
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]
        return output


class FluxTransformer(Denoiser):
    """The denoiser of Flux, a ``FluxTransformer2DModel`` on *packed* latents: 2 x 2 of them are one token.

    Where each token lies in the picture is the same in every step and every request, so it is part of the
    stage.

    Args:
        model: The transformer.
        height: Height of the packed latents.
        width: Their width.
        tokens: Length of the prompt.
        dtype: Element type of the places, that of the prompt; a half cannot tell places beyond some hundreds apart.
    """

    image_ids: Tensor
    text_ids: Tensor

    def __init__(self, model: nn.Module, height: int, width: int, tokens: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        self.register_buffer("image_ids", places.to(dtype), persistent=False)
        self.register_buffer("text_ids", torch.zeros(tokens, 3, dtype=dtype), persistent=False)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        pooled_text: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Returns ``[batch, height * width, channels]``.

        Args:
            latents: The same shape, packed.
            timestep: A scalar ``[]`` from 1000 down to 0.
            text: ``[batch, tokens, width]``, from T5.
            pooled_text: ``[batch, width]``, from CLIP.
            guidance: A scalar ``[]``, where the model was trained with one.
        """
        # The model wants a timestep and a scale for each picture, and the level itself, not a thousand times it.
        batch = latents.shape[0]
        output: Tensor = self.model(
            hidden_states=latents,
            timestep=timestep.expand(batch).to(latents.dtype) / 1000,
            guidance=None if guidance is None else guidance.expand(batch),
            pooled_projections=pooled_text,
            encoder_hidden_states=text,
            txt_ids=self.text_ids,
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
        return output
