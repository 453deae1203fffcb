"""A converted pipeline paints what diffusers paints: the same bits, for the same weights, prompts and seeds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator import GraphError, Pipeline, Session, StageError
from orchestrator_stages import from_diffusers
from orchestrator_stages.diffusion import toy

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers

T5_TOKENS = 24


@functools.cache
def pipe_of(family: str) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "sd": toy.stable_diffusion,
        "xl": toy.stable_diffusion_xl,
        "flux": toy.flux,
        "schnell": functools.partial(toy.flux, guidance_embeds=False),
    }
    return makers[family]()


def converted(pipe: Any, **options: Any) -> Pipeline:
    """With the toys' size of picture, and floats as output, so that bits are compared."""
    if isinstance(pipe, diffusers.FluxPipeline):
        options = {"max_sequence_length": T5_TOKENS, **options}
    return from_diffusers(pipe, **{"height": toy.SIDE, "width": toy.SIDE, "output_type": "pt", **options})


def painted(pipe: Any, seed: int | list[int] = 0, **request: Any) -> Any:
    """What diffusers paints."""
    seeds = seed if isinstance(seed, list) else [seed]
    made = [torch.Generator().manual_seed(one) for one in seeds]
    if isinstance(pipe, diffusers.FluxPipeline):
        request["max_sequence_length"] = T5_TOKENS
    if isinstance(request.get("negative_prompt"), str) and isinstance(request["prompt"], list):
        request["negative_prompt"] = [request["negative_prompt"]] * len(request["prompt"])
    options = {"height": toy.SIDE, "width": toy.SIDE, "output_type": "pt", **request}
    return pipe(generator=made if isinstance(seed, list) else made[0], **options).images


@functools.cache
def session_of(family: str, **options: Any) -> Session:
    """A session that all tests of these options share: a request must not hang on the one before."""
    return converted(pipe_of(family), **options).plan().load()


def run(pipeline: Pipeline, device: str = "cpu", **request: Any) -> Any:
    with pipeline.plan(device).load() as session:
        return session(**request)["images"]


REQUESTS: dict[str, dict[str, Any]] = {
    "a prompt": {"prompt": "a cat"},
    "two prompts": {"prompt": ["a cat", "two dogs"], "num_inference_steps": 4},
    "stronger guidance": {"prompt": "a cat", "guidance_scale": 12, "num_inference_steps": 4},
    "several images": {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2, "num_inference_steps": 3},
    "a seed for each": {"prompt": ["a cat", "a cat"], "seed": [3, 4], "num_inference_steps": 3},
    "one step": {"prompt": "a cat", "num_inference_steps": 1},
}


@pytest.mark.parametrize("family", ["sd", "xl", "flux", "schnell"])
@pytest.mark.parametrize("name", REQUESTS)
def test_the_same_bits(family: str, name: str):
    if (family, name) == ("schnell", "stronger guidance"):
        pytest.skip("it was trained without guidance")
    request = {"seed": 7, **REQUESTS[name]}
    pipe, several = pipe_of(family), name == "several images"
    expected = painted(pipe, **request)
    images = session_of(family, batch=len(expected))(**request)["images"]
    if several:  # diffusers encodes each prompt once, in a smaller batch
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=1e-5)
    else:
        assert images.equal(expected)


@pytest.mark.parametrize("family", ["sd", "xl"])
@pytest.mark.parametrize("negative", ["", "ugly", ["ugly", "blurred"]])
def test_a_negative_prompt(family: str, negative: Any):
    request = {"prompt": ["a cat", "two dogs"], "num_inference_steps": 3, "negative_prompt": negative}
    images = session_of(family, batch=2)(seed=1, **request)["images"]
    assert images.equal(painted(pipe_of(family), 1, **request))


def test_sdxl_takes_zeros_where_there_is_no_negative_prompt():
    pipeline = converted(pipe_of("xl"))
    without, empty = (
        run(pipeline, prompt="a cat", seed=1, num_inference_steps=2, **more)
        for more in ({}, {"negative_prompt": ""})
    )
    assert not without.equal(empty)


