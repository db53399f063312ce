"""The schedulers that sample a base model, by the names that people know, one with fresh state for each request."""

import copy
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor

NOISE: dict[str, Any] = {
    "DDPM": diffusers.DDPMScheduler,
    "DDIM": diffusers.DDIMScheduler,
    "LMS": diffusers.LMSDiscreteScheduler,
    "Euler": diffusers.EulerDiscreteScheduler,
    "EulerAncestral": diffusers.EulerAncestralDiscreteScheduler,
    "Heun": diffusers.HeunDiscreteScheduler,
    "DPMSolver++": diffusers.DPMSolverMultistepScheduler,
    "UniPC": diffusers.UniPCMultistepScheduler,
    "LCM": diffusers.LCMScheduler,
}
FLOW: dict[str, Any] = {
    "Euler": diffusers.FlowMatchEulerDiscreteScheduler,
    "Heun": diffusers.FlowMatchHeunDiscreteScheduler,
    "DPMSolver++": diffusers.DPMSolverMultistepScheduler,
    "UniPC": diffusers.UniPCMultistepScheduler,
}
# These step in sigma = sqrt((1 - gamma) / gamma). A schedule that ends in pure noise starts at sigma = 20,000, where
# Heun's second evaluation, which weighs the whole first step equally, is off by hundreds of standard deviations, and
# where float16 overflows. At sigma = 40 the picture's share of the variance is 1/1600: still pure noise to the eye.
# Heun begins nearer, since of few steps the second is far below the first.
IN_SIGMA = {"LMS": 40.0, "Euler": 40.0, "EulerAncestral": 40.0, "Heun": 10.0}
LARGEST_SIGMA = max(IN_SIGMA.values())


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler is for a model that predicts a flow (SD3, Flux, Sana, …), not noise, sample or v."""
    config = scheduler.config
    named = type(scheduler).__name__.startswith("FlowMatch")
    return named or config.get("use_flow_sigmas", False) or config.get("prediction_type") == "flow_prediction"


def has_gammas(scheduler: SchedulerMixin) -> bool:
    """Whether the model's noise is DDPM's: a γ for each timestep."""
    return hasattr(scheduler, "alphas_cumprod")


def is_distilled_for_lcm(pipeline: DiffusionPipeline) -> bool:
    """Whether the model is a latent consistency model (arXiv 2310.04378): told so by its scheduler or by its U-Net,
    which then takes the guidance scale as an input."""
    unet = getattr(pipeline, "unet", None)
    guided = unet is not None and unet.config.get("time_cond_proj_dim") is not None
    return guided or isinstance(pipeline.scheduler, diffusers.LCMScheduler)


def takes_lcm_only(pipeline: DiffusionPipeline) -> bool:
    """Whether the pipeline hands its scheduler what no other understands."""
    return "original_inference_steps" in inspect.signature(pipeline.__call__).parameters


def most_steps(pipeline: DiffusionPipeline) -> int | None:
    """How many steps the pipeline's scheduler takes at most, where there is a limit: LCM's picks among as many."""
    limit = isinstance(pipeline.scheduler, diffusers.LCMScheduler)
    return pipeline.scheduler.config.original_inference_steps if limit else None


def accepted(pipeline: DiffusionPipeline) -> tuple[str, ...]:
    """The names that `with_scheduler` takes for this pipeline: none for a noise that is neither a flow nor DDPM's, such
    as EDM's (arXiv 2206.00364), whose networks none of these schedulers know how to scale."""
    if is_flow(pipeline.scheduler):
        # Heun's takes neither the shift nor the sigmas that these pipelines pass.
        takes_heun = not pipeline.scheduler.config.get("use_dynamic_shifting") and "Flux" not in type(pipeline).__name__
        return tuple(name for name in FLOW if takes_heun or name != "Heun")
    if not has_gammas(pipeline.scheduler):
        return ()
    if takes_lcm_only(pipeline):
        return ("LCM",)
    return tuple(name for name in NOISE if name != "LCM" or is_distilled_for_lcm(pipeline))


def with_scheduler(pipeline: DiffusionPipeline, name: str | None = None) -> DiffusionPipeline:
    """The same networks with a new scheduler on the same noise schedule; `pipeline` stays as it is.

    `name`: one of `accepted(pipeline)`, whatever its case; None is the model's own. The result shares the networks
    and owns its scheduler, so two requests never share a scheduler's state. That scheduler keeps the last estimate of
    the picture's latents, for `ldm.preview`. Raises ValueError for another name.
    """
    own = pipeline.scheduler
    if name is None:
        return _shallow(pipeline, type(own).from_config(own.config))
    names = accepted(pipeline)
    found = {known.lower(): known for known in names}.get(name.lower())
    if found is None:
        if not names:
            raise ValueError(f"scheduler is {name!r}; this model's noise takes no scheduler but its own")
        raise ValueError(f"scheduler is {name!r}; {_why(pipeline, name)}it must be one of {', '.join(names)}")
    kind = (FLOW if is_flow(pipeline.scheduler) else NOISE)[found]
    if type(own) is kind and found not in IN_SIGMA:
        return _shallow(pipeline, kind.from_config(own.config))
    options = _flow_options(found, own) if is_flow(pipeline.scheduler) else _noise_options(found, own)
    return _shallow(pipeline, kind.from_config(own.config, **options))


