"""Schedulers by name: the same answer from each where it is known, fresh state, errors that name what is accepted."""

from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler

import ldm
from ldm.models import NOISE_SCHEDULE
from ldm.schedulers import NOISE, accepted, with_scheduler

MEAN, STD = 0.4, 0.5
FIRST_ORDER = ("DDPM", "DDIM", "Euler", "EulerAncestral")


class Stand(DiffusionPipeline):
    """A pipeline of a scheduler and one network's configuration."""

    def __init__(self, scheduler, unet=None) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.unet = unet

    def __call__(self) -> None: ...


def bundled(**changed) -> Stand:
    return Stand(DPMSolverMultistepScheduler(**NOISE_SCHEDULE | changed), SimpleNamespace(config={}))


def sample(scheduler, steps: int, prediction: str = "v_prediction", count: int = 4000) -> torch.Tensor:
    """`count` numbers drawn by the scheduler with the perfect denoiser of normal data, N(MEAN, STD²)."""
    gammas = DDPMScheduler(**NOISE_SCHEDULE).alphas_cumprod.double()
    scheduler.set_timesteps(steps)
    draw = torch.Generator().manual_seed(0)
    state = torch.randn(count, 1, generator=draw) * float(scheduler.init_noise_sigma)
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    for time in scheduler.timesteps:
        noisy = scheduler.scale_model_input(state, time).double()
        gamma = gammas[round(float(time))]
        signal, noise = gamma.sqrt(), (1 - gamma).sqrt()
        clean = MEAN + signal * STD**2 / (gamma * STD**2 + 1 - gamma) * (noisy - signal * MEAN)
        epsilon = (noisy - signal * clean) / noise
        output = signal * epsilon - noise * clean if prediction == "v_prediction" else epsilon
        state = scheduler.step(output.float(), time, state, **({"generator": draw} if takes_generator else {}))[0]
    return state


@pytest.mark.parametrize("name", [n for n in NOISE if n != "LCM"])
def test_every_scheduler_draws_the_distribution_that_the_denoiser_knows(name):
    drawn = sample(with_scheduler(bundled(), name).scheduler, 25)
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.04)
    assert float(drawn.std()) == pytest.approx(STD, rel=0.15 if name in FIRST_ORDER else 0.05)


@pytest.mark.parametrize("name", [n for n in NOISE if n != "LCM"])
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_the_estimate_of_each_step_is_what_the_denoiser_meant(name, prediction):
    """With data that are MEAN exactly, every estimate is MEAN, however the scheduler scales its state."""
    scheduler = with_scheduler(bundled(prediction_type=prediction), name).scheduler
    gammas = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(6)
    assert scheduler.last_estimate is None
    state = torch.randn(50, 1, generator=torch.Generator().manual_seed(0)) * float(scheduler.init_noise_sigma)
    for time in scheduler.timesteps:
        noisy, gamma = scheduler.scale_model_input(state, time).double(), gammas[round(float(time))]
        epsilon = (noisy - gamma.sqrt() * MEAN) / (1 - gamma).sqrt()
        output = gamma.sqrt() * epsilon - (1 - gamma).sqrt() * MEAN if prediction == "v_prediction" else epsilon
        state = scheduler.step(output.float(), time, state)[0]
        if prediction == "v_prediction" or gamma > 1e-3:  # dividing by the root of gamma, noise says nothing of x₀
            assert torch.allclose(scheduler.last_estimate, torch.tensor(MEAN), atol=1e-3)


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPMSolver++", "UniPC"])
def test_the_estimate_of_a_flow(name):
    scheduler = with_scheduler(Stand(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)), name).scheduler
    scheduler.set_timesteps(6)
    noise = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    state = noise.clone()
    for time in scheduler.timesteps:
        state = scheduler.step(noise - MEAN, time, state)[0]
        assert torch.allclose(scheduler.last_estimate, torch.tensor(MEAN), atol=2e-3)
    assert torch.allclose(state, torch.tensor(MEAN), atol=2e-3)


@pytest.mark.parametrize("kind", [diffusers.EDMEulerScheduler, diffusers.EDMDPMSolverMultistepScheduler])
def test_the_estimate_of_edms_noise(kind):
    """Karras et al., arXiv 2206.00364, table 1: the network is told to fill what c_skip leaves, in units of c_out."""
    scheduler = with_scheduler(Stand(kind(sigma_data=STD))).scheduler
    scheduler.set_timesteps(6)
    noise = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    state = MEAN + noise * scheduler.sigmas[0]
    for step, time in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(state, time)
        total = scheduler.sigmas[step] ** 2 + STD**2
        output = (MEAN - STD**2 / total * state) / (scheduler.sigmas[step] * STD / total.sqrt())
        state = scheduler.step(output, time, state)[0]
        assert torch.allclose(scheduler.last_estimate, torch.tensor(MEAN), atol=2e-3)
    assert torch.allclose(state, torch.tensor(MEAN), atol=2e-3)


