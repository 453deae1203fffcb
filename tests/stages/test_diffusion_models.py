"""Diffusers' and transformers' own models as stages give what they give when called by hand, on all devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator import Dim, Pipeline, TensorSpec
from orchestrator_stages.diffusion import decoders, denoisers, encoders, toy

pytest.importorskip("diffusers")

IMAGES = Dim("images", buckets=(1, 2))
LATENTS = (IMAGES, 4, toy.LATENT, toy.LATENT)
TEXT = (IMAGES, toy.WORDS, 32)


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {"sd": toy.stable_diffusion(), "xl": toy.stable_diffusion_xl(), "flux": toy.flux()}


Maker = Callable[[dict[str, Any]], nn.Module]

CASES: dict[str, tuple[Maker, list[TensorSpec]]] = {
    "clip": (
        lambda pipes: encoders.LastLayer(pipes["sd"].text_encoder),
        [TensorSpec((IMAGES, toy.WORDS), torch.int64, pad=0)],
    ),
    "clip but one": (
        lambda pipes: encoders.LastButOne(pipes["xl"].text_encoder),
        [TensorSpec((IMAGES, toy.WORDS), torch.int64, pad=0)],
    ),
    "clip pooled": (
        lambda pipes: encoders.PooledText(pipes["flux"].text_encoder),
        [TensorSpec((IMAGES, toy.WORDS), torch.int64, pad=0)],
    ),
    "clip but one and pooled": (
        lambda pipes: encoders.LastButOneWithProjection(pipes["xl"].text_encoder_2),
        [TensorSpec((IMAGES, toy.WORDS), torch.int64, pad=0)],
    ),
    "t5": (
        lambda pipes: encoders.LastLayer(pipes["flux"].text_encoder_2),
        [TensorSpec((IMAGES, toy.WORDS), torch.int64, pad=0)],
    ),
    "unet": (
        lambda pipes: denoisers.UNet(pipes["sd"].unet),
        [TensorSpec(LATENTS, pad=0), TensorSpec((), torch.int64), TensorSpec(TEXT, pad=0)],
    ),
    "unet xl": (
        lambda pipes: denoisers.UNetXL(pipes["xl"].unet),
        [
            TensorSpec(LATENTS, pad=0),
            TensorSpec(()),
            TensorSpec((IMAGES, toy.WORDS, 64), pad=0),
            TensorSpec((IMAGES, 32), pad=0),
            TensorSpec((1, 6)),
        ],
    ),
    "flux": (
        lambda pipes: denoisers.FluxTransformer(pipes["flux"].transformer, 4, 4, toy.WORDS, torch.float32),
        [
            TensorSpec((IMAGES, 16, 16), pad=0),
            TensorSpec(()),
            TensorSpec(TEXT, pad=0),
            TensorSpec((IMAGES, 32), pad=0),
            TensorSpec(()),
        ],
    ),
    "vae": (lambda pipes: decoders.DecodeLatents(pipes["sd"].vae), [TensorSpec(LATENTS, pad=0)]),
}


def value(spec: TensorSpec) -> torch.Tensor:
    shape = spec.shape({"images": 2})
    return torch.randint(0, 60, shape) if spec.dtype == torch.int64 else torch.rand(shape)


def emulated(name: str) -> Any:
    """Exporting takes seconds; one of each kind does for every run of the tests."""
    quick = name in ("clip", "t5")
    return pytest.param("neuron-emulated", name, marks=() if quick else pytest.mark.slow, id=f"neuron-{name}")


@pytest.mark.parametrize(
    ("device", "name"),
    [*(pytest.param("cpu", name, id=f"cpu-{name}") for name in CASES), *map(emulated, CASES)],
)
def test_a_model_as_a_stage(device: str, name: str, pipes: dict[str, Any], tmp_path: Path):
    make, specs = CASES[name]
    stage = make(pipes)
    pipeline = Pipeline(name)
    fed = [pipeline.input(f"input{number}", spec) for number, spec in enumerate(specs)]
    given = pipeline.add("stage", stage)(*fed)
    ports = ("text", "pooled") if name == "clip but one and pooled" else ("output",)
    for port in ports:
        pipeline.output(port, given[port])
    values = [value(spec) for spec in specs]
    # Exporting takes seconds for each size, and the request is of this one.
    sizes = {"images": (2,)} if device == "neuron-emulated" else None
    with pipeline.plan(device, sizes=sizes).compile(tmp_path).load() as session:
        result = session(**{f"input{number}": tensor for number, tensor in enumerate(values)})
    with torch.no_grad():
        expected = stage(*values)
    for port in ports:
        torch.testing.assert_close(result[port], expected[port] if isinstance(expected, dict) else expected)


def test_a_held_model_stays_as_it_was(pipes: dict[str, Any]):
    unet = pipes["sd"].unet
    assert denoisers.UNet(unet).model is unet
    assert not denoisers.UNet(unet).training
    unet.train()
    assert denoisers.UNet(unet).training
    unet.eval()


def test_an_autoencoder_that_overflows_runs_in_float32(pipes: dict[str, Any]):
    vae = toy.stable_diffusion_xl().vae.half()
    stage = decoders.DecodeLatents(vae, upcast=True)
    assert stage.model is not vae
    assert vae.dtype == torch.float16
    latents = torch.randn(1, 4, 8, 8)
    pictures = stage(latents.half())
    assert pictures.dtype == torch.float32
    expected = decoders.DecodeLatents(pipes["xl"].vae)(latents)
    torch.testing.assert_close(pictures, expected, atol=0.01, rtol=0.01)


def test_moments_of_latents_are_undone(pipes: dict[str, Any]):
    vae = toy.stable_diffusion().vae
    plain = decoders.DecodeLatents(vae)
    vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0])
    moved = decoders.DecodeLatents(vae, moments=True)
    latents = torch.randn(1, 4, 8, 8)
    mean, std = (
        torch.tensor(values).view(1, 4, 1, 1) for values in ([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0])
    )
    with torch.no_grad():
        expected = plain(latents * std + mean * vae.config.scaling_factor)
        torch.testing.assert_close(moved(latents), expected)
