"""What the families have in common: inputs, the loop, and the way from latents to images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator_stages.diffusion.decoders import DecodeLatents, Pixels, Unpack
from orchestrator_stages.diffusion.denoisers import Denoiser
from orchestrator_stages.diffusion.images import Pictures, SafetyCheck
from orchestrator_stages.diffusion.latents import DenoisingSchedule, LatentNoise
from orchestrator_stages.diffusion.loop import DenoisingStep
from orchestrator_stages.diffusion.options import Options
from orchestrator_stages.diffusion.schedule import DiffusionScheduler, Table
from orchestrator_stages.diffusion.tokens import PromptTokenizer, Tokens
from orchestrator_stages.tiling import BlendTiles, SplitTiles

TILES = (1, 2, 4)
"""How many tiles are decoded at once."""


def _identity(value: Any) -> Any:
    return value


class DiffusionBuilder:
    """A pipeline under construction.

    Args:
        name: Its name.
        pipe: The pipeline of diffusers.
        scheduler: Its scheduler.
        options: The arguments of the import.
        dtype: Element type of the latents.
        moments: The autoencoder's ``latents_mean`` and ``latents_std`` are undone.
        shift: Its ``shift_factor`` is.
        upcast: An autoencoder that overflows in float16 runs in float32.
    """

    def __init__(
        self,
        name: str,
        pipe: Any,
        scheduler: DiffusionScheduler,
        options: Options,
        dtype: torch.dtype,
        *,
        moments: bool = False,
        shift: bool = False,
        upcast: bool = False,
    ) -> None:
        self.dtype = dtype
        self.decode_options = {"moments": moments, "shift": shift}
        # SDXL's autoencoder overflows in float16 only, and says so in its config.
        half = pipe.vae.dtype == torch.float16
        self.upcast = upcast and half and bool(pipe.vae.config.force_upcast)
        self.pipeline = Pipeline(name)
        self.pipe = pipe
        self.scheduler = scheduler
        self.options = options

    def _host(self, name: str, stage: Any) -> Any:
        return self.pipeline.add(name, stage, device="host")

    def _arguments(self, stage: Any, **values: Any) -> dict[str, Any]:
        """Returns a value for each port of a host stage: that of ``values``, else an input of the same name."""
        rest = {name: spec for name, spec in stage.inputs.items() if name not in values}
        return {**values, **{name: self._input(name, spec) for name, spec in rest.items()}}

    def _input(self, name: str, spec: type) -> Any:
        """Adds an input; all but the prompt may be left out, and then are what the options say, or None."""
        if name == "prompt":
            return self.pipeline.input(name, spec)
        defaults: dict[str, Any] = {
            "num_images_per_prompt": 1,
            "num_inference_steps": self.options.num_inference_steps,
            "guidance_scale": self.options.guidance_scale,
        }
        # An optional input may stand in a branch only. The branch hands it on; the other way is a stage that gives the
        # default, so that a plan shows both.
        default = functools.partial(_identity, defaults.get(name))
        otherwise = self.pipeline.add(f"{name}-default", default, device="host", outputs={"chosen": spec})()
        body = Pipeline(name)
        read = body.add("given", _identity, device="host", outputs={"chosen": spec})
        body.output("chosen", read(body.input(name, spec)))
        value = self.pipeline.input(name, spec, optional=True)
        return self.pipeline.when(name, body, inputs={name: value}, otherwise={"chosen": otherwise})

    def tokens(self, tokenizers: Sequence[PromptTokenizer]) -> Any:
        """Adds the inputs for prompts; returns the outputs of :class:`Tokens`."""
        options = self.options
        stage = Tokens(tokenizers, options.images, negative=options.guidance, truncate=options.truncate)
        return self._host("tokens", stage)(**self._arguments(stage))

    def conditioning(self, *dims: int, dtype: torch.dtype | None = None) -> TensorSpec:
        """Returns the spec of an encoded prompt: with guidance the negative one comes first."""
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
        is_packed: bool = False,
        scale_port: str | None = None,
    ) -> Any:
        """Adds schedule, noise and the loop; returns the latents after it.

        Args:
            name: What the denoiser is called.
            denoiser: Takes latents, timestep and the conditions.
            count: Number of images.
            shape: Channels, height and width of the latents.
            conditions: Ports of the denoiser, each with its value and spec.
            table: Makes the scheduler's table; None: the scheduler itself does.
            is_packed: The latents are packed.
            scale_port: The port of the denoiser that reads ``guidance_scale``.
        """
        options = self.options
        # The scale of guidance counts to the precision of the latents, but at least to that of float32.
        wide = torch.float64 if options.guidance and self.dtype == torch.float64 else torch.float32
        schedule = DenoisingSchedule(
            self.scheduler,
            options.steps,
            guidance=options.guidance or scale_port is not None,
            has_switches=options.guidance,
            table=table,
            scale_dtype=wide,
        )
        table_values = dict(
            zip(schedule.outputs, self._host("schedule", schedule)(**self._arguments(schedule)), strict=True)
        )
        noise = LatentNoise(options.images, shape, self.dtype, is_packed=is_packed)
        start = table_values.pop("start")
        latents = self._host("noise", noise)(**self._arguments(noise, count=count, start=start))
        inputs = {port: value for port, (value, _) in conditions.items()}
        specs = {port: spec for port, (_, spec) in conditions.items()}
        step = DenoisingStep(
            name,
            denoiser,
            self.scheduler,
            guidance=options.guidance,
            scale_port=scale_port,
            scale_dtype=wide,
        )
        # What is left of the table holds for the whole request: the scale, and the switches of guidance.
        return self.pipeline.loop(
            "denoise",
            step.body(TensorSpec(noise.spec.dims, self.dtype), specs),
            carry={"latents": latents},
            each={"timestep": table_values.pop("timesteps"), "row": table_values.pop("rows")},
            inputs={**inputs, **table_values},
        )

    def finish(self, latents: Any, packed_size: tuple[int, int] | None = None) -> Pipeline:
        """Adds the decoder and what follows; returns the pipeline.

        Args:
            latents: What the loop ended with.
            packed_size: Height and width of the latents, if they are packed.
        """
        if self.options.output_type == "latent":
            self.pipeline.output("images", latents)
            return self.pipeline
        if packed_size is not None:
            latents = self.pipeline.add("unpack", Unpack(*packed_size))(latents)
        pictures, on_host = self._decode(latents)
        # The safety checker runs on the host, so what comes after it is on the host as well.
        checker = getattr(self.pipe, "safety_checker", None)
        if checker is not None:
            stage = SafetyCheck(checker, self.pipe.feature_extractor, self._pictures())
            pictures, flags = self._host("safety_checker", stage)(pictures)
            self.pipeline.output("nsfw_content_detected", flags)
            on_host = True
        self.pipeline.output("images", self._format_images(pictures, on_host))
        return self.pipeline

    def _decode(self, latents: Any) -> tuple[Any, bool]:
        """Returns pictures, and whether they are on the host."""
        options, vae = self.options, self.pipe.vae
        decode = DecodeLatents(vae, upcast=self.upcast, **self.decode_options)
        if options.tile is None:
            return self.pipeline.add("vae", decode)(latents), False
        # Tiles are cut and blended on the host, and decoded in a map, so one program decodes pictures of any size.
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
        latent_tiles, grid = self._host("split", SplitTiles(tile, overlap))(latents)
        picture_tiles = self.pipeline.map("decode", body, over={"tile": latent_tiles})
        blend = BlendTiles(tile, overlap, factor, dims=self._pictures().dims, dtype=self._pictures().dtype)
        return self._host("blend", blend)(picture_tiles, grid), True

    def _pictures(self) -> TensorSpec:
        options = self.options
        dims = (options.images, self.pipe.vae.config.out_channels, options.height, options.width)
        return TensorSpec(dims, torch.float32 if self.upcast else self.pipe.vae.dtype, pad="repeat_first")

    def _format_images(self, pictures: Any, on_host: bool) -> Any:
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
