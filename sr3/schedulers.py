"""The schedulers that sample SR3, by the names that people know."""

from typing import Any

import diffusers

from sr3.pipeline import SR3Pipeline

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DDIM": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "DDPM": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "DPMSolver++": (diffusers.DPMSolverMultistepScheduler, {"thresholding": False}),
    "Euler": (diffusers.EulerDiscreteScheduler, {}),
    "LMS": (diffusers.LMSDiscreteScheduler, {}),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}),
}


def with_scheduler(pipeline: SR3Pipeline, name: str) -> SR3Pipeline:
    """The same networks with another scheduler on the same noise schedule. Raises ValueError for an unknown name."""
    found = {known.lower(): known for known in SCHEDULERS}.get(name.lower())
    if found is None:
        raise ValueError(f"scheduler is {name!r}; it must be one of {', '.join(SCHEDULERS)}")
    kind, options = SCHEDULERS[found]
    scheduler = kind.from_config(pipeline.scheduler.config, **options)
    return SR3Pipeline(pipeline.encoder, pipeline.unet, scheduler, pipeline.config.temperature)
