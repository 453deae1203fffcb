"""What the families have in common: inputs, the loop, and the way from latents to images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator_stages.diffusion.decoders import Decode, Pixels, Unpack
from orchestrator_stages.diffusion.denoisers import Denoiser
from orchestrator_stages.diffusion.images import Checked, Pictures
from orchestrator_stages.diffusion.latents import Noise, Schedule
from orchestrator_stages.diffusion.options import Options
from orchestrator_stages.diffusion.schedule import Scheduler, Table
from orchestrator_stages.diffusion.step import Step
from orchestrator_stages.diffusion.tokens import Reader, Tokens
from orchestrator_stages.tiling import Blend, Split

TILES = (1, 2, 4)
"""How many tiles are decoded at once."""


def _given(value: Any) -> Any:
    return value


class Draft:
    """A pipeline under construction.

    Args:
        name: Its name.
        pipe: The pipeline of diffusers.
        scheduler: Its scheduler.
        options: What was asked for.
        dtype: Element type of the latents.
        moments: The autoencoder's ``latents_mean`` and ``latents_std`` are undone.
        shift: Its ``shift_factor`` is.
        upcast: An autoencoder that overflows in float16 runs in float32.
    """

    def __init__(
        self,
        name: str,
        pipe: Any,
        scheduler: Scheduler,
        options: Options,
        dtype: torch.dtype,
        *,
        moments: bool = False,
        shift: bool = False,
        upcast: bool = False,
    ) -> None:
        self.dtype = dtype
        self.undone = {"moments": moments, "shift": shift}
        half = pipe.vae.dtype == torch.float16
        self.upcast = upcast and half and bool(pipe.vae.config.force_upcast)
        self.pipeline = Pipeline(name)
        self.pipe = pipe
        self.scheduler = scheduler
        self.options = options

    def _host(self, name: str, stage: Any) -> Any:
        return self.pipeline.add(name, stage, device="host")

    def _fed(self, stage: Any, **given: Any) -> dict[str, Any]:
        """Feeds the ports of a host stage: with what is given, else with inputs of the same names."""
        rest = {name: spec for name, spec in stage.inputs.items() if name not in given}
        return {**given, **{name: self._input(name, spec) for name, spec in rest.items()}}

    def _input(self, name: str, spec: type) -> Any:
        """Adds an input; all but the prompt may be left out, and then are what the options say, or None."""
        if name == "prompt":
            return self.pipeline.input(name, spec)
        defaults: dict[str, Any] = {
            "num_images_per_prompt": 1,
            "num_inference_steps": self.options.num_inference_steps,
            "guidance_scale": self.options.guidance_scale,
        }
        default = functools.partial(_given, defaults.get(name))
        otherwise = self.pipeline.add(f"{name}-default", default, device="host", outputs={"chosen": spec})()
        body = Pipeline(name)
        read = body.add("given", _given, device="host", outputs={"chosen": spec})
        body.output("chosen", read(body.input(name, spec)))
        value = self.pipeline.input(name, spec, optional=True)
        return self.pipeline.when(name, body, inputs={name: value}, otherwise={"chosen": otherwise})

    def tokens(self, readers: Sequence[Reader]) -> Any:
        """Adds the inputs for prompts; returns the outputs of :class:`Tokens`."""
        options = self.options
        stage = Tokens(readers, options.images, negative=options.guidance, truncate=options.truncate)
        return self._host("tokens", stage)(**self._fed(stage))

    def conditioning(self, *dims: int, dtype: torch.dtype | None = None) -> TensorSpec:
        """Returns the spec of what a prompt was encoded to: with guidance the negative one comes first."""
        pair = (2,) if self.options.guidance else ()
        return TensorSpec((*pair, self.options.images, *dims), dtype or self.dtype)

    def denoise(
        self,
        name: str,
        denoiser: Denoiser,
        count: Any,
        shape: tuple[int, int, int],
        conditions: Mapping[str, tuple[Any, TensorSpec]],
        *,
        table: Callable[[int], Table] | None = None,
        packed: bool = False,
        embedded: str | None = None,
    ) -> Any:
        """Adds schedule, noise and the loop; returns the latents after it.

        Args:
            name: What the denoiser is called.
            denoiser: Takes latents, timestep and the conditions.
            count: Number of images.
            shape: Channels, height and width of the latents.
            conditions: Ports of the denoiser, each with its value and spec.
            table: Makes the scheduler's table; None: the scheduler itself does.
            packed: The latents are packed.
            embedded: The port of the denoiser that reads ``guidance_scale``.
        """
        options = self.options
        guided = options.guidance or embedded is not None
        # The scale of guidance counts to the precision of the latents, but at least to that of float32.
        wide = torch.float64 if options.guidance and self.dtype == torch.float64 else torch.float32
        schedule = Schedule(
            self.scheduler,
            options.steps,
            guided=guided,
            switched=options.guidance,
            table=table,
            scale_dtype=wide,
        )
        given = dict(
            zip(schedule.outputs, self._host("schedule", schedule)(**self._fed(schedule)), strict=True)
        )
        noise = Noise(options.images, shape, self.dtype, packed=packed)
        latents = self._host("noise", noise)(**self._fed(noise, count=count, start=given.pop("start")))
        inputs = {port: value for port, (value, _) in conditions.items()}
        specs = {port: spec for port, (_, spec) in conditions.items()}
        step = Step(
            name, denoiser, self.scheduler, guided=options.guidance, embedded=embedded, scale_dtype=wide
        )
        return self.pipeline.loop(
            "denoise",
            step.body(TensorSpec(noise.spec.dims, self.dtype), specs),
            carry={"latents": latents},
            each={"timestep": given.pop("timesteps"), "row": given.pop("rows")},
            inputs={**inputs, **given},
        )

    def finish(self, latents: Any, packed: tuple[int, int] | None = None) -> Pipeline:
        """Adds the decoder and what follows; returns the pipeline.

        Args:
            latents: What the loop ended with.
            packed: Height and width of the latents, if they are packed.
        """
        if self.options.output_type == "latent":
            self.pipeline.output("images", latents)
            return self.pipeline
        if packed is not None:
            latents = self.pipeline.add("unpack", Unpack(*packed))(latents)
        pictures, on_host = self._decode(latents)
        checker = getattr(self.pipe, "safety_checker", None)
        if checker is not None:
            stage = Checked(checker, self.pipe.feature_extractor, self._pictures())
            pictures, flagged = self._host("safety_checker", stage)(pictures)
            self.pipeline.output("nsfw_content_detected", flagged)
            on_host = True
        self.pipeline.output("images", self._formed(pictures, on_host))
        return self.pipeline

    def _decode(self, latents: Any) -> tuple[Any, bool]:
        """Returns pictures, and whether they are on the host."""
        options, vae = self.options, self.pipe.vae
        decode = Decode(vae, upcast=self.upcast, **self.undone)
        if options.tile is None:
            return self.pipeline.add("vae", decode)(latents), False
        factor = self.pipe.vae_scale_factor
        tile = options.tile // factor
        overlap = round(tile * options.overlap)
        body = Pipeline("vae")
        tiles = TensorSpec(
            (Dim("tiles", buckets=TILES, batch=True), vae.config.latent_channels, tile, tile),
            self.dtype,
            pad="repeat_first",
        )
        body.output("picture", body.add("vae", decode)(body.input("tile", tiles)))
        cut, frame = self._host("split", Split(tile, overlap))(latents)
        decoded = self.pipeline.map("decode", body, over={"tile": cut})
        blend = Blend(tile, overlap, factor, dims=self._pictures().dims, dtype=self._pictures().dtype)
        return self._host("blend", blend)(decoded, frame), True

    def _pictures(self) -> TensorSpec:
        options = self.options
        dims = (options.images, self.pipe.vae.config.out_channels, options.height, options.width)
        return TensorSpec(dims, torch.float32 if self.upcast else self.pipe.vae.dtype, pad="repeat_first")

    def _formed(self, pictures: Any, on_host: bool) -> Any:
        if self.options.output_type == "pt":
            return pictures
        if on_host:
            images, channels, height, width = self._pictures().dims
            bytes_ = TensorSpec((images, height, width, channels), torch.uint8)
            pixels = self.pipeline.add("pixels", Pixels(), device="host", outputs={"output": bytes_})(
                pictures
            )
        else:
            pixels = self.pipeline.add("pixels", Pixels())(pictures)
        return self._host("pictures", Pictures())(pixels) if self.options.output_type == "pil" else pixels
