"""The schedulers have the bits of diffusers' own: tables, and every step with every kind of answer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from orchestrator import GraphError, Pipeline, TensorSpec
from orchestrator_stages.diffusion.guidance import Guide, Twice
from orchestrator_stages.diffusion.schedule import DiffusionScheduler
from orchestrator_stages.diffusion.schedulers import DDIM, Euler, FlowMatchEuler
from orchestrator_stages.diffusion.step import DDIMStep, ddim_rows

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
NOISE = [
    {},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.01 * (1 + index) for index in range(50)], "num_train_timesteps": 50},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    *({"prediction_type": kind} for kind in ("epsilon", "sample", "v_prediction")),
    *({"timestep_spacing": kind} for kind in ("linspace", "leading", "trailing")),
]
DDIMS = [*NOISE, STABLE_DIFFUSION, {"clip_sample_range": 0.5}]
EULERS = [
    *NOISE,
    STABLE_DIFFUSION,
    {"interpolation_type": "log_linear"},
    {"final_sigmas_type": "sigma_min"},
    *({name: True} for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")),
    {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 12.0, **STABLE_DIFFUSION},
]
FLOWS = [
    {},
    {"shift": 3.0},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.1},
    *({name: True} for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")),
]
STEPS = (1, 2, 7, 20, 50)


def same(ours: DiffusionScheduler, theirs: Any, steps: int, **extra: Any) -> None:
    """Walks through all steps with random answers; all that is compared has equal bits."""
    table = ours.table(steps, **extra)
    assert table.timesteps.equal(theirs.timesteps)
    assert table.timesteps.dtype == ours.timestep_dtype
    assert table.rows.shape == (steps, ours.columns)
    assert table.rows.dtype == torch.float32
    step, scale = ours.step(), ours.scale()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    for timestep, row in zip(table.timesteps, table.rows, strict=True):
        if scale is not None:
            expected = theirs.scale_model_input(latents, timestep)
            torch.testing.assert_close(scale(latents, row), expected, rtol=0, atol=0, equal_nan=True)
        output = torch.randn(latents.shape, generator=generator)
        expected = theirs.step(output, timestep, latents, return_dict=False)[0]
        latents = step(output, latents, row)
        torch.testing.assert_close(latents, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("options", DDIMS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_ddim(options: dict[str, Any], steps: int):
    theirs = pytest.importorskip("diffusers").DDIMScheduler(**options)
    theirs.set_timesteps(steps)
    ours = DDIM.from_config(theirs.config)
    assert ours == DDIM(**options)
    same(ours, theirs, steps)
    assert ours.table(steps).start == theirs.init_noise_sigma


@pytest.mark.parametrize("options", EULERS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_euler(options: dict[str, Any], steps: int):
    theirs = pytest.importorskip("diffusers").EulerDiscreteScheduler(
        **{name: value for name, value in options.items() if "clip" not in name and "alpha" not in name}
    )
    if options.get("use_beta_sigmas"):
        pytest.importorskip("scipy")
    theirs.set_timesteps(steps)
    ours = Euler.from_config(theirs.config)
    assert ours.table(steps).start == theirs.init_noise_sigma
    same(ours, theirs, steps)


@pytest.mark.parametrize("options", FLOWS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("given", [False, True], ids=["trained levels", "given levels"])
def test_flow_matching(options: dict[str, Any], steps: int, given: bool):
    theirs = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler(**options)
    if options.get("shift_terminal") and steps == 1:
        pytest.skip("diffusers divides by zero")
    if options.get("use_beta_sigmas"):
        pytest.importorskip("scipy")
    levels = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).tolist() if given else None
    ours = FlowMatchEuler.from_config(theirs.config)
    mu = ours.mu(1024) if options.get("use_dynamic_shifting") else None
    theirs.set_timesteps(**({"sigmas": levels} if given else {"num_inference_steps": steps}), mu=mu)
    same(ours, theirs, steps, mu=mu, levels=levels)


def test_the_shift_of_flow_matching_is_that_of_flux():
    flux = pytest.importorskip("diffusers.pipelines.flux.pipeline_flux")
    for latents in (64, 256, 1024, 4096, 9000):
        assert FlowMatchEuler().mu(latents) == flux.calculate_shift(latents)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True, None])
@pytest.mark.parametrize("scheduler", [DDIM(), Euler(), FlowMatchEuler()], ids=lambda it: type(it).__name__)
def test_a_number_of_steps_that_is_none(scheduler: DiffusionScheduler, steps: Any):
    with pytest.raises(ValueError, match="from 1 to 1000"):
        scheduler.table(steps)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (DDIM, {"thresholding": True}, "does not support thresholding=True"),
        (DDIM, {"prediction_type": "noise"}, "'epsilon', 'sample', 'v_prediction', not 'noise'"),
        (Euler, {"timestep_type": "continuous"}, "does not support timestep_type='continuous'"),
        (Euler, {"beta_schedule": "exp"}, "beta_schedule of Euler is one of"),
        (FlowMatchEuler, {"stochastic_sampling": True}, "does not support stochastic_sampling=True"),
    ],
)
def test_an_option_that_is_not_supported(
    kind: type[DiffusionScheduler], options: dict[str, Any], message: str
):
    with pytest.raises(GraphError, match=message):
        kind.from_config(options)


def test_flow_matching_needs_what_its_options_ask_for():
    with pytest.raises(ValueError, match="give mu"):
        FlowMatchEuler(use_dynamic_shifting=True).table(4)
    with pytest.raises(ValueError, match="3 levels for 4 steps"):
        FlowMatchEuler().table(4, levels=[1.0, 0.5, 0.2])
    with pytest.raises(ValueError, match="at least 2 steps"):
        FlowMatchEuler(shift_terminal=0.1).table(1)


def test_a_denoiser_that_knows_the_noise_finds_the_picture():
    """Property of DDIM: with the true noise as answer, the last step ends at the picture."""
    picture, noise = torch.randn(2, 3, 4, 4).clamp(-1, 1), torch.randn(2, 3, 4, 4)
    times = torch.linspace(0.99, 0.0, 11)
    shares = torch.cos(times * torch.pi / 2).square()
    latents = shares[0].sqrt() * picture + (1 - shares[0]).sqrt() * noise
    for row in ddim_rows(shares[:-1], shares[1:]):
        latents = DDIMStep()(noise, latents, row)
    torch.testing.assert_close(latents, picture, atol=1e-4, rtol=1e-4)


def test_guidance():
    latents, without, prompted = torch.randn(3, 2, 3, 4).unbind()
    assert Twice()(latents).equal(torch.cat([latents, latents]))
    output = torch.cat([without, prompted])
    assert Guide()(output, torch.tensor(0.0)).equal(without)
    torch.testing.assert_close(Guide()(output, torch.tensor(1.0)), prompted)
    assert Guide()(output, torch.tensor(7.5)).equal(without + 7.5 * (prompted - without))


@pytest.mark.parametrize("device", ["cpu", "neuron-emulated"])
@pytest.mark.parametrize("scheduler", [DDIM(), Euler(prediction_type="v_prediction"), FlowMatchEuler()])
def test_one_step_on_a_device(device: str, scheduler: DiffusionScheduler, tmp_path: Any):
    pipeline = Pipeline("step")
    shape = TensorSpec((1, 4, 8, 8))
    guesses = pipeline.input("guesses", TensorSpec((2, 4, 8, 8)))
    latents = pipeline.input("latents", shape)
    row = pipeline.input("row", TensorSpec((scheduler.columns,)))
    scale = pipeline.input("scale", TensorSpec(()))
    step, guide = pipeline.add("step", scheduler.step()), pipeline.add("guide", Guide())
    pipeline.output("next", step(guide(guesses, scale), latents, row))
    values = {
        "guesses": torch.randn(2, 4, 8, 8),
        "latents": torch.randn(1, 4, 8, 8),
        "row": scheduler.table(10).rows[3],
        "scale": torch.tensor(3.0),
    }
    with pipeline.plan(device).compile(tmp_path).load() as session:
        result = session(**values)["next"]
    expected = scheduler.step()(Guide()(values["guesses"], values["scale"]), values["latents"], values["row"])
    torch.testing.assert_close(result, expected)


def test_schedulers_need_no_diffusers():
    modules = ", ".join(
        f"orchestrator_stages.diffusion.{name}" for name in ("schedulers", "step", "guidance")
    )
    code = f"import sys, orchestrator_stages, {modules}; assert not {{'diffusers', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