def test_variances_that_a_network_learned_are_not_taken_for_its_estimate():
    """DeepFloyd IF's has twice the channels of the picture."""
    own = diffusers.DDPMScheduler(prediction_type="sample", variance_type="learned_range", clip_sample=False)
    scheduler = with_scheduler(Stand(own)).scheduler
    scheduler.set_timesteps(2)
    output = torch.cat([torch.full((1, 3, 4, 4), MEAN), torch.zeros(1, 3, 4, 4)], dim=1)
    scheduler.step(output, scheduler.timesteps[0], torch.zeros(1, 3, 4, 4))
    assert torch.equal(scheduler.last_estimate, torch.full((1, 3, 4, 4), MEAN))


def test_the_estimate_of_trigflow():
    """With x₀ = MEAN, x_t = σ (cos t · x₀ + sin t · z), and the network says its derivative."""
    own = Stand(diffusers.SCMScheduler())
    assert accepted(own) == ()
    scheduler = with_scheduler(own).scheduler
    scheduler.set_timesteps(2)
    sigma, angle = scheduler.config.sigma_data, scheduler.timesteps[0]
    noise = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    state = sigma * (angle.cos() * MEAN + angle.sin() * noise)
    output = sigma * (angle.cos() * noise - angle.sin() * MEAN)
    scheduler.step(output, angle, state, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(scheduler.last_estimate, torch.tensor(MEAN), atol=1e-4)


@pytest.mark.parametrize("name", ["LMS", "Euler", "EulerAncestral", "Heun"])
@pytest.mark.parametrize("steps", [5, 10])
def test_pure_noise_at_the_start_does_not_blow_up_in_sigma(name, steps):
    """On the schedule as it stands Heun's first step ends 70 standard deviations away."""
    scheduler = with_scheduler(bundled(), name).scheduler
    assert float(scheduler.init_noise_sigma) == pytest.approx(10 if name == "Heun" else 40, rel=0.02)
    assert float((sample(scheduler, steps) - MEAN).abs().max()) < 6 * STD


def test_eight_steps_of_heun_draw_the_picture():
    """From sigma = 40 they ended 0.47 to 0.58 away (RMS), at noise, where Euler's end 0.03 to 0.05 away."""

    def drawn(name: str, steps: int) -> np.ndarray:
        pipeline = with_scheduler(shared, name)
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        options = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "np"}
        return pipeline(["a red apple"] * 4, generator=generators, **options).images

    shared = ldm.load(device="cpu")
    away = np.sqrt(((drawn("Heun", 8) - drawn("DPMSolver++", 20)) ** 2).mean((1, 2, 3)))
    assert away.max() < 0.2


def test_a_schedule_that_ends_before_pure_noise_is_left_alone():
    own = Stand(diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
    for name in ("Euler", "Heun"):
        changed = with_scheduler(own, name).scheduler
        assert changed.config.trained_betas is None
        assert torch.allclose(changed.alphas_cumprod, own.scheduler.alphas_cumprod)


@pytest.mark.parametrize("name", [n for n in NOISE if n != "LCM"])
def test_prediction_spacing_and_unclipped_latents_carry_over(name):
    config = with_scheduler(bundled(), name).scheduler.config
    assert config.prediction_type == "v_prediction" and config.timestep_spacing == "trailing"
    assert not config.get("clip_sample", False) and not config.get("thresholding", False)


def test_the_shared_pipeline_keeps_its_own_and_each_request_has_a_fresh_one():
    shared = bundled()
    first, second, own = (with_scheduler(shared, name) for name in ("heun", "Heun", None))
    assert type(shared.scheduler) is type(own.scheduler) is DPMSolverMultistepScheduler
    assert own.scheduler is not shared.scheduler and first.scheduler is not second.scheduler
    sample(first.scheduler, 3)
    assert second.scheduler.step_index is None and shared.scheduler.num_inference_steps is None
    assert type(first.scheduler).__name__ == "HeunDiscreteScheduler"
    assert first.config["scheduler"][1] == "HeunDiscreteScheduler" != shared.config["scheduler"][1]
    assert first.unet is shared.unet


def test_a_model_without_a_schedule_in_betas_goes_back_and_forth():
    shared = bundled(rescale_betas_zero_snr=True)
    heun = with_scheduler(shared, "Heun")
    again = with_scheduler(heun, "Euler")
    assert torch.allclose(heun.scheduler.alphas_cumprod, again.scheduler.alphas_cumprod)
    assert torch.isfinite(sample(again.scheduler, 5)).all()


def test_errors_name_what_is_accepted():
    with pytest.raises(ValueError, match=r"'foo'; it must be one of DDPM, DDIM, LMS, Euler, .*UniPC$"):
        with_scheduler(bundled(), "foo")
    with pytest.raises(ValueError, match="distilled for it"):
        with_scheduler(bundled(), "LCM")
    flow = Stand(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    with pytest.raises(ValueError, match=r"matches flows.* one of Euler, Heun, DPMSolver\+\+, UniPC"):
        with_scheduler(flow, "DDIM")
    assert with_scheduler(flow, "dpmsolver++").scheduler.config.flow_shift == 3.0
    dynamic = Stand(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    assert accepted(dynamic) == ("Euler", "DPMSolver++", "UniPC")


def test_lcm_is_for_models_distilled_for_it():
    distilled = bundled()
    distilled.unet.config["time_cond_proj_dim"] = 256
    assert "LCM" in accepted(distilled)
    assert not with_scheduler(distilled, "LCM").scheduler.config.clip_sample
    assert "LCM" in accepted(Stand(diffusers.LCMScheduler()))
