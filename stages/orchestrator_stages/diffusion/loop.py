"""One step of denoising as the body of a loop: ask the denoiser, guide its answer, move the latents.

With guidance a request decides by its scale whether there is any, as in diffusers: a scale of 1 and less asks the
denoiser about the prompt alone. A batch of half the size gives other roundings, so both ways are drawn, each in a
branch, and a request runs one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from orchestrator import Pipeline, TensorSpec
from orchestrator_stages.diffusion.denoisers import Denoiser
from orchestrator_stages.diffusion.guidance import Ask, Guide
from orchestrator_stages.diffusion.schedule import DiffusionScheduler

SWITCHES = ("guided", "alone")
"""The branches, and the inputs that say which of them runs; always one does."""


class DenoisingStep:
    """Draws the body.

    Its inputs are ``latents``, which it also gives, ``timestep`` and ``row`` of the scheduler's table, the
    conditions of the denoiser, and ``scale``, a scalar, where there is guidance; where that is in one batch, also
    :data:`SWITCHES`, two bools.

    Args:
        name: What the denoiser is called.
        denoiser: A stage ``(latents, timestep, **conditions) -> output``.
        scheduler: The scheduler.
        guidance: It is in one batch: the denoiser is shown everything twice, and conditions hold both prompts.
        scale_port: The port of the denoiser that reads ``scale`` itself, if any.
        scale_dtype: Element type of ``scale``.
    """

    def __init__(
        self,
        name: str,
        denoiser: Denoiser,
        scheduler: DiffusionScheduler,
        *,
        guidance: bool,
        scale_port: str | None = None,
        scale_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name = name
        self.denoiser = denoiser
        self.scheduler = scheduler
        self.guidance = guidance
        self.scale_port = scale_port
        self.scale_dtype = scale_dtype

    def body(self, latents: TensorSpec, conditions: Mapping[str, TensorSpec]) -> Pipeline:
        """Returns the body for latents and conditions of these specs."""
        body = Pipeline(self.name)
        specs = {
            "latents": latents,
            "timestep": TensorSpec((), self.scheduler.timestep_dtype),
            "row": TensorSpec((self.scheduler.columns,)),
            **conditions,
        }
        if self.guidance or self.scale_port:
            specs["scale"] = TensorSpec((), self.scale_dtype)
        values = {port: body.input(port, spec) for port, spec in specs.items()}
        if self.guidance:
            # Each branch gives what it is handed where it does not run, so the second one keeps the answer of the
            # first. Exactly one runs: the latents that the chain begins with are never the answer.
            output = values["latents"]
            for switch in SWITCHES:
                condition = body.input(switch, TensorSpec((), torch.bool))
                branch = self._branch(switch, specs)
                output = body.when(
                    switch,
                    branch,
                    inputs={port: values[port] for port in self._read(specs, guidance=switch == "guided")},
                    otherwise={"output": output},
                    condition=condition,
                )
        else:
            output = self._ask(body, self.denoiser, values, guidance=False)
        next_latents = body.add("step", self.scheduler.step())(output, values["latents"], values["row"])
        body.output("latents", next_latents)
        return body

    def _read(self, specs: Mapping[str, TensorSpec], *, guidance: bool) -> list[str]:
        """Which of the body's values a branch reads."""
        unread = {port for port in ("row",) if self.scheduler.scale() is None}
        if not guidance:
            unread.add("scale")
        return [port for port in specs if port not in unread]

    def _branch(self, switch: str, specs: Mapping[str, TensorSpec]) -> Pipeline:
        """Returns what the denoiser says as a pipeline: guided, or of the prompt alone."""
        guidance = switch == "guided"
        branch = Pipeline(switch)
        values = {port: branch.input(port, specs[port]) for port in self._read(specs, guidance=guidance)}
        denoiser = self.denoiser if guidance else self.denoiser.alone()
        output = self._ask(branch, denoiser, values, guidance=guidance)
        branch.output("output", branch.add("guide", Guide())(output, values["scale"]) if guidance else output)
        return branch

    def _ask(self, body: Pipeline, denoiser: Denoiser, values: Mapping[str, Any], *, guidance: bool) -> Any:
        """Adds the denoiser; returns what it says of the latents, scaled as the scheduler wants it."""
        ask = Ask(self.scheduler.scale(), guidance=guidance)
        model_input = values["latents"]
        # Without a scale and without guidance the denoiser takes the latents as they are: no stage stands between.
        if ask.scale is not None:
            model_input = body.add("ask", ask)(model_input, values["row"])
        elif guidance:
            model_input = body.add("ask", ask)(model_input)
        own = ("latents", "timestep", "row", "scale")
        ports = {port: value for port, value in values.items() if port not in own}
        if self.scale_port:
            ports[self.scale_port] = values["scale"]
        return body.add(self.name, denoiser)(model_input, values["timestep"], **ports)
