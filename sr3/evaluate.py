"""Measure a model on held-out pictures: `python -m sr3.evaluate --data FOLDER [--degradation bsr-light]`."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from degradation import PRESETS, crop_to_multiple, degrade
from sr3.images import ImageError, read, read_folder, to_tensor, to_uint8
from sr3.metrics import consistency, psnr, ssim, ssimulacra2
from sr3.model import SCALE, upsample
from sr3.pipeline import SR3Pipeline, load
from sr3.schedulers import with_scheduler

Upscaler = Callable[[np.ndarray], np.ndarray]
MEASURES = ("PSNR", "SSIM", "SSIMULACRA 2", "consistency", "colour shift", "s/MP")


@dataclass(frozen=True)
class EvaluateConfig:
    data: Path
    """A folder of originals."""
    degradation: str = "bicubic"
    """bicubic, bsr-light, bsr or bsr-plus."""
    steps: tuple[int, ...] = (0, 4)
    schedulers: tuple[str, ...] = ()
    """Compare these at each number of steps, in place of the model's own."""
    model: Path | None = None
    """A pipeline directory, in place of the bundled weights."""
    device: str = "auto"
    limit: int | None = None
    """Only the first so many pictures."""
    max_side: int = 512
    """Originals are cropped to the middle square of at most so many pixels on a side."""
    match: str = ""
    """Only pictures whose file name contains this."""
    seed: int = 0
    sheet: Path | None = None
    """Write crops side by side here: original, low_res, bicubic, and each number of steps."""
    out: Path | None = None
    """Write the table as JSON here."""


def bicubic(low_res: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) to (4h, 4w, 3)."""
    return to_uint8(upsample(to_tensor(low_res)))[0]


def upscalers(pipeline: SR3Pipeline, config: EvaluateConfig) -> dict[str, Upscaler]:
    """What is compared, by name."""

    def at(pipeline: SR3Pipeline, steps: int) -> Upscaler:
        return lambda low_res: pipeline(low_res, steps, torch.Generator().manual_seed(config.seed)).images[0]

    sampled = {"": pipeline} | {f", {name}": with_scheduler(pipeline, name) for name in config.schedulers}
    if config.schedulers:
        del sampled[""]
    named = {f"sr3, {n} steps{name}": at(p, n) for name, p in sampled.items() for n in config.steps}
    return {"bicubic": bicubic, **named}


def pairs(config: EvaluateConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """low_res and original of each picture, uint8 RGB. Raises ValueError for an unknown degradation."""
    if config.degradation not in PRESETS:
        raise ValueError(f"degradation is {config.degradation!r}; it must be one of {', '.join(PRESETS)}")
    made = []
    for index, path in enumerate([p for p in read_folder(config.data) if config.match in p.name][: config.limit]):
        pixels = read(path).pixels
        if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
            raise ImageError(f"{path} is not RGB of 8 bits; originals must be")
        height, width = (min(n, config.max_side) for n in pixels.shape[:2])
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        original = crop_to_multiple(pixels[top : top + height, left : left + width], SCALE)
        rng = np.random.default_rng([config.seed, index])
        low_res, _ = degrade(original.astype(np.float32) / 255, rng, config.degradation)
        made.append((np.round(low_res * 255).astype(np.uint8), original))
    return made


def measure(low_res: np.ndarray, original: np.ndarray, result: np.ndarray, seconds: float) -> dict[str, float]:
    return {
        "PSNR": psnr(original, result),
        "SSIM": ssim(original, result),
        "SSIMULACRA 2": ssimulacra2(original, result),
        "consistency": consistency(low_res, result),
        "colour shift": float(np.abs(result.mean((0, 1)) - low_res.mean((0, 1))).max()),
        "s/MP": seconds / (result.shape[0] * result.shape[1] / 1e6),
    }


def evaluate(config: EvaluateConfig) -> dict[str, dict[str, float]]:
    """Mean of each measure over the pictures, by upscaler."""
    pipeline = load(config.model, config.device)
    pipeline.set_progress_bar_config(disable=True)
    pictures = pairs(config)
    if not pictures:
        raise ValueError(f"no picture in {config.data} has {config.match!r} in its name")
    compared = upscalers(pipeline, config)
    for upscale in compared.values():
        upscale(pictures[0][0])  # the first call of each allocates and plans
    values: dict[str, list[dict[str, float]]] = {name: [] for name in compared}
    rows = []
    for low_res, original in pictures:
        row = [original, cv2.resize(low_res, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)]
        for name, upscale in compared.items():
            started = time.perf_counter()
            result = upscale(low_res)
            values[name].append(measure(low_res, original, result, time.perf_counter() - started))
            row.append(result)
        rows.append(row)
    if config.sheet:
        write_sheet(config.sheet, rows)
    return {name: {m: float(np.mean([v[m] for v in each])) for m in MEASURES} for name, each in values.items()}


def write_sheet(path: Path, rows: list[list[np.ndarray]], side: int = 192) -> None:
    """The middle of each picture, a row each."""
    lines = []
    for row in rows:
        height, width = row[0].shape[:2]
        size = min(side, height, width)
        top, left = (height - size) // 2, (width - size) // 2
        cut = [cv2.resize(p[top : top + size, left : left + size], (side, side)) for p in row]
        lines.append(np.concatenate(cut, axis=1))
    cv2.imwrite(str(path), np.concatenate(lines)[..., ::-1])


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as a Markdown table."""
    lines = ["| | " + " | ".join(MEASURES) + " |", "|---" * (len(MEASURES) + 1) + "|"]
    for name, values in results.items():
        lines.append(f"| {name} | " + " | ".join(f"{values[m]:.3f}" for m in MEASURES) + " |")
    return "\n".join(lines)


def main() -> int:
    import tyro

    config = tyro.cli(EvaluateConfig, description=__doc__)
    try:
        results = evaluate(config)
    except ValueError as error:
        print(f"sr3.evaluate: {error}", file=sys.stderr)
        return 2
    print(table(results))
    if config.out:
        config.out.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
