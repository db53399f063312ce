"""What the loaded models are: their names, hashes, sizes, schedulers and versions."""

from __future__ import annotations

import hashlib
import inspect
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

    takes = inspect.signature(base.__call__).parameters
    multiple = getattr(base, "vae_scale_factor", None) if {"width", "height"} <= set(takes) else None
    side = getattr(getattr(getattr(base, "unet", None), "config", None), "sample_size", None)
    side = side * multiple if isinstance(side, int) and multiple else 64
    return ModelInfo(
        base_model=model_name(settings.base_model),
        sr_model=model_name(settings.sr_model),
        base_hash=weights_hash(_folder(settings.base_model, "ldm")),
        sr_hash=sr_hash(settings),
        width=side,
        height=side,
        size_multiple=multiple,
        sampler=sampler_name(base),
        sr_sampler=sampler_name(enlarger),
        schedulers=accepted(base),
        sr_schedulers=tuple(SCHEDULERS),
        device=str(getattr(base, "device", "cpu")),
        versions=versions(),
    )


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
