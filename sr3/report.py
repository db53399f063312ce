"""Results of an evaluation as a Markdown table and as a sheet of labelled crops, and what a call costs in memory."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

Result = TypeVar("Result")
LABEL = 22  # pixels of height
MOST_ROWS = 24
PICTURES = ("PSNR", "SSIM", "MS-SSIM", "SSIMULACRA 2", "LPIPS", "DISTS", "NIQE", "consistency", "colour shift")
ORDER = (*PICTURES, "FID", "KID x1000", "precision", "recall", "patches", "s/MP", "peak MB")


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Measures by upscaler as a Markdown table; a measure that nobody has is left out, one that is missing a dash."""
    found = {m for values in results.values() for m in values}
    measures = [m for m in ORDER if m in found] + sorted(found - {*ORDER})
    lines = ["| | " + " | ".join(measures) + " |", "|---" * (len(measures) + 1) + "|"]
    for name, values in results.items():
        cells = [f"{values[m]:.3f}" if math.isfinite(values.get(m, math.nan)) else "–" for m in measures]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def busiest(picture: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left, multiples of 4, of the square of `side` in which neighbouring pixels differ most."""
    grey = picture.astype(np.float32).mean(2)
    change = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    sums = cv2.boxFilter(change, -1, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    places = sums[: grey.shape[0] - side + 1 : 4, : grey.shape[1] - side + 1 : 4]
    top, left = np.unravel_index(int(places.argmax()), places.shape)
    return 4 * int(top), 4 * int(left)


def sheet(rows: Sequence[tuple[str, Mapping[str, np.ndarray]]], side: int = 192) -> np.ndarray:
    """Crops side by side, uint8 (H, W, 3): a row each, under the row's name, every picture under its own.

    Of each row the same square, the one with most detail in its first picture; pictures of a row have one size.
    """
    lines = []
    for title, pictures in rows[:MOST_ROWS]:
        first = next(iter(pictures.values()))
        size = min(side, *first.shape[:2])
        top, left = busiest(first, size)
        cells = []
        for name, picture in pictures.items():
            crop = picture[top : top + size, left : left + size]
            crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_NEAREST) if size != side else crop
            cells.append(np.concatenate([_label(name, side), crop]))
        line = np.concatenate(cells, axis=1)
        lines += [_label(title, line.shape[1]), line]
    width = max(line.shape[1] for line in lines)
    return np.concatenate([np.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0))) for x in lines])


def _label(text: str, width: int) -> np.ndarray:
    """Black on white; OpenCV's letters know only ASCII."""
    strip = np.full((LABEL, width, 3), 255, np.uint8)
    shown = text.encode("ascii", "replace").decode()
    return cv2.putText(strip, shown, (4, LABEL - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)


def write_sheet(path: Path, rows: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> None:
    if not cv2.imwrite(str(path), sheet(rows)[..., ::-1]):
        raise ValueError(f"{path} could not be written; PNG, JPEG, WebP and TIFF in a folder that exists are accepted")


def peak_memory(call: Callable[[], Result]) -> tuple[Result, float]:
    """The call's result, and in MB the most memory while it ran: of the GPU's allocator where the call used it, else
    of the whole process on Linux, else not a number. The weights of other networks that are loaded count too."""
    import torch

    before = 0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # to what is allocated, not to 0
        before = torch.cuda.memory_allocated()
    clear = Path("/proc/self/clear_refs")
    if sys.platform == "linux" and clear.exists():
        clear.write_text("5")  # forget the peak so far
    result = call()
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > before:
        return result, torch.cuda.max_memory_allocated() / 1e6
    if sys.platform != "linux":
        return result, math.nan
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return result, int(status["VmHWM"].split()[0]) * 1024 / 1e6
