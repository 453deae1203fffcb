"""Draw tokens as ``generate()`` does: ``torch.multinomial`` on the device, its random numbers from the host.

For each token multinomial draws an exponentially distributed number for every entry of the distribution, and takes the
entries with the largest quotients of weight and number. The numbers come from a generator whose state a loop carries on
the host, in the order in which ``generate()`` draws them: after ``torch.manual_seed(seed)`` its tokens are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator import HostStage, TensorSpec

__all__ = ["SampleNoise", "SeedState", "draw_tokens", "random_spec"]


def random_spec() -> TensorSpec:
    """Returns the spec of the state of a generator of torch on the CPU."""
    return TensorSpec(tuple(torch.Generator().get_state().shape), torch.uint8)


def draw_tokens(weights: Tensor, noise: Tensor, count: int = 1) -> Tensor:
    """Returns tokens ``[rows, count]``, drawn without putting one back.

    Args:
        weights: ``[rows, tokens]``, probabilities.
        noise: The same, exponentially distributed with rate 1.
        count: How many a row gets.
    """
    quotients = weights / noise
    return quotients.argmax(-1, keepdim=True) if count == 1 else quotients.topk(count).indices


class SeedState(HostStage):
    """Host stage: ``seed``, an int, to ``random``, the state of a generator that begins with it."""

    def __init__(self) -> None:
        super().__init__(tag="seed")
        self.inputs = {"seed": int}
        self.outputs = {"random": random_spec()}

    def forward(self, seed: int) -> Tensor:
        """Seeds one."""
        return torch.Generator().manual_seed(seed).get_state()


class SampleNoise(HostStage):
    """Host stage: the random numbers of one token of each row.

    Takes ``random``, the state of a generator, and ``like``, any tensor with the batch in front. Gives ``noise``
    ``[batch, ...]``, exponentially distributed, and ``random``, the state after that.

    Args:
        spec: Of the noise.
    """

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(tag="noise")
        self.shape = tuple(int(str(dim)) for dim in spec.dims[1:])
        self.inputs = {"random": random_spec(), "like": None}
        self.outputs = {"noise": spec, "random": random_spec()}

    def forward(self, random: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Draws them."""
        generator = torch.Generator()
        generator.set_state(random.clone())
        noise = torch.empty(like.shape[0], *self.shape).exponential_(generator=generator)
        return noise, generator.get_state()
