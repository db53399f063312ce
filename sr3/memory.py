"""What a device takes: how large the pieces of a picture may be so that memory stays under a bound, and its numbers."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sr3.tiling import OVERLAP, TILE, Tiling

CGROUP = Path("/sys/fs/cgroup")
SMALLEST_TILE = 192  # the networks look further: in smaller pieces the picture would be another
REGIONS = (1024, 768, 512, 384, 256, SMALLEST_TILE)
KEPT = 100_000_000  # bytes that a process keeps of a first pass: kernels, heap that is not given back (60 to 100 MB)
SHARE = 0.8  # of the memory that is free, where no bound is given
# How a Linux CPU, Windows, CUDA and MPS, cuBLAS, cuDNN and C++ say it.
NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|ALLOC(ATION)?_FAILED|bad_alloc")


class NoRoom(ValueError):
    """Even in the smallest pieces a picture takes more memory than there is."""


def show_size(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


@dataclass(frozen=True)
class Cost:
    """Bytes of one run: what grows with the picture's low-resolution pixels, and with a tile's."""

    picture: int
    """Features, estimate, residual and what a scheduler's step makes of them."""
    tile: int
    """What the networks make on their way."""
    result: int
    """The enlarged picture in float32, beside it the noise of the whole or else what becomes its whole levels."""


def cost(channels: int, base_channels: int, patch_size: int, bytes_each: int) -> Cost:
    """Of an encoder of `channels` and a denoiser of `base_channels`; measured on the bundled model, rounded up."""
    positions = (4 // patch_size) ** 2  # of the denoiser, for one low-resolution pixel
    picture = bytes_each * channels * positions + 4 * 48 * 7
    result = 4 * 48 * 2 + 2 * 48  # float32 twice, and levels of sixteen bits
    return Cost(picture, bytes_each * 22 * max(base_channels * positions, channels), result)


@dataclass(frozen=True)
class Plan:
    """How a picture is cut."""

    tiling: Tiling
    """Of each evaluation of a network."""
    region: Tiling | None = None
    """Of the picture, each region going through all steps by itself; None for the picture as a whole."""

    def smaller(self) -> "Plan | None":
        """The next plan to try where this one ran out of memory; None where none is left."""
        if self.region is None and self.tiling.size > SMALLEST_TILE:
            return whole(max(self.tiling.size // 2, SMALLEST_TILE))
        sizes = [size for size in REGIONS if self.region is None or size < self.region.size]
        return in_regions(sizes[0], SMALLEST_TILE) if sizes else None


def pieces(size: int) -> Tiling:
    """Tiles of this size that overlap by OVERLAP, or as far as their size allows."""
    return Tiling(size, min(OVERLAP, (size - 1) // 2))


def whole(tile: int) -> Plan:
    return Plan(pieces(tile))


def in_regions(size: int, tile: int = TILE) -> Plan:
    return Plan(pieces(min(size, tile)), pieces(size))


def plan(height: int, width: int, each: Cost, budget: int) -> Plan:
    """The largest pieces for a picture of low_res height x width with which `budget` bytes are enough.

    Raises NoRoom where even the smallest are too large.
    """
    area = height * width
    for candidate in [*map(whole, range(TILE, SMALLEST_TILE - 1, -32)), *map(in_regions, REGIONS)]:
        tile = min(candidate.tiling.size**2, area)
        piece = area if candidate.region is None else min(candidate.region.size**2, area)
        needed = each.picture * piece + each.tile * tile + each.result * area
        if needed <= budget:
            return candidate
    least, there = show_size(needed), show_size(max(budget, 0))
    sizes = f"{width}x{height} to {4 * width}x{4 * height}"
    raise NoRoom(f"{least} beside what is in use is the least for a picture of {sizes}; {there} is there")


def plan_for_free(height: int, width: int, each: Cost, device: torch.device) -> Plan:
    """As `plan` for most of what is free on the device now; the smallest pieces where that is not enough. Raises
    NoRoom where not even the result would fit."""
    free = free_memory(device)
    try:
        return plan(height, width, each, int(SHARE * free))
    except NoRoom:
        if each.result * height * width > free:
            raise
        return in_regions(SMALLEST_TILE)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device: the GPU's own, with what torch keeps of them for later, or else the machine's
    within its container's limit."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, limit - used + (int(cached[1]) if cached else 0))  # files' pages make room when asked to


def in_use(device: torch.device) -> int:
    """Bytes that this process holds now: of the GPU, or of main memory (on Linux; elsewhere taken for 0.6 GB)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 600_000_000


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out or would, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError, NoRoom)):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


def fast_dtype(device: torch.device) -> str:
    """bfloat16 where the hardware multiplies it, else float16 where a CUDA card multiplies that, else float32."""
    if device.type == "cuda":
        if torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0):
            return "bfloat16"
        return "float16" if torch.cuda.get_device_capability(device) >= (7, 0) else "float32"
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"
