"""Where the noise comes from, and how much of it is left after each step.

The noise of a picture depends on its seed alone. The pictures of one request have seeds that follow one another,
so that any of them can be painted again without the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator import HostStage, TensorSpec
from orchestrator_stages.demos.digits.nets import LATENT
from orchestrator_stages.demos.digits.words import LENGTH
from orchestrator_stages.diffusion.schedulers import DDIM

SCHEDULE = DDIM(
    beta_schedule="squaredcos_cap_v2",
    prediction_type="v_prediction",
    timestep_spacing="trailing",
    clip_sample=False,
)
"""What the denoiser was trained on, and is sampled with."""


class Noise(HostStage):
    """Host stage: ``tokens`` and a ``seed`` to ``noise`` ``[batch, *LATENT]``, a latent for each prompt.

    The first prompt's is drawn from ``seed``, the next one's from ``seed + 1``, and so on.
    """

    def __init__(self) -> None:
        super().__init__(tag="noise")
        self.inputs = {"tokens": TensorSpec(("batch", 2, LENGTH), torch.int64), "seed": int}
        self.outputs = {"noise": TensorSpec(("batch", *LATENT), pad="repeat_first")}

    def forward(self, tokens: Tensor, seed: int) -> Tensor:
        """Draws the noise of one request."""
        latents = [
            torch.randn(LATENT, generator=torch.Generator().manual_seed(seed + place))
            for place in range(len(tokens))
        ]
        return torch.stack(latents)
