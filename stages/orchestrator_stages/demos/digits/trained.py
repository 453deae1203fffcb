"""The networks as stages, filled with the trained weights that ship in this package.

The files come from ``stages/scripts/train_digits.py``; ``weights/NOTICE`` says what they were trained on and
``weights/SHA256SUMS`` holds their checksums. They hold float16 and the networks compute in float32.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from orchestrator import ModelWrapper
from orchestrator_stages.demos.digits.nets import GuidedDenoiser, Painter, PromptEncoder
from orchestrator_stages.demos.shipped import fill

FOLDER = Path(__file__).with_name("weights")


class DigitNet(ModelWrapper):
    """A network as a stage; its weights are read when its model is first asked for.

    Args:
        model_cls: The network.
        tag: Name of its file in ``weights/``, without the ending.
        part: The attribute of the network that the file fills; the default is all of it.
    """

    def __init__(self, model_cls: type[nn.Module], tag: str, part: str = "") -> None:
        super().__init__(model_cls=model_cls, tag=tag)
        self.part = part

    def make_model(self) -> nn.Module:
        """Builds the network and fills it."""
        model: nn.Module = super().make_model()
        fill(model.get_submodule(self.part), FOLDER / f"{self.tag}.safetensors")
        return model


def text() -> DigitNet:
    """Returns the stage that reads: :class:`~orchestrator_stages.demos.digits.nets.TextEncoder`."""
    return DigitNet(PromptEncoder, "text")


def denoiser() -> DigitNet:
    """Returns the stage that finds noise: :class:`~orchestrator_stages.demos.digits.nets.GuidedDenoiser`."""
    return DigitNet(GuidedDenoiser, "denoiser", "denoiser")


def painter() -> DigitNet:
    """Returns the stage that paints: :class:`~orchestrator_stages.demos.digits.nets.Painter`."""
    return DigitNet(Painter, "decoder", "decoder")
