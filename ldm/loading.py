"""Loading any diffusers text-to-image pipeline, the bundled one by default."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from safetensors import SafetensorError

DTYPES = ("float32", "bfloat16", "float16")


def resolve_device(device: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class ModelError(ValueError):
    """A model that is missing or wrong; its text says how."""


def _text_encoders(folder: Path, dtype: torch.dtype) -> dict[str, transformers.PreTrainedModel]:
    """The parts of a directory that transformers loads, by name. Raises ValueError where a file lacks tensors, which
    transformers would otherwise fill with random numbers."""
    parts = {}
    for name, entry in json.loads((folder / "model_index.json").read_text()).items():
        library, kind = entry if isinstance(entry, list) else (None, None)
        model_class: Any = getattr(transformers, kind or "", None) if library == "transformers" else None
        if hasattr(model_class, "from_pretrained") and (folder / name / "config.json").is_file():
            parts[name], report = model_class.from_pretrained(
                folder / name, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            if report["missing_keys"]:
                raise ValueError(
                    f"{name} lacks {len(report['missing_keys'])} tensors, {min(report['missing_keys'])} first"
                )
    return parts


def load(
    model: str | Path | None = None, device: str = "auto", dtype: str = "auto", allow_download: bool = False
) -> DiffusionPipeline:
    """A text-to-image pipeline on its device: a local directory or a hub id that is in the local cache (or, with
    `allow_download`, on the hub). Only safetensors are read.

    `device`: auto takes CUDA, then MPS, then the CPU. `dtype`: float32, bfloat16, float16, or auto: bfloat16 on
    CUDA, float32 elsewhere. Raises ModelError, with one line that says what is missing or wrong.
    """
    source = str(model) if model else str(Path(__file__).parent / "weights")
    folder = Path(source)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ModelError(f"{source} is not a diffusers pipeline: it has no model_index.json")
    if not folder.exists() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise ModelError(f"{source} does not exist; give a pipeline's directory or a hub id such as owner/name")
    place = resolve_device(device)
    chosen = ("bfloat16" if place.type == "cuda" else "float32") if dtype == "auto" else dtype
    if chosen not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}; it must be one of auto, {', '.join(DTYPES)}")
    try:
        pipeline = AutoPipelineForText2Image.from_pretrained(
            source,
            **(_text_encoders(folder, getattr(torch, chosen)) if folder.is_dir() else {}),
            dtype=getattr(torch, chosen),
            use_safetensors=True,
            local_files_only=not allow_download,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{source} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(place)
