"""Kind: taken over as something else. What from_diffusers does not write anew is refused by its name, or followed."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import GraphError
from orchestrator_stages.diffusion import parts, toy
from orchestrator_stages.diffusion.convert import FAMILIES
from tests.stages.test_diffusion_pipelines import converted, painted, run

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers: caches and casting are announced

MAKERS: dict[str, Callable[[], Any]] = {
    "sd": toy.stable_diffusion,
    "xl": toy.stable_diffusion_xl,
    "flux": toy.flux,
}


@pytest.mark.parametrize("family", MAKERS)
def test_a_pipeline_that_lacks_a_part_is_refused_by_the_part(family: str):
    for part in ("scheduler", "vae", "text_encoder", "tokenizer", "unet", "transformer", "text_encoder_2"):
        pipe = MAKERS[family]()
        if part in pipe.components:
            setattr(pipe, part, None)
            with pytest.raises(GraphError, match=part) as raised:
                converted(pipe, output_type="latent")
            assert raised.value.part == part


def replaced(method: str) -> Any:
    """A subclass of Stable Diffusion that replaces one method."""
    kind = diffusers.StableDiffusionPipeline
    body = {method: lambda self, *args, **options: getattr(kind, method)(self, *args, **options)}
    pipe = type("Replaced", (kind,), body)(**toy.stable_diffusion().components, requires_safety_checker=False)
    return pipe


@pytest.mark.parametrize(
    "method",
    [
        "__call__",
        "encode_prompt",
        "check_inputs",
        "prepare_latents",
        "prepare_extra_step_kwargs",
        "progress_bar",
    ],
)
def test_a_subclass_that_replaces_a_method_is_refused_by_the_method(method: str):
    with pytest.raises(GraphError, match=f"Replaced replaces '{method}'"):
        converted(replaced(method))


def test_a_subclass_that_replaces_nothing_paints_the_same():
    class Named(diffusers.StableDiffusionPipeline):
        """Has a method that diffusers does not know, and no other."""

        def paint(self) -> None: ...

    pipe = Named(**toy.stable_diffusion().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    request = {"prompt": "a cat", "num_inference_steps": 2}
    assert run(converted(pipe), seed=1, **request).equal(painted(pipe, 1, **request))


def test_an_object_that_replaces_a_method_of_its_own_is_refused():
    pipe = toy.stable_diffusion()
    pipe.encode_prompt = pipe.prepare_latents
    with pytest.raises(GraphError, match="'encode_prompt'"):
        converted(pipe)
    flux = toy.flux()
    flux.scheduler.step = lambda *args, **options: None
    with pytest.raises(GraphError, match=r"'step' of .*FlowMatchEulerDiscreteScheduler"):
        converted(flux)


def test_classes_are_known_by_identity_not_by_name():
    class DDIMScheduler(diffusers.PNDMScheduler):
        """Has the name of a scheduler that is supported."""

    class StableDiffusionPipeline(diffusers.DiffusionPipeline):
        """Has the name of a pipeline that is supported."""

        def __call__(self) -> None: ...

    pipe = toy.stable_diffusion()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(GraphError, match=r"DDIMScheduler of .*test_diffusion_refused is not supported"):
        converted(pipe)
    with pytest.raises(GraphError, match="from_diffusers takes a loaded"):
        converted(StableDiffusionPipeline())


def _config(part: str, **options: Any) -> Callable[[Any], None]:
    return lambda pipe: getattr(pipe, part).register_to_config(**options)


def _attention_mask(pipe: Any) -> None:
    pipe.text_encoder.config.use_attention_mask = True


def _watermark(pipe: Any) -> None:
    pipe.watermark = object()


def _projected(pipe: Any) -> None:
    pipe.text_encoder = pipe.text_encoder_2


def _checker(pipe: Any) -> None:
    pipe.safety_checker = lambda images, clip_input: (images, [False] * len(images))


def _scheduler(**options: Any) -> Callable[[Any], None]:
    def change(pipe: Any) -> None:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **options)

    return change


CHANGES: list[tuple[str, str, Callable[[Any], None]]] = [
    ("sd", "time_cond_proj_dim", _config("unet", time_cond_proj_dim=8)),
    ("sd", "class_embed_type", _config("unet", class_embed_type="timestep")),
    ("xl", "num_class_embeds", _config("unet", num_class_embeds=3)),
    ("sd", "encoder_hid_dim_type", _config("unet", encoder_hid_dim_type="ip_image_proj")),
    ("sd", "addition_embed_type", _config("unet", addition_embed_type="image")),
    ("xl", "addition_embed_type", _config("unet", addition_embed_type=None)),
    ("sd", "in_channels", _config("unet", in_channels=9)),
    ("flux", "in_channels", _config("transformer", in_channels=96, out_channels=16)),
    ("flux", "shift_factor", _config("vae", shift_factor=None)),
    ("sd", "do_normalize", _config("image_processor", do_normalize=False)),
    ("sd", "use_attention_mask", _attention_mask),
    ("sd", "safety_checker", _checker),
    ("xl", "add_watermarker", _watermark),
    ("xl", "text_encoder", _projected),
    ("sd", "thresholding", _scheduler(thresholding=True)),
    ("xl", "timestep_type", _scheduler(timestep_type="continuous", prediction_type="v_prediction")),
    ("flux", "invert_sigmas", _scheduler(invert_sigmas=True)),
    ("flux", "stochastic_sampling", _scheduler(stochastic_sampling=True)),
    ("flux", "sigma_min", _config("scheduler", use_karras_sigmas=True, sigma_min=0.1)),
    ("flux", "use_flow_sigmas", _config("scheduler", use_flow_sigmas=True)),
]


@pytest.mark.parametrize(("family", "option", "change"), CHANGES, ids=lambda value: str(value)[:24])
def test_an_option_that_is_not_followed_is_refused_by_its_name(
    family: str, option: str, change: Callable[[Any], None]
):
    pipe = MAKERS[family]()
    change(pipe)
    with pytest.raises(GraphError, match=option):
        converted(pipe)


def _betas(pipe: Any) -> None:
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod**1.01


def _last(pipe: Any) -> None:
    pipe.scheduler.final_alpha_cumprod = torch.tensor(0.5)


def _sigmas(pipe: Any) -> None:
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod.flip(0)


def _shift(pipe: Any) -> None:
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe.scheduler.set_shift(5.0)


@pytest.mark.parametrize(
    ("family", "change"), [("sd", _betas), ("sd", _last), ("xl", _sigmas), ("flux", _shift)]
)
def test_a_scheduler_that_was_set_after_it_was_made_is_refused(family: str, change: Callable[[Any], None]):
    """Its options say nothing of it."""
    pipe = MAKERS[family]()
    change(pipe)
    with pytest.raises(GraphError, match="does not do what its options say"):
        converted(pipe)


def test_looking_at_a_scheduler_leaves_it_alone():
    pipe = toy.stable_diffusion_xl()
    pipe.scheduler.set_timesteps(7)
    before = {name: repr(value) for name, value in vars(pipe.scheduler).items()}
    converted(pipe)
    assert {name: repr(value) for name, value in vars(pipe.scheduler).items()} == before


class Counting(nn.Module):
    """Gives something else each time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **options) * self.calls


