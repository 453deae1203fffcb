"""Options of a pipeline's parts that are followed: the picture is that of diffusers, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from orchestrator_stages.diffusion import toy
from tests.stages.test_diffusion_pipelines import converted, painted, run

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers

MAKERS: dict[str, Callable[[], Any]] = {
    "sd": toy.stable_diffusion,
    "xl": toy.stable_diffusion_xl,
    "flux": toy.flux,
}


def _config(part: str, **options: Any) -> Callable[[Any], None]:
    return lambda pipe: getattr(pipe, part).register_to_config(**options)


def _eager(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def _sliced(pipe: Any) -> None:
    pipe.enable_attention_slicing()
    pipe.vae.enable_slicing()


def _free(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def _text_projection(pipe: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipe.unet = diffusers.UNet2DConditionModel(
            **{**pipe.unet.config, "encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj"}
        ).eval()


def _tiny_decoder(pipe: Any) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipe.vae = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        ).eval()


MEANS = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.5, 1.0, 0.5, 2.0]}

FOLLOWED: list[tuple[str, Callable[[Any], None]]] = [
    ("sd", _config("vae", shift_factor=0.5)),
    ("sd", _config("vae", **MEANS)),
    ("xl", _config("vae", shift_factor=0.5)),
    ("xl", _config("vae", **MEANS)),
    ("xl", _config("vae", latents_mean=[0.1] * 4)),
    ("flux", _config("vae", **MEANS)),
    ("sd", _config("vae", scaling_factor=0.3)),
    ("sd", _text_projection),
    ("sd", _sliced),
    ("sd", _free),
    ("xl", _tiny_decoder),
    pytest.param("sd", _eager, marks=pytest.mark.slow),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("family", "change"), FOLLOWED)
def test_what_is_followed_paints_the_same(family: str, change: Callable[[Any], None]):
    """An autoencoder's options are undone as the family does it, and not as another one would."""
    pipe = MAKERS[family]()
    change(pipe)
    request = {"prompt": "a cat", "num_inference_steps": 2}
    expected = painted(pipe, 1, **request)
    assert run(converted(pipe), seed=1, **request).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("family", ["sd", "xl"])
def test_a_scale_of_guidance_counts_as_a_number_of_python(family: str, dtype: torch.dtype):
    """Kind: a number that becomes a tensor is rounded to the dtype of the model; 3.3 is no half. And 1 is none."""
    pipe = MAKERS[family]().to(dtype)
    pipeline = converted(pipe, output_type="latent")
    request = {"prompt": "a cat", "num_inference_steps": 2}
    with pipeline.plan("cpu").load() as session:
        for scale in (3.3, 1.0, 0.0, 12):
            latents = session(seed=1, guidance_scale=scale, **request)["images"]
            assert latents.equal(painted(pipe, 1, guidance_scale=scale, output_type="latent", **request))