@pytest.mark.parametrize("family", ["xl", "flux"])
def test_the_second_encoder_may_read_a_prompt_of_its_own(family: str):
    request = {"prompt": "a cat", "prompt_2": "a black one", "num_inference_steps": 2}
    images = session_of(family, batch=1)(seed=1, **request)["images"]
    assert images.equal(painted(pipe_of(family), 1, **request))


SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": True}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "linspace"}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
]


@pytest.mark.parametrize(("name", "options"), SCHEDULERS, ids=str)
@pytest.mark.parametrize("family", ["sd", "xl"])
def test_schedulers(family: str, name: str, options: dict[str, Any]):
    pipe = toy.stable_diffusion() if family == "sd" else toy.stable_diffusion_xl()
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    request = {"prompt": "a cat", "num_inference_steps": 6}
    assert run(converted(pipe), seed=2, **request).equal(painted(pipe, 2, **request))


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_without_guidance(family: str):
    request = {"prompt": ["a cat", "a dog"], "num_inference_steps": 4}
    expected = painted(pipe_of(family), 5, guidance_scale=1.0, **request)
    pipeline = converted(pipe_of(family), guidance=False, batch=2)
    assert run(pipeline, seed=5, **request).equal(expected)
    guided = session_of(family, batch=2)(seed=5, guidance_scale=0.5, **request)["images"]
    assert guided.equal(expected), "a scale of 1 and less is no guidance"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_images(count: int):
    """3 run in the bucket of 4, 5 in chunks of 4 and 1."""
    request = {"prompt": ["a cat", "a dog", "a bird", "a fish", "a cow"][:count], "num_inference_steps": 3}
    images = session_of("sd", batch=(1, 4))(seed=1, **request)["images"]
    torch.testing.assert_close(images, painted(pipe_of("sd"), 1, **request), atol=1e-5, rtol=1e-5)


def test_forms_of_images():
    pipe, request = pipe_of("sd"), {"prompt": ["a cat", "a dog"], "num_inference_steps": 2}
    pictures = run(converted(pipe, batch=2, output_type="pil"), seed=1, **request)
    expected = painted(pipe, 1, output_type="pil", **request)
    assert [np.asarray(one).tobytes() for one in pictures] == [np.asarray(one).tobytes() for one in expected]
    pixels = run(converted(pipe, batch=2, output_type="uint8"), seed=1, **request)
    assert pixels.numpy().tobytes() == b"".join(np.asarray(one).tobytes() for one in expected)
    latents = run(converted(pipe, batch=2, output_type="latent"), seed=1, **request)
    assert latents.equal(painted(pipe, 1, output_type="latent", **request))
    packed = run(
        converted(pipe_of("flux"), output_type="latent"), seed=1, prompt="a cat", num_inference_steps=2
    )
    assert packed.equal(
        painted(pipe_of("flux"), 1, prompt="a cat", num_inference_steps=2, output_type="latent")
    )


def test_a_picture_need_not_be_square():
    request = {"prompt": "a cat", "num_inference_steps": 2}
    for family in ("sd", "xl", "flux"):
        images = run(converted(pipe_of(family), height=48, width=80), seed=1, **request)
        assert images.shape == (1, 3, 48, 80)
        assert images.equal(painted(pipe_of(family), 1, height=48, width=80, **request))


def test_half_precision():
    pipe = toy.stable_diffusion_xl().to(torch.bfloat16)
    request = {"prompt": "a cat", "num_inference_steps": 2}
    images = run(converted(pipe), seed=1, **request)
    assert images.dtype == torch.bfloat16
    assert images.equal(painted(pipe, 1, **request))


