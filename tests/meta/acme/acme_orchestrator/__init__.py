"""A third party's plugin: a stage, a device and a pipeline, all by name."""

from __future__ import annotations

from orchestrator import hookimpl


@hookimpl
def orchestrator_register_stages(registry):
    registry.add("acme.scale", "acme_orchestrator.stages:Scale", summary="multiplies by a factor")


@hookimpl
def orchestrator_register_backends(registry):
    registry.add("acme", "acme_orchestrator.backend:AcmeBackend", summary="keeps every value in a crate")


@hookimpl
def orchestrator_register_pipelines(registry):
    registry.add("acme-scales", "acme_orchestrator.stages:scales", summary="scales twice")
