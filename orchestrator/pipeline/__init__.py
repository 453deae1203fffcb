"""The face of the project: build a pipeline, plan it, load it.

A :class:`Pipeline` is a mutable builder. ``add`` gives a handle to a stage; calling the handle draws edges and gives
:class:`Value` objects, which stand for outputs. ``plan`` freezes what was drawn and plans it.
"""

from orchestrator.pipeline.builder import Pipeline
from orchestrator.pipeline.graph_builder import Value, Values
from orchestrator.pipeline.handles import StageHandle, SubPipelineHandle
from orchestrator.pipeline.overrides import stage_overrides

__all__ = ["Pipeline", "StageHandle", "SubPipelineHandle", "Value", "Values", "stage_overrides"]
