"""What the tests and the benchmark of the degradation pipeline measure with."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from degradation import degrade
from degradation.images import find_images, read_image
from degradation.resize import resize

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@functools.lru_cache(maxsize=32)
def textured(seed: int, height: int, width: int) -> np.ndarray:
    """A picture with detail of every size in every direction: float32 (H, W, 3), the same for a seed.

    It cannot be written to: whoever changes an input that he is given is found out.
    """
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    side = 2
    while side < 2 * max(height, width):
        coarse = rng.standard_normal((side, side, 3), dtype=np.float32) * side**-0.7
        coarse = 0.7 * coarse.mean(axis=2, keepdims=True) + 0.3 * coarse
        picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        side *= 2
    for _ in range(12):  # edges
        points = rng.uniform(0, 1, (3, 2)) * (width, height)
        colour = [float(value) for value in rng.normal(0, 0.5, 3)]
        patch = cv2.fillPoly(np.zeros_like(picture), [points.astype(np.int32)], colour, cv2.LINE_AA)
        picture += patch
    low, high = np.percentile(picture, [1, 99])
    picture = np.clip((picture - low) / (high - low), 0, 1).astype(np.float32)
    picture.setflags(write=False)
    return picture


def registered_shift(moved: np.ndarray, still: np.ndarray, rounds: int = 12) -> np.ndarray:
    """How far (x, y), in pixels, ``moved`` is displaced against ``still``, by iterated least squares.

    Both are (h, w, 3). Brightness and contrast are fitted along, and both are smoothed a little, so
    that blur and noise disturb little (Lucas and Kanade, 1981).
    """
    a, b = (cv2.GaussianBlur(image @ LUMA, (0, 0), 1.2) for image in (moved, still))
    inside = np.s_[5:-5, 5:-5]
    shift = np.zeros(2)
    for _ in range(rounds):
        warped = cv2.sepFilter2D(b, -1, _shift_taps(shift[0]), _shift_taps(shift[1]))
        slope_x = cv2.Sobel(warped, -1, 1, 0, ksize=3, scale=1 / 8)
        slope_y = cv2.Sobel(warped, -1, 0, 1, ksize=3, scale=1 / 8)
        columns = (-slope_x, -slope_y, warped, np.ones_like(warped))
        system = np.stack([column[inside].ravel() for column in columns], axis=1)
        step_x, step_y, contrast, _ = np.linalg.lstsq(system, a[inside].ravel(), rcond=None)[0]
        step = np.array([step_x, step_y]) / max(contrast, 0.2)
        shift += step * min(1, 0.5 / max(np.hypot(*step), 1e-9))
        if np.hypot(*step) < 1e-4:
            break
    return shift


def _shift_taps(shift: float) -> np.ndarray:
    """Keys' cubic interpolation (a = −0.5) as a filter that moves an image by at most 3 pixels."""
    x = np.abs(np.arange(-5, 6) + np.clip(shift, -3, 3))
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def measure_shifts(preset: str, crops: Sequence[np.ndarray], plans: int, scale: int = 4) -> np.ndarray:
    """(plans, 2) shifts in low-resolution pixels against the antialiased bicubic of the same crop.

    Every crop is used as it is, mirrored and upside down in turn, so that what the estimate owes to
    the picture cancels in the mean and what it owes to the pipeline stays.
    """
    rng = np.random.default_rng(1)
    shifts = []
    for i in range(plans):
        turn = i // len(crops) % 4
        crop = np.ascontiguousarray(crops[i % len(crops)][:: 1 - turn // 2 * 2, :: 1 - turn % 2 * 2])
        low_res, _ = degrade(crop, rng, preset, scale)
        reference = resize(crop, crop.shape[0] // scale, crop.shape[1] // scale)
        shifts.append(registered_shift(low_res, reference))
    return np.array(shifts)


def find_constants(preset: str, plans: int, size: int = 64) -> tuple[float, int]:
    """Least ratio of the output's contrast to the bicubic's over many plans, and how many were bad.

    Bad: constant, not finite, or outside of [0, 1].
    """
    images = [textured(seed, size, size) for seed in range(8)]
    contrasts = [float((resize(image, size // 4, size // 4) @ LUMA).std()) for image in images]
    rng = np.random.default_rng(2)
    least, bad = math.inf, 0
    for i in range(plans):
        low_res, _ = degrade(images[i % 8], rng, preset)
        contrast = float((low_res @ LUMA).std())
        least = min(least, contrast / contrasts[i % 8])
        bad += not (contrast > 1e-4 and low_res.min() >= 0 and low_res.max() <= 1)
    return least, bad


def samples_per_second(make: Callable[[], object], seconds: float) -> float:
    """How often ``make`` runs in a second, after one run to warm up; processor time of one thread."""
    make()
    start = time.process_time()
    for count in itertools.count(1):
        make()
        if (spent := time.process_time() - start) > seconds:
            return count / spent
    raise AssertionError("unreachable")


def weaker_structure(image: np.ndarray) -> float:
    """The smaller eigenvalue of the mean structure tensor at a quarter of the size: in no direction less."""
    small = cv2.GaussianBlur(resize(image, 128, 128, "area") @ LUMA, (0, 0), 1.2)
    x, y = cv2.Sobel(small, -1, 1, 0, ksize=3, scale=1 / 8), cv2.Sobel(small, -1, 0, 1, ksize=3, scale=1 / 8)
    tensor = [[(x * x).mean(), (x * y).mean()], [(x * y).mean(), (y * y).mean()]]
    return math.sqrt(max(0.0, float(np.linalg.eigvalsh(tensor)[0]))) / 8


def detailed_crops(folder: Path) -> list[np.ndarray]:
    """From each photograph the 1024 × 1024 crop with the most structure in its weaker direction."""
    crops = []
    for path in find_images((folder,)):
        image = read_image(path)
        places = itertools.product(range(0, image.shape[0] - 1023, 128), range(0, image.shape[1] - 1023, 128))
        found = [image[top : top + 1024, left : left + 1024] for top, left in places]
        best = max(found, key=weaker_structure)
        if weaker_structure(best) > 0.0015:
            crops.append(best.copy())
    return crops