@pytest.mark.parametrize("flagged", [True, False])
def test_a_safety_checker_blackens(flagged: bool):
    pipe = with_checker(flagged=flagged)
    pipeline = converted(pipe)
    request = {"prompt": "a cat", "num_inference_steps": 2}
    with pipeline.plan().load() as session:
        result = session(seed=1, **request)
    assert result["nsfw_content_detected"] == [flagged]
    assert result["images"].equal(painted(pipe, 1, **request))
    assert (result["images"] == 0).all() == flagged


def with_checker(*, flagged: bool) -> Any:
    """A toy with a safety checker that flags everything, or nothing."""
    import transformers
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    config = transformers.CLIPConfig(vision_config=vision, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config).eval()
    checker.concept_embeds_weights.data.fill_(-2.0 if flagged else 2.0)
    checker.special_care_embeds_weights.data.fill_(2.0)
    pipe = toy.stable_diffusion()
    pipe.register_modules(
        safety_checker=checker,
        feature_extractor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
    return pipe


def test_tiles():
    """A decoder that looks around gives another picture by tiles, but not one that is far from it."""
    pipe, request = pipe_of("sd"), {"prompt": "a cat", "num_inference_steps": 2}
    whole = painted(pipe, 1, height=96, width=128, **request)
    tiled = run(converted(pipe, height=96, width=128, tile=64), seed=1, **request)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.05
    one = run(converted(pipe, tile=64, output_type="pil"), seed=1, **request)
    assert (
        np.abs(
            np.asarray(one[0], int) - np.asarray(painted(pipe, 1, output_type="pil", **request)[0], int)
        ).max()
        <= 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "xl", "flux"])
def test_on_the_emulated_device(family: str, tmp_path: Path):
    pipe, steps = pipe_of(family), (2, 4)
    pipeline = converted(pipe)
    seen: list[dict[str, Any]] = []
    with pipeline.plan("neuron-emulated").compile(tmp_path).load() as session:
        for count in steps:
            before = dict(session.stats)
            images = session(prompt="a cat", seed=3, num_inference_steps=count)["images"]
            torch.testing.assert_close(images, painted(pipe, 3, prompt="a cat", num_inference_steps=count))
            seen.append(
                {name: session.stats[name] - before[name] for name in ("downloads", "download_bytes")}
            )
    assert seen[0] == seen[1], "no step brings anything to the host"
    assert seen[0]["downloads"] == 1


def test_what_stays_on_the_device_and_what_goes_up_once():
    plan = converted(pipe_of("sd")).plan("neuron-emulated")
    inside = [edge for edge in plan.edges if edge.source.startswith("denoise/")]
    over_host = {
        edge.source.rpartition(".")[2]: edge.bytes for edge in inside if edge.residency.name == "HOST"
    }
    assert over_host == {"timestep": 8, "scale": 4}  # numbers of one step, cut for the branch that runs


class Odd(diffusers.StableDiffusionPipeline):
    """A subclass that does something else."""

    def __call__(self) -> None: ...


def test_only_known_pipelines():
    known = "StableDiffusionPipeline, StableDiffusionXLPipeline, FluxPipeline"
    for other in (object(), diffusers.DDPMPipeline.__new__(diffusers.DDPMPipeline)):
        with pytest.raises(GraphError, match=f"from_diffusers takes a loaded {known}"):
            from_diffusers(other)
    with pytest.raises(GraphError, match="Odd replaces '__call__'"):
        from_diffusers(Odd.__new__(Odd))