def _why(pipeline: DiffusionPipeline, name: str) -> str:
    if is_flow(pipeline.scheduler) and name.lower() in {known.lower() for known in NOISE}:
        return "this model matches flows, which takes schedulers of that family: "
    if name.lower() == "lcm":
        return "LCM takes a model that was distilled for it: "
    return ""


def _shallow(pipeline: DiffusionPipeline, scheduler: SchedulerMixin) -> DiffusionPipeline:
    changed = copy.copy(pipeline)
    changed.scheduler = remember_estimate(scheduler)
    return changed


def estimate(scheduler: SchedulerMixin, output: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
    """The model's estimate of x₀ before a step: what it said of `sample`, solved for the clean latents.

    With x_t = √γ x₀ + √(1−γ) ε (DDPM, arXiv 2006.11239, equation 4) where the scheduler keeps the variance, with
    x_t = x₀ + σ ε where it steps in sigma, and with x_t = (1−σ) x₀ + σ ε where it matches a flow, ε − x₀ = `output`.
    EDM's schedulers say themselves what their networks mean.
    """
    if is_flow(scheduler):
        return sample - scheduler.sigmas[scheduler.step_index or 0].to(sample) * output
    if hasattr(scheduler, "precondition_outputs"):
        return scheduler.precondition_outputs(sample, output, scheduler.sigmas[scheduler.step_index or 0].to(sample))
    prediction = scheduler.config.prediction_type
    if prediction == "sample":
        return output
    if prediction == "trigflow":  # x_t = cos t · x₀ + sin t · z, both times sigma_data (arXiv 2410.11081, section 3)
        angle = scheduler.timesteps[scheduler.step_index or 0].to(sample)
        return (angle.cos() * sample - angle.sin() * output) / scheduler.config.sigma_data
    if hasattr(scheduler, "sigmas") and not hasattr(scheduler, "sigma_t"):  # those with sigma_t keep the variance
        sigma = scheduler.sigmas[scheduler.step_index or 0].to(sample)
        gamma, sample = 1 / (sigma**2 + 1), sample / (sigma**2 + 1).sqrt()
    else:
        gamma = scheduler.alphas_cumprod[int(timestep)].to(sample)
    if prediction == "v_prediction":
        return gamma.sqrt() * sample - (1 - gamma).sqrt() * output
    return (sample - (1 - gamma).sqrt() * output) / gamma.sqrt()


def remember_estimate(scheduler: SchedulerMixin) -> SchedulerMixin:
    """The same scheduler, with x₀ of its last step as `scheduler.last_estimate` (None before the first).

    A pipeline tells its callback the noisy latents only; the model's output passes through here.
    """
    step = scheduler.step

    @functools.wraps(step)
    def remembering(model_output: Tensor, timestep: Tensor, sample: Tensor, *args: Any, **options: Any) -> Any:
        output = model_output[:, : sample.shape[1]]  # without the variances that some networks learned beside it
        scheduler.last_estimate = estimate(scheduler, output.float(), timestep, sample.float())
        return step(model_output, timestep, sample, *args, **options)

    scheduler.step, scheduler.last_estimate = remembering, None
    return scheduler


def _noise_options(name: str, own: SchedulerMixin) -> dict[str, Any]:
    """What the new scheduler's configuration must say that the old one's may not."""
    config: Mapping[str, Any] = own.config
    options: dict[str, Any] = {}
    if name in ("DDPM", "DDIM", "LCM", "Heun"):
        options["clip_sample"] = config.get("clip_sample", False)  # their default clips latents at one
    if name == "DDPM":
        options["variance_type"] = config.get("variance_type") or "fixed_small"
    if name in ("DPMSolver++", "UniPC"):
        options["thresholding"] = config.get("thresholding", False)
    if name in IN_SIGMA:
        options |= _finite_noise(own, IN_SIGMA[name])
    return options


def _finite_noise(own: SchedulerMixin, sigma: float) -> dict[str, Any]:
    """The noise schedule with at most `sigma`, where it goes past LARGEST_SIGMA: a little signal in every step."""
    gamma = own.alphas_cumprod.double().cpu()
    floor = 1 / (1 + sigma**2)
    if gamma[-1] >= 0.99 / (1 + LARGEST_SIGMA**2):
        return {"rescale_betas_zero_snr": False}
    gamma = gamma + floor * (1 - gamma)  # monotonous still, so no two steps meet
    before = torch.cat([gamma.new_ones(1), gamma[:-1]])
    return {"trained_betas": (1 - gamma / before).tolist(), "rescale_betas_zero_snr": False}


def _flow_options(name: str, own: SchedulerMixin) -> dict[str, Any]:
    shift = own.config.get("flow_shift", own.config.get("shift", 1.0))
    if name in ("DPMSolver++", "UniPC"):
        return {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    return {"shift": shift}
