"""Loading any diffusers text-to-image pipeline, the bundled one by default."""

import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoPipelineForText2Image, DiffusionPipeline, SanaSprintPipeline
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError

from ldm.memory import check_memory, free_memory
from sr3.memory import fast_dtype
from sr3.mistakes import first_line

DTYPES = ("float32", "bfloat16", "float16")
OFFLOADS = ("none", "model", "sequential")
GUIDANCE = "guidance.json"  # beside the weights: diffusers warns of what its own files say beyond what it knows


class ModelError(ValueError):
    """A model that is missing or wrong; its text says how."""


def resolve_device(device: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU. Raises ModelError for a device that is not there."""
    if device != "auto":
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:  # of a torch without CUDA
            raise ModelError(f"device is {device!r}, which cannot be used: {first_line(error)}") from None
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _text_encoders(folder: Path, dtype: torch.dtype) -> dict[str, transformers.PreTrainedModel | None]:
    """The parts of a directory that transformers loads, by name, and None for those that it leaves out (SD3's third
    text encoder). Raises ValueError where a file lacks tensors, which transformers would otherwise fill with random
    numbers."""
    parts: dict[str, transformers.PreTrainedModel | None] = {}
    for name, entry in json.loads((folder / "model_index.json").read_text()).items():
        if entry == [None, None]:
            parts[name] = None
            continue
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


def _folder_of(source: str, allow_download: bool) -> Path:
    """The directory of a model: itself, or a hub id's in the local cache, downloaded before where that is allowed."""
    folder = Path(source)
    if folder.exists():
        if not (folder / "model_index.json").is_file():
            raise ModelError(f"{source} is not a diffusers pipeline: it has no model_index.json")
        return folder
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ModelError(f"{source} does not exist; give a pipeline's directory or a hub id such as owner/name")
    try:
        return Path(DiffusionPipeline.download(source, use_safetensors=True, local_files_only=not allow_download))
    except LocalEntryNotFoundError:
        raise ModelError(f"{source} is not in the hub's cache on this machine; allow_download has it fetched") from None
    except OSError as error:  # of several sentences, with "see the stacktrace"
        raise ModelError(f"{source} cannot be fetched from the hub: {first_line(error.__cause__ or error)}") from None


def load(
    model: str | Path | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    allow_download: bool = False,
    offload: str = "none",
    attention_slicing: bool = False,
    vae_tiling: bool = False,
    free: Callable[[torch.device], int] = free_memory,
) -> DiffusionPipeline:
    """A text-to-image pipeline on its device: a local directory or a hub id that is in the local cache (or, with
    `allow_download`, on the hub). Only safetensors are read.

    `device`: auto takes CUDA, then MPS, then the CPU. `dtype`: float32, bfloat16, float16, as names or torch's, or
    auto: on CUDA bfloat16 (on cards before Ampere float16, before Volta float32), float32 elsewhere. `offload`: with
    "model" each part, with "sequential" each layer waits in main memory until it is called, for models larger than the
    accelerator's. `attention_slicing` and `vae_tiling` save memory in the attention and in the decoder. `free` tells a
    device's free bytes. Raises ModelError, with one line that says what is missing or wrong, before anything is read
    where the weights will not fit.
    """
    source = str(model) if model else str(Path(__file__).parent / "weights")
    place = resolve_device(device)
    fast = fast_dtype(place) if place.type == "cuda" else "float32"
    chosen = fast if dtype == "auto" else str(dtype).removeprefix("torch.")
    for name, value, known in (("dtype", chosen, DTYPES), ("offload", offload, OFFLOADS)):
        if value not in known:
            raise ModelError(f"{name} is {value!r}; it must be one of {'auto, ' * (name == 'dtype')}{', '.join(known)}")
    if offload != "none" and place.type == "cpu":
        raise ModelError(f"offload is {offload!r}, which needs an accelerator; the device is the CPU")
    try:
        folder = _folder_of(source, allow_download)
        check_memory(folder, getattr(torch, chosen), place, offload, free)
        pipeline = _pipeline_class(folder).from_pretrained(
            folder,
            **_text_encoders(folder, getattr(torch, chosen)),
            dtype=getattr(torch, chosen),
            use_safetensors=True,
            local_files_only=True,
        )
        _check_complete(pipeline)
        pipeline.set_progress_bar_config(disable=True)
        if attention_slicing:
            pipeline.enable_attention_slicing()
        if vae_tiling:
            if not hasattr(getattr(pipeline, "vae", None), "enable_tiling"):
                raise ModelError(f"{source} has no autoencoder that works in tiles: leave vae_tiling out")
            pipeline.vae.enable_tiling()
        return _on(pipeline, place, offload)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{source} cannot be loaded: {first_line(error)}") from None


def _pipeline_class(folder: Path) -> Any:
    """The class that knows the directory's: diffusers' automatic one has no entry for SANA-Sprint."""
    named = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    return SanaSprintPipeline if named == "SanaSprintPipeline" else AutoPipelineForText2Image


def _check_complete(pipeline: DiffusionPipeline) -> None:
    """Raises ValueError where a file of diffusers' lacks tensors, which it leaves without numbers."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            lacking = [key for key, value in part.state_dict().items() if value.is_meta]
            if lacking:
                raise ValueError(f"{name} lacks {len(lacking)} tensors, {min(lacking)} first")


def own_guidance(pipeline: DiffusionPipeline) -> float | None:
    """The guidance scale that the directory of a pipeline asks for in its GUIDANCE file, or else the default of its
    class; None where it takes none."""
    takes = inspect.signature(pipeline.__call__).parameters
    if "guidance_scale" not in takes:
        return None
    path = Path(str(pipeline.config.get("_name_or_path", ""))) / GUIDANCE
    return json.loads(path.read_text())["guidance_scale"] if path.is_file() else takes["guidance_scale"].default


def step_options(pipeline: DiffusionPipeline, steps: int) -> dict[str, Any]:
    """The arguments by which a pipeline takes so many steps."""
    options: dict[str, Any] = {"num_inference_steps": steps}
    if steps != 2 and "intermediate_timesteps" in inspect.signature(pipeline.__call__).parameters:
        options["intermediate_timesteps"] = None  # SANA-Sprint's default is for two steps, and refused with others
    return options


def _on(pipeline: DiffusionPipeline, place: torch.device, offload: str) -> DiffusionPipeline:
    if offload == "none":
        return pipeline.to(place)
    from ldm.preview import NoPreview, latent_map

    with suppress(NoPreview):
        latent_map(pipeline)  # encodes once, which must not happen between the steps of an offloaded model
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=place)
    else:
        pipeline.enable_sequential_cpu_offload(device=place)
    return pipeline
