"""What the loaded models are: their names, hashes, sizes, schedulers and versions."""

from __future__ import annotations

import hashlib
import inspect
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.requests import ModelInfo
from service.settings import Settings


def model_info(base: Any, enlarger: Any, settings: Settings) -> ModelInfo:
    """What a base pipeline and an SR3 pipeline are and take."""
    from ldm.schedulers import accepted
    from sr3.schedulers import SCHEDULERS

    width, height = own_size(base)
    return ModelInfo(
        base_model=model_name(settings.base_model),
        sr_model=model_name(settings.sr_model),
        base_hash=weights_hash(_folder(settings.base_model, "ldm")),
        sr_hash=sr_hash(settings),
        width=width,
        height=height,
        size_multiple=size_multiple(base),
        sampler=sampler_name(base),
        sr_sampler=sampler_name(enlarger),
        schedulers=accepted(base),
        sr_schedulers=tuple(SCHEDULERS),
        device=str(getattr(enlarger, "device", "cpu")),  # an offloaded base model tells where it waits
        versions=versions(),
    )


def own_size(base: Any) -> tuple[int, int]:
    """Width and height of what a base pipeline draws where it is told none, as diffusers' pipelines work them out."""
    takes = inspect.signature(base.__call__).parameters
    told = [takes[name].default for name in ("width", "height") if name in takes]
    if len(told) == 2 and all(isinstance(side, int) for side in told):
        return told[0], told[1]
    sizes = [getattr(base, "default_sample_size", None)]
    sizes += [getattr(_config(base, part), "sample_size", None) for part in ("transformer", "unet")]
    latent = next((size for size in sizes if size), None)
    if latent is None:
        return 64, 64
    tall, wide = (latent, latent) if isinstance(latent, int) else latent
    factor = getattr(base, "vae_scale_factor", 1)
    return wide * factor, tall * factor


def size_multiple(base: Any) -> int | None:
    """What width and height must be multiples of, so that the latents fall into whole patches; None where the pipeline
    takes no size."""
    factor = getattr(base, "vae_scale_factor", None)
    if factor is None or not {"width", "height"} <= set(inspect.signature(base.__call__).parameters):
        return None
    patch = getattr(_config(base, "transformer"), "patch_size", 1)
    packed = getattr(_config(base, "image_processor"), "vae_scale_factor", 1)  # of Flux and its kin twice the factor
    return math.lcm(factor * patch if isinstance(patch, int) else factor, packed)


def _config(base: Any, part: str) -> Any:
    return getattr(getattr(base, part, None), "config", None)


def sr_hash(settings: Settings) -> str | None:
    """Of the SR3 model; see `weights_hash`."""
    return weights_hash(_folder(settings.sr_model, "sr3"))


def versions() -> dict[str, str]:
    """Of what the pictures depend on."""
    names = ("sr3-cascade", "torch", "diffusers", "transformers", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def weights_hash(folder: Path | None) -> str | None:
    """SHA-256 over a model directory's safetensors and configurations, their names and order; ten digits of it, as
    AUTOMATIC1111 shows a model's hash."""
    if folder is None or not folder.is_dir():
        return None
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json") and p.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder)}\0".encode())
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:10]


def model_name(model: str | None) -> str:
    """A model's name for others to read: a hub id as it is, of a directory only the last part."""
    if model is None:
        return "bundled"
    return Path(model).resolve().name if Path(model).is_dir() else model


def sampler_name(pipeline: Any) -> str:
    """The sampler's name as the field says it: "DDIM" for a DDIMScheduler."""
    return type(pipeline.scheduler).__name__.removesuffix("Scheduler")


def _folder(model: str | None, room: str) -> Path | None:
    """Where a model's files are: a directory, the bundled one, or a hub id's in the local cache."""
    if model is None:
        return Path(__file__).parent.parent / room / "weights"
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(model, "model_index.json")
    return Path(index).parent if isinstance(index, str) else None