def test_only_known_schedulers():
    pipe = toy.stable_diffusion()
    pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(
        GraphError, match=r"PNDMScheduler is not supported .* DDIMScheduler, EulerDiscreteScheduler"
    ):
        from_diffusers(pipe)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, thresholding=True)
    with pytest.raises(GraphError, match="thresholding=True"):
        from_diffusers(pipe)
    flux = toy.flux()
    flux.scheduler = diffusers.DDIMScheduler()
    with pytest.raises(GraphError, match="FlowMatchEulerDiscreteScheduler"):
        from_diffusers(flux)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 60}, "height is a positive multiple of 8 pixels, not 60"),
        ({"width": 0, "height": 4}, "height is a positive multiple"),
        ({"tile": 20}, "tile is a positive multiple of 8"),
        ({"output_type": "np"}, "output_type is one of 'pil', 'pt', 'uint8', 'latent', not 'np'"),
        ({"height": 64.0}, "height is a positive multiple of 8 pixels, not 64.0"),
        ({"tile": 64, "overlap": 1.5}, "overlap is from 0 to less than 1, not 1.5"),
        ({"guidance_scale": "strong"}, "guidance_scale is a number, not 'strong'"),
        ({"num_inference_steps": -3}, "num_inference_steps is a positive int, not -3"),
        ({"num_inference_steps": 0}, "num_inference_steps is a positive int, not 0"),
        ({"max_inference_steps": 0}, "max_inference_steps is a positive int, not 0"),
        ({"max_inference_steps": 20}, "max_inference_steps=20 is less than num_inference_steps=50"),
        ({"batch": 0}, "bucket"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str):
    with pytest.raises(GraphError, match=message):
        from_diffusers(pipe_of("sd"), **options)


def test_denoisers_that_read_more_are_refused():
    pipe = toy.stable_diffusion()
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(GraphError, match="guidance embedding"):
        from_diffusers(pipe)
    xl = toy.stable_diffusion_xl()
    xl.watermark = object()
    with pytest.raises(GraphError, match="add_watermarker=False"):
        from_diffusers(xl)
    xl = toy.stable_diffusion_xl()
    xl.text_encoder = None
    with pytest.raises(GraphError, match="no text_encoder"):
        from_diffusers(xl)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": "cat " * 40}, "122 tokens, but its text encoder takes 77"),
        ({"prompt": "a cat", "seed": "seven"}, "seed is an int"),
        ({"prompt": "a cat", "seed": [1, 2]}, "2 seeds for 1 images"),
        ({"prompt": "a cat", "num_inference_steps": 0}, "from 1 to 1000"),
        (
            {"prompt": "a cat", "num_inference_steps": 101},
            r"steps=101 at .*, above its largest bucket 100. It cannot run in chunks.*how often loop",
        ),
        ({"prompt": 5}, "prompt is a text or a list of texts, not 5"),
    ],
)
def test_bad_requests(request_: dict[str, Any], message: str):
    session = session_of("sd", batch=1)
    with pytest.raises(StageError, match=message) as caught:
        session(**request_)
    if "num_inference_steps" not in request_:
        assert isinstance(caught.value.__cause__, (ValueError, TypeError))
    session(prompt="a cat", num_inference_steps=1)


def test_a_long_prompt_is_cut_where_asked():
    pipe, prompt = pipe_of("sd"), "cat " * 40
    with pytest.warns(UserWarning, match="its end was cut off"):
        images = run(converted(pipe, truncate=True), prompt=prompt, seed=1, num_inference_steps=2)
    assert images.equal(painted(pipe, 1, prompt=prompt, num_inference_steps=2))


def test_nothing_of_the_pipe_is_changed():
    pipe = toy.stable_diffusion()
    modules = {
        name: {key: tensor.clone() for key, tensor in part.state_dict().items()}
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    }
    run(converted(pipe), prompt="a cat", num_inference_steps=2)
    for name, state in modules.items():
        assert all(tensor.equal(state[key]) for key, tensor in getattr(pipe, name).state_dict().items())


def test_latents_can_be_watched_as_they_come():
    pipe, request = pipe_of("sd"), {"prompt": "a cat", "num_inference_steps": 4}
    watched: list[Tensor] = []
    painted(
        pipe,
        1,
        callback_on_step_end=lambda *given: watched.append(given[3]["latents"].clone()) or {},
        **request,
    )
    with converted(pipe).plan().load() as session:
        given = session.stream([{"seed": 1, **request}], partial=("latents",))
        previews = [value for _, name, value in given if name == "latents"]
    assert len(previews) == 4
    assert all(ours.equal(theirs) for ours, theirs in zip(previews, watched, strict=True))
