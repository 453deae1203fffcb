"""The text encoders of the families, each as a stage from token ids to what its denoiser reads.

Which layer of a text encoder a denoiser was trained on differs from family to family, and so does whether it
reads one vector for each token, one for the whole prompt (*pooled*), or both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator_stages.diffusion.held import Held


class LastLayer(Held):
    """A text encoder (CLIP in Stable Diffusion, T5 in Flux) up to its last layer."""

    def forward(self, ids: Tensor) -> Tensor:
        """Returns ``[batch, tokens, width]`` for ``ids`` ``[batch, tokens]``, int64."""
        text: Tensor = self.model(ids, return_dict=False)[0]
        return text


class Pooled(Held):
    """CLIP's vector for the whole prompt, without a projection, as in Flux."""

    def forward(self, ids: Tensor) -> Tensor:
        """Returns ``[batch, width]`` for ``ids`` ``[batch, tokens]``, int64."""
        pooled: Tensor = self.model(ids).pooler_output
        return pooled


class LastButOne(Held):
    """CLIP up to its last layer but one, as SDXL reads its first text encoder."""

    def forward(self, ids: Tensor) -> Tensor:
        """Returns ``[batch, tokens, width]`` for ``ids`` ``[batch, tokens]``, int64."""
        text: Tensor = self.model(ids, output_hidden_states=True).hidden_states[-2]
        return text


class LastButOneAndPooled(Held):
    """CLIP up to its last layer but one, and the projected vector for the whole prompt: SDXL's second encoder."""

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        """Returns ``text`` ``[batch, tokens, width]`` and ``pooled`` ``[batch, projection]``.

        Args:
            ids: ``[batch, tokens]``, int64.
        """
        given = self.model(ids, output_hidden_states=True)
        return {"text": given.hidden_states[-2], "pooled": given[0]}


class Pair(nn.Module):
    """Puts what the negative prompt was encoded to before what the prompt was."""

    def forward(self, negative: Tensor, prompted: Tensor) -> Tensor:
        """Returns ``[2, batch, ...]`` for two tensors ``[batch, ...]``."""
        return torch.stack([negative, prompted])


class SideBySide(nn.Module):
    """Joins what two text encoders said of each token."""

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
        pooled: Tensor,
        negated: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Returns ``[2, batch, tokens, width]``, and pooled ``[2, batch, projection]``.

        Args:
            negative_first: ``[batch, tokens, width]``: the negative prompt from the first encoder.
            negative_second: The same from the second.
            negative_pooled: ``[batch, projection]``.
            first: Like those, the prompt.
            second: See there.
            pooled: See there.
            negated: A scalar, bool: whether there is a negative prompt.
        """
        without, prompted = torch.cat([negative_first, negative_second], -1), torch.cat([first, second], -1)
        if self.zeros:
            without = torch.where(negated, without, torch.zeros_like(without))
            negative_pooled = torch.where(negated, negative_pooled, torch.zeros_like(negative_pooled))
        return torch.stack([without, prompted]), torch.stack([negative_pooled, pooled])
