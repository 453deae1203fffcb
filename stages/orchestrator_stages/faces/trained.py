"""Fill the face networks with the trained weights that ship in this package.

Building a network and reading its weights are two steps, since a network may be built only to look at its
shapes: under torch's fake tensor mode, or on the meta device, it has no memory to read into and stays as it
is.

The files come from ``stages/scripts/convert_facenet.py``; ``weights/NOTICE`` holds their licence and
``weights/SHA256SUMS`` their checksums.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from safetensors.torch import load
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from orchestrator import ModelWrapper
from orchestrator_stages.faces.nets import ONet, PNet, RNet

FOLDER = Path(__file__).with_name("weights")

Net = TypeVar("Net", bound=nn.Module)


def _has_memory(module: nn.Module) -> bool:
    return not any(isinstance(p, FakeTensor) or p.is_meta for p in module.parameters())


def trained(module: Net, name: str) -> Net:
    """Read ``weights/{name}.safetensors`` into ``module``, unless it is fake, and return it for inference."""
    if _has_memory(module):
        module.load_state_dict(load((FOLDER / f"{name}.safetensors").read_bytes()))
    return module.eval().requires_grad_(False)


class TrainedNet(ModelWrapper):
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
        return trained(model, self.tag)


def pnet() -> TrainedNet:
    """Returns the stage that proposes: :class:`~orchestrator_stages.faces.nets.PNet`."""
    return TrainedNet(PNet, "pnet")


def rnet() -> TrainedNet:
    """Returns the stage that refines: :class:`~orchestrator_stages.faces.nets.RNet`."""
    return TrainedNet(RNet, "rnet")


def onet() -> TrainedNet:
    """Returns the stage that decides: :class:`~orchestrator_stages.faces.nets.ONet`."""
    return TrainedNet(ONet, "onet")