class Forgetting:
    """An attention processor that counts."""

    def __call__(self, attention: Any, hidden: Any, *args: Any, **options: Any) -> Any:
        return hidden


def _hooked(pipe: Any) -> None:
    pipe.unet.mid_block.register_forward_hook(lambda module, args, output: output)


def _hooked_before(pipe: Any) -> None:
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: None)


def _forward(pipe: Any) -> None:
    pipe.text_encoder.forward = pipe.text_encoder.forward.__func__


def _decode(pipe: Any) -> None:
    pipe.vae.decode = lambda latents, **options: (latents,)


def _wrapped(pipe: Any) -> None:
    pipe.unet.conv_in = Counting(pipe.unet.conv_in)


def _processor(pipe: Any) -> None:
    pipe.unet.set_attn_processor(Forgetting())


def _quantised(pipe: Any) -> None:
    pipe.text_encoder = torch.ao.quantization.quantize_dynamic(pipe.text_encoder, {nn.Linear})


def _casting(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)


def _offload(pipe: Any) -> None:
    pipe.unet._hf_hook = object()


def _mag_cache(pipe: Any) -> None:
    pipe.transformer.enable_cache(
        diffusers.hooks.MagCacheConfig(num_inference_steps=4, mag_ratios=torch.ones(4))
    )


