"""The text encoders of the families, each as a stage from token ids to what its denoiser reads.

Which layer of a text encoder a denoiser was trained on differs from family to family, and so does whether it
reads one vector for each token, one for the whole prompt (*pooled*), or both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator_stages.diffusion.model_stage import ModelStage


class LastLayer(ModelStage):
    """A text encoder (CLIP in Stable Diffusion, T5 in Flux) up to its last layer."""

    def forward(self, ids: Tensor) -> Tensor:
        """Returns ``[batch, tokens, width]`` for ``ids`` ``[batch, tokens]``, int64."""
        text: Tensor = self.model(ids, return_dict=False)[0]
        return text


class PooledText(ModelStage):
    """CLIP's vector for the whole prompt, without a projection, as in Flux."""

    def forward(self, ids: Tensor) -> Tensor:
        """Returns ``[batch, width]`` for ``ids`` ``[batch, tokens]``, int64."""
        text: Tensor = self.model(ids).pooler_output
        return text


class LastButOne(ModelStage):
    """CLIP up to its last layer but one, as SDXL reads its first text encoder."""

    def forward(self, ids: Tensor) -> Tensor:
        """Returns ``[batch, tokens, width]`` for ``ids`` ``[batch, tokens]``, int64."""
        text: Tensor = self.model(ids, output_hidden_states=True).hidden_states[-2]
        return text


class LastButOneWithProjection(ModelStage):
    """CLIP up to its last layer but one, and the projected vector for the whole prompt: SDXL's second encoder."""

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Returns ``text`` ``[batch, tokens, width]`` and ``pooled`` ``[batch, projection]``.

        Args:
            ids: ``[batch, tokens]``, int64.
        """
        result = self.model(ids, output_hidden_states=True)
        return {"text": result.hidden_states[-2], "pooled": result[0]}


class Pair(nn.Module):
    """Puts what the negative prompt was encoded to before what the prompt was."""

    def forward(self, negative: Tensor, positive: Tensor) -> Tensor:
        """Returns ``[2, batch, ...]`` for two tensors ``[batch, ...]``."""
        return torch.stack([negative, positive])


class SideBySide(nn.Module):
    """Joins the vectors of two text encoders for each token."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns ``[batch, tokens, width]`` with the widths of both added."""
        return torch.cat([first, second], dim=-1)


class PairXL(nn.Module):
    """Joins both encoders and both prompts of SDXL.

    Args:
        zeros: Where there is no negative prompt, zeros stand for it, not the encoded empty text.
    """

    def __init__(self, *, zeros: bool) -> None:
        super().__init__()
        self.zeros = zeros

    def forward(
        self,
        negative_first: Tensor,
        negative_second: Tensor,
        negative_pooled: Tensor,
        first: Tensor,
        second: Tensor,
        pooled_text: Tensor,
        has_negative: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Returns ``[2, batch, tokens, width]``, and pooled ``[2, batch, projection]``.

        Args:
            negative_first: ``[batch, tokens, width]``: the negative prompt from the first encoder.
            negative_second: The same from the second.
            negative_pooled: ``[batch, projection]``.
            first: Like those, the prompt.
            second: See there.
            pooled_text: See there.
            has_negative: A scalar, bool: whether there is a negative prompt.
        """
        negative, positive = torch.cat([negative_first, negative_second], -1), torch.cat([first, second], -1)
        # Both ways are computed and one is chosen: whether there is a negative prompt is known to a request only.
        if self.zeros:
            negative = torch.where(has_negative, negative, torch.zeros_like(negative))
            negative_pooled = torch.where(has_negative, negative_pooled, torch.zeros_like(negative_pooled))
        return torch.stack([negative, positive]), torch.stack([negative_pooled, pooled_text])
