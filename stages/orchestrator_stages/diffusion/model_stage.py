"""A model of another library as a stage with ports of its own: a module that holds the model and calls it."""

from __future__ import annotations

from typing import Any

from torch import nn


class ModelStage(nn.Module):
    """Base class of stages around a model; a subclass says in ``forward`` what it takes and gives.

    The model is held, not copied, and stays as it is; its mode counts, not that of this module.

    Args:
        model: A module of diffusers or transformers.
    """

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