def _text_cache(pipe: Any) -> None:
    pipe.transformer.enable_cache(diffusers.hooks.FirstBlockCacheConfig(threshold=0.1))


STATE: list[tuple[str, str, Callable[[Any], None]]] = [
    ("sd", r"pipe\.unet\.mid_block has the forward hook", _hooked),
    ("sd", r"pipe\.vae\.decoder has the forward hook", _hooked_before),
    ("sd", r"pipe\.text_encoder has a forward of its own", _forward),
    ("xl", "replaces 'decode'", _decode),
    ("xl", r"pipe\.unet\.conv_in is a .*Counting", _wrapped),
    ("sd", "attention processor .*Forgetting", _processor),
    ("sd", "quantised", _quantised),
    ("sd", "(quantised|hook|replaces)", _casting),
    ("sd", "accelerate", _offload),
    ("flux", r"cache enabled.*disable_cache", _mag_cache),
    ("flux", r"cache enabled.*disable_cache", _text_cache),
]


@pytest.mark.parametrize(
    ("family", "message", "change"), STATE, ids=lambda value: getattr(value, "__name__", "")
)
def test_what_may_keep_something_from_step_to_step_is_refused(
    family: str, message: str, change: Callable[[Any], None]
):
    """Kind: a forward that is assumed to be pure."""
    pipe = MAKERS[family]()
    change(pipe)
    with pytest.raises(GraphError, match=message):
        converted(pipe)


def test_what_is_gone_again_is_no_obstacle():
    pipe = toy.flux()
    request = {"prompt": "a cat", "num_inference_steps": 2}
    expected = painted(pipe, 1, **request)
    _text_cache(pipe)
    pipe.transformer.disable_cache()
    pipe.transformer.register_forward_hook(lambda *args: None).remove()
    assert run(converted(pipe), seed=1, **request).equal(expected)


def test_the_options_gone_through_are_all_that_the_installed_version_has():
    """What a later version has besides is refused where it is not as by default; this says to go through it."""
    for path in {*parts.VAE, *parts.UNET, *parts.FLUX, *parts.PROCESSOR}:
        module, _, name = path.partition(":")
        base = getattr(__import__(module, fromlist=[name]), name)
        assert set(parts.defaults_of(base)) == set(parts.OPTIONS[name].split()), name
    for family in FAMILIES:
        for path, ours in family.schedulers.items():
            theirs = parts.defaults_of(getattr(diffusers, path.partition(":")[2]))
            known = {*inspect.signature(ours).parameters, *ours.fixed_options, *ours.unread_options}
            assert set(theirs) <= known, path


def test_defaults_of_a_family_are_those_of_diffusers():
    for family in FAMILIES:
        call = inspect.signature(getattr(diffusers, family.name).__call__).parameters
        assert call["num_inference_steps"].default == family.steps
        assert call["guidance_scale"].default == family.scale


def test_a_refused_pipeline_is_left_as_it_was():
    pipe = toy.stable_diffusion()
    request = {"prompt": "a cat", "num_inference_steps": 2}
    expected = painted(pipe, 1, **request)
    with contextlib.suppress(GraphError):
        converted(pipe, height=60)
    assert painted(pipe, 1, **request).equal(expected)
