"""How much memory a model's weights take, from the headers of its files, and how much there is."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from sr3.memory import free_memory

GIB = 2**30
STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def count_numbers(file: Path) -> Counter[str]:
    """How many numbers of each type a safetensors file holds, from its header. Raises ValueError if it is something
    else."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(file.stat().st_size, 100 * 2**20):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        counts: Counter[str] = Counter()
        for name, entry in header.items():
            if name != "__metadata__":
                counts[entry["dtype"]] += math.prod(entry["shape"])
        return counts
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from None


def count_parts(folder: Path) -> dict[str, Counter[str]]:
    """`count_numbers` of each part of a pipeline's directory; variants are not counted."""
    counts = {}
    for name, entry in json.loads((folder / "model_index.json").read_text()).items():
        if not isinstance(entry, list) or not entry or entry[0] is None:
            continue
        # model.safetensors or model-00001-of-00002.safetensors, but not model.fp16.safetensors
        files = [f for f in (folder / name).glob("*.safetensors") if f.name.count(".") == 1]
        if files:
            counts[name] = sum((count_numbers(f) for f in files), Counter[str]())
    return counts


def check_memory(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    offload: str,
    free: Callable[[torch.device], int] = free_memory,
) -> None:
    """Raises ValueError where the weights alone will not fit: all of them on `device`, or with `offload` all in main
    memory and, with "model", the largest part on `device`. On their way to `device` those that change their dtype go
    through main memory too; the others are read from their files as they are needed."""
    counts = count_parts(folder)
    sizes = {name: each.total() * dtype.itemsize for name, each in counts.items()}
    if not sizes:
        return
    largest = max(sizes, key=sizes.__getitem__)
    total, wide = sum(sizes.values()), str(dtype).removeprefix("torch.")
    changed = sum(each.total() - each[STORED[dtype]] for each in counts.values()) * dtype.itemsize
    needs = {torch.device("cpu"): changed} | {device: total}
    if offload != "none":
        needs = {torch.device("cpu"): total, device: sizes[largest] if offload == "model" else 0}
    for place, need in needs.items():
        room = free(place)
        if need > room:
            advice = [f"a narrower dtype than {wide}"] if dtype.itemsize > 2 else []
            if place.type == "cuda" and offload != "sequential":
                advice.append(f"offload={'model' if offload == 'none' else 'sequential'} (to draw, not to train)")
            elif place != device and offload == "none":
                advice = ["the dtype of its files"]
            biggest = f"{largest} {sizes[largest] / GIB:.1f}"
            raise ValueError(
                f"its weights take {need / GIB:.1f} GiB as {wide} ({biggest}) and {place} has {room / GIB:.1f} GiB "
                f"free; use {', '.join([*advice, 'a smaller model'])}"
            )
