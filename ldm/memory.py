"""How much memory a model's weights take, from the headers of its files, and how much there is."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch

from sr3.memory import free_memory

GIB = 2**30


def count_numbers(file: Path) -> int:
    """How many numbers a safetensors file holds, from its header. Raises ValueError if it is something else."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(file.stat().st_size, 100 * 2**20):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from None


def part_sizes(folder: Path, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each part of a pipeline's directory once its weights have that dtype; variants are not counted."""
    sizes = {}
    for name, entry in json.loads((folder / "model_index.json").read_text()).items():
        if not isinstance(entry, list) or entry[0] is None:
            continue
        # model.safetensors or model-00001-of-00002.safetensors, but not model.fp16.safetensors
        files = [f for f in (folder / name).glob("*.safetensors") if f.name.count(".") == 1]
        if files:
            sizes[name] = sum(count_numbers(f) for f in files) * dtype.itemsize
    return sizes


def check_memory(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    offload: str,
    free: Callable[[torch.device], int] = free_memory,
) -> None:
    """Raises ValueError where the weights alone will not fit: all of them on `device`, or with `offload` all in main
    memory and, with "model", the largest part on `device`."""
    sizes = part_sizes(folder, dtype)
    if not sizes:
        return
    largest = max(sizes, key=sizes.__getitem__)
    total, wide = sum(sizes.values()), str(dtype).removeprefix("torch.")
    needs = {device: total}
    if offload != "none":
        needs = {torch.device("cpu"): total, device: sizes[largest] if offload == "model" else 0}
    for place, need in needs.items():
        room = free(place)
        if need > room:
            advice = [f"a narrower dtype than {wide}"] if dtype.itemsize > 2 else []
            advice += ["offload"] if place.type == "cuda" and offload == "none" else []
            biggest = f"{largest} {sizes[largest] / GIB:.1f}"
            raise ValueError(
                f"its weights take {need / GIB:.1f} GiB as {wide} ({biggest}) and {place} has {room / GIB:.1f} GiB "
                f"free; use {', '.join([*advice, 'a smaller model'])}"
            )
