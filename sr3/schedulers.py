"""The schedulers that sample SR3, by the names that people know."""

from typing import Any

import diffusers

from sr3.pipeline import SR3Pipeline

SCHEDULERS: dict[str, Any] = {
    "DDIM": diffusers.DDIMScheduler,
    "DDPM": diffusers.DDPMScheduler,
    "DPMSolver++": diffusers.DPMSolverMultistepScheduler,
    "Euler": diffusers.EulerDiscreteScheduler,
    "LMS": diffusers.LMSDiscreteScheduler,
    "UniPC": diffusers.UniPCMultistepScheduler,
}


def with_scheduler(pipeline: SR3Pipeline, name: str) -> SR3Pipeline:
    """The same networks with another scheduler on the same noise schedule. Raises ValueError for an unknown name."""
    found = {known.lower(): known for known in SCHEDULERS}.get(name.lower())
    if found is None:
        raise ValueError(f"scheduler is {name!r}; it must be one of {', '.join(SCHEDULERS)}")
    config = pipeline.scheduler.config
    options: dict[str, Any] = {}
    if found in ("DDIM", "DDPM"):
        options["clip_sample"] = config.get("clip_sample", False)  # their default clips
    if found == "DPMSolver++":
        options["thresholding"] = False
    scheduler = SCHEDULERS[found].from_config(config, **options)
    return SR3Pipeline(pipeline.encoder, pipeline.unet, scheduler, **pipeline.sampling())
