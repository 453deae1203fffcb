"""A wrapper that has a say in how the Neuron devices run its stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.specs import PortSpec
from orchestrator.stage import ModelWrapper, Stage
from orchestrator_neuron.options import NeuronSettings

__all__ = ["NeuronWrapper"]


class NeuronWrapper(ModelWrapper):
    """A model wrapper with options of its own, and a look at its stage before it is planned.

    Attributes:
        neuron_options: Options of the stage; those in ``add(config=...)`` go first.
        is_whole: Its model is the whole one, and what a rank runs is another.
    """

    neuron_options: Mapping[str, Any] = {}
    is_whole: bool = False

    def neuron_review(
        self, stage: Stage, settings: NeuronSettings, inputs: Mapping[str, PortSpec]
    ) -> Iterable[str]:
        """Returns warnings about the stage on a Neuron device, a sentence each.

        Args:
            stage: The stage.
            settings: The options in force for it.
            inputs: Its fed ports, with the spec of the value of each.

        Raises:
            PlanError: It cannot run there.
        """
        return ()
