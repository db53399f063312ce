"""Measures the degradation pipeline against its bars: ``python tests/bench_degradation.py``.

Prints markdown tables: alignment, speed against a straightforward implementation, milliseconds per
operation, the loader's rate, and what 20,000 plans give. ``--photos DIR`` measures on real pictures too.
The tests run smaller samples of the same functions.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from scipy import ndimage

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from degradation import PRESETS, degrade, sample_plan  # noqa: E402
from degradation.apply import apply_step  # noqa: E402
from degradation.plan import (  # noqa: E402
    AnisotropicBlur,
    Blur,
    CameraNoise,
    Decimate,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Resize,
    Sharpen,
    SpeckleNoise,
    Step,
)
from tests.degradation_measures import (  # noqa: E402
    detailed_crops,
    find_constants,
    measure_shifts,
    samples_per_second,
    textured,
)


def straightforward(image: np.ndarray, rng: np.random.Generator, scale: int = 4) -> np.ndarray:
    """The paper's pipeline as one would first write it: kernels pixel by pixel, SciPy filters.

    The baseline for the speed bar: no plans, no halving, no camera noise, one order.
    """
    height, width = image.shape[:2]
    for _ in range(2):
        size = int(2 * rng.integers(3, 13) + 1)
        if rng.random() < 0.5:
            kernel = slow_kernel(size, rng.uniform(0, math.pi), *rng.uniform(1e-3, 4 + scale, 2))
        else:
            variance = rng.uniform(1e-2, 2 + 0.2 * scale) ** 2
            kernel = slow_kernel(size, 0.0, variance, variance)
        image = ndimage.convolve(image, kernel[:, :, None], mode="mirror")
    if rng.random() < 0.75:
        by = rng.uniform(1, 2 * scale)
        image = ndimage.zoom(image, (1 / by, 1 / by, 1), order=int(rng.choice([1, 3])))
    else:
        variance = rng.uniform(0.1, 0.6 * scale) ** 2
        kernel = ndimage.shift(slow_kernel(25, 0.0, variance, variance), 1.5, order=1)
        image = ndimage.convolve(image, kernel[:, :, None], mode="mirror")[::scale, ::scale]
    image = np.clip(image + rng.normal(0, rng.integers(2, 26) / 255, image.shape), 0, 1)
    image = slow_jpeg(image, int(rng.integers(30, 96)))
    ratios = (height / scale / image.shape[0], width / scale / image.shape[1], 1)
    return slow_jpeg(np.clip(ndimage.zoom(image, ratios, order=3), 0, 1), int(rng.integers(30, 96)))


def slow_kernel(size: int, angle: float, first: float, second: float) -> np.ndarray:
    """A Gaussian from the eigenvalues of its covariance, filled pixel by pixel."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([first, second]) @ turn.T)
    kernel = np.zeros((size, size))
    for y in range(size):
        for x in range(size):
            offset = np.array([x - size // 2, y - size // 2])
            kernel[y, x] = math.exp(-0.5 * offset @ inverse @ offset)
    return kernel / kernel.sum()


def slow_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    pixels = np.uint8(np.round(image * 255))[..., ::-1]
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[..., ::-1] / 255.0


def operations() -> list[tuple[str, Step]]:
    """One step of each kind, as ``bsr`` draws them at their middle."""
    matrix = ((0.6, 0.3, 0.1), (0.1, 0.7, 0.2), (0.0, 0.2, 0.8))
    return [
        ("blur, 15 taps", Blur(1.4, 15)),
        ("anisotropic blur, 15 taps", AnisotropicBlur(2.0, 1.0, 0.7, 15)),
        ("anisotropic blur, 25 taps", AnisotropicBlur(2.0, 1.0, 0.7, 25)),
        ("resize to 64, linear", Resize(64, 64, "linear")),
        ("resize to 64, cubic", Resize(64, 64, "cubic")),
        ("resize to 64, area", Resize(64, 64, "area")),
        ("resize to 64, bicubic", Resize(64, 64, "bicubic")),
        ("shifted Gaussian, every 4th", Decimate(4, 1.2)),
        ("Gaussian noise, colour", GaussianNoise(12, "colour")),
        ("Gaussian noise, grey", GaussianNoise(12, "grey")),
        ("Gaussian noise, correlated", GaussianNoise(12, "correlated", 0, matrix)),
        ("speckle noise, colour", SpeckleNoise(12, "colour")),
        ("Poisson noise", PoissonNoise(1000)),
        ("camera sensor noise", CameraNoise(0.001, 1e-6, camera_matrix=matrix)),
        ("JPEG, quality 60, 4:2:0", Jpeg(60)),
        ("sharpen", Sharpen()),
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


@dataclass(frozen=True)
class Options:
    """Measure the degradation pipeline against its bars."""

    photos: Path | None = None
    """A folder of photographs, for the alignment on real pictures."""
    plans: int = 300
    """Plans for each preset in the alignment."""
    outputs: int = 20_000
    """Plans in the search for constant outputs, for each preset."""
    seconds: float = 5.0
    """Time for each speed."""


def main(options: Options) -> None:
    cv2.setNumThreads(1)
    print_alignment("synthetic textures", [textured(seed, 1024, 1024) for seed in range(12)], options.plans)
    if options.photos:
        print_alignment(f"photographs, {options.photos.name}", detailed_crops(options.photos), options.plans)
    print_speed(options.seconds)
    print_operations(options.seconds / 10)
    print_loader(options.seconds)
    print_outputs(options.outputs)


def print_alignment(what: str, crops: Sequence[np.ndarray], plans: int) -> None:
    print(f"Alignment, {plans} plans each, {len(crops)} crops of 1024×1024 ({what}), low-resolution pixels:\n")
    rows = []
    for preset in PRESETS:
        shifts = measure_shifts(preset, crops, plans)
        length = np.hypot(*shifts.T)
        mean = shifts.mean(axis=0)
        rows.append(
            (
                preset,
                f"{mean[0]:+.4f}, {mean[1]:+.4f}",
                f"{np.hypot(*mean):.4f}",
                f"{np.median(length):.4f}",
                f"{length.max():.3f}",
                int((length > 0.6).sum()),
            )
        )
    table(("preset", "mean shift x, y", "its length", "median length", "largest", "over 0.6"), rows)


def print_speed(seconds: float) -> None:
    print("Speed, one core, 256×256 crops to 64×64 (processor time):\n")
    image = textured(0, 256, 256)
    rng = np.random.default_rng(0)
    slow = samples_per_second(lambda: straightforward(image.astype(np.float64), rng), seconds)
    rows = [("straightforward bsr (SciPy)", f"{slow:.1f}", f"{1000 / slow:.1f}", "1")]
    for preset in PRESETS:
        rate = samples_per_second(lambda preset=preset: degrade(image, rng, preset), seconds)
        rows.append((preset, f"{rate:.0f}", f"{1000 / rate:.2f}", f"{rate / slow:.0f}"))
    rate = samples_per_second(lambda: sample_plan(rng, "bsr"), seconds / 5)
    rows.append(("drawing a bsr plan alone", f"{rate:.0f}", f"{1000 / rate:.3f}", ""))
    table(("pipeline", "samples a second", "ms a sample", "times the baseline"), rows)


def print_operations(seconds: float) -> None:
    print("Milliseconds for each operation, on 256×256 and on 64×64 pixels, one core:\n")
    large, small = textured(0, 256, 256), textured(0, 64, 64)
    rows = []
    for name, step in operations():
        times = (
            1000 / samples_per_second(lambda image=image, step=step: apply_step(image, step), seconds)
            for image in (large, small)
        )
        rows.append((name, *(f"{value:.2f}" for value in times)))
    table(("operation", "256×256", "64×64"), rows)


class Pairs:
    """What a training set does: crop and degrade, seeded by (seed, epoch, index)."""

    def __init__(self) -> None:
        self.image = textured(0, 512, 512)

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        cv2.setNumThreads(1)
        rng = np.random.default_rng([0, 0, index])
        top, left = rng.integers(0, 257, 2)
        high_res = self.image[top : top + 256, left : left + 256].copy()
        low_res, _ = degrade(high_res, rng, "bsr")
        return low_res, high_res


def print_loader(seconds: float) -> None:
    import torch

    print("A loader with batches of 16 pairs of preset bsr, wall clock:\n")
    rows = []
    for workers in (1, 2):
        loader = torch.utils.data.DataLoader(Pairs(), batch_size=16, num_workers=workers)  # type: ignore[arg-type]
        batches = iter(loader)
        next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(batches)
            count += 16
        rate = count / (time.perf_counter() - start)
        rows.append((workers, f"{rate:.0f}", f"{16_000 / rate:.0f}"))
        del batches
    table(("workers", "pairs a second", "ms for a batch of 16"), rows)


def print_outputs(plans: int) -> None:
    print(f"Outputs of {plans:,} plans for each preset, 64×64 to 16×16, textured inputs:\n")
    rows = []
    for preset in PRESETS:
        find_constants(preset, 200)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        least, bad = find_constants(preset, plans)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        rows.append((preset, bad, f"{least:.3f}", f"{grown / 1024:.1f}"))
    head = ("preset", "constant, NaN or out of range", "least contrast against bicubic", "memory grown, MiB")
    table(head, rows)


if __name__ == "__main__":
    main(tyro.cli(Options))
