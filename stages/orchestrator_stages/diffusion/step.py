"""One step of denoising as the body of a loop: ask the denoiser, guide its answer, move the latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from orchestrator import Pipeline, TensorSpec
from orchestrator_stages.diffusion.guidance import Advance, Ask
from orchestrator_stages.diffusion.schedule import Scheduler


class Step:
    """Draws the body.

    Its inputs are ``latents``, which it also gives, ``timestep`` and ``row`` of the scheduler's table, the
    conditions of the denoiser, and ``scale``, a scalar, where there is guidance.

    Args:
        name: What the denoiser is called.
        denoiser: A stage ``(latents, timestep, **conditions) -> output``.
        scheduler: The scheduler.
        guided: Guidance in one batch: the denoiser is shown everything twice, and conditions hold both prompts.
        embedded: The port of the denoiser that reads ``scale`` itself, if any.
    """

    def __init__(
        self,
        name: str,
        denoiser: nn.Module,
        scheduler: Scheduler,
        *,
        guided: bool,
        embedded: str | None = None,
    ) -> None:
        self.name = name
        self.denoiser = denoiser
        self.scheduler = scheduler
        self.guided = guided
        self.embedded = embedded

    def body(self, latents: TensorSpec, conditions: Mapping[str, TensorSpec]) -> Pipeline:
        """Returns the body for latents and conditions of these specs."""
        body = Pipeline(self.name)
        before = body.input("latents", latents)
        timestep = body.input("timestep", TensorSpec((), self.scheduler.timestep_dtype))
        row = body.input("row", TensorSpec((self.scheduler.columns,)))
        ports: dict[str, Any] = {port: body.input(port, spec) for port, spec in conditions.items()}
        scale = body.input("scale", TensorSpec(())) if self.guided or self.embedded else None
        if self.embedded:
            ports[self.embedded] = scale
        output = body.add(self.name, self.denoiser)(self._shown(body, before, row), timestep, **ports)
        advance = body.add("step", Advance(self.scheduler.step(), guided=self.guided))
        strength = {"scale": scale} if self.guided else {}
        body.output("latents", advance(output, before, row, **strength))
        return body

    def _shown(self, body: Pipeline, latents: Any, row: Any) -> Any:
        """What the denoiser is shown; the latents themselves where nothing is to be done to them."""
        ask = Ask(self.scheduler.scale(), guided=self.guided)
        if ask.scale is not None:
            return body.add("ask", ask)(latents, row)
        return body.add("ask", ask)(latents) if self.guided else latents
