"""Fill the face networks with the trained weights that ship in this package.

The files come from ``stages/scripts/convert_facenet.py``; ``weights/NOTICE`` holds their licence and
``weights/SHA256SUMS`` their checksums.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import nn

from orchestrator import ModelWrapper
from orchestrator_stages.demos.faces.nets import ONet, PNet, RNet
from orchestrator_stages.demos.shipped import fill

FOLDER = Path(__file__).with_name("weights")

Net = TypeVar("Net", bound=nn.Module)


def load_weights(module: Net, name: str) -> Net:
    """Read ``weights/{name}.safetensors`` into ``module``, unless it is fake, and return it for inference."""
    fill(module, FOLDER / f"{name}.safetensors")
    return module


class FaceNet(ModelWrapper):
    """One of the networks as a stage; its weights are read when its model is first asked for.

    Args:
        model_cls: The network.
        tag: Name of its file in ``weights/``, without the ending.
    """

    def __init__(self, model_cls: type[nn.Module], tag: str) -> None:
        super().__init__(model_cls=model_cls, tag=tag)

    def make_model(self) -> nn.Module:
        """Builds the network and fills it."""
        model: nn.Module = super().make_model()
        return load_weights(model, self.tag)


def pnet() -> FaceNet:
    """Returns the stage that proposes: :class:`~orchestrator_stages.demos.faces.nets.PNet`."""
    return FaceNet(PNet, "pnet")


def rnet() -> FaceNet:
    """Returns the stage that refines: :class:`~orchestrator_stages.demos.faces.nets.RNet`."""
    return FaceNet(RNet, "rnet")


def onet() -> FaceNet:
    """Returns the stage that decides: :class:`~orchestrator_stages.demos.faces.nets.ONet`."""
    return FaceNet(ONet, "onet")
