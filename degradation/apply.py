"""Applying a plan: deterministic; every random field comes from a seed that the plan holds."""

from __future__ import annotations

import numpy as np

from degradation.blur import anisotropic_blur, blur, sharpen
from degradation.camera import camera_noise
from degradation.draw import check_multiple, sample_plan
from degradation.jpeg import jpeg
from degradation.noise import gaussian_noise, poisson_noise, speckle_noise
from degradation.plan import (
    AnisotropicBlur,
    Blur,
    CameraNoise,
    Decimate,
    GaussianNoise,
    Jpeg,
    Plan,
    PoissonNoise,
    Resize,
    Sharpen,
    SpeckleNoise,
    Step,
)
from degradation.presets import Preset
from degradation.resize import decimate, resize


def apply_plan(image: np.ndarray, plan: Plan) -> np.ndarray:
    """The low-resolution image that the plan makes: float32 (H/scale, W/scale, 3) RGB in [0, 1].

    ``image`` is float32 (H, W, 3) RGB in [0, 1]; it is never changed. The same image and plan give
    the same bits, in another process too (on one machine with one OpenCV).
    Raises ValueError for another shape, type or range, for a size other than the plan's (sizes that
    are not a multiple of the scale are refused: ``crop_to_multiple`` crops), and for steps that end
    at another size than (H/scale, W/scale).
    """
    check_image(image)
    height, width = image.shape[:2]
    if (height, width) != tuple(plan.size):
        raise ValueError(
            f"the plan is for {plan.size[0]}×{plan.size[1]} (height × width) pixels, the image has {height}×{width}"
        )
    check_multiple(height, width, plan.scale)
    result = target(image, plan)
    for step in plan.steps:
        result = apply_step(result, step)
    if result.shape != (height // plan.scale, width // plan.scale, 3):
        raise ValueError(
            f"the plan's steps end at {result.shape[0]}×{result.shape[1]} pixels, "
            f"not at {height // plan.scale}×{width // plan.scale}"
        )
    return result.copy() if np.shares_memory(result, image) else result


def degrade(
    image: np.ndarray, rng: np.random.Generator, preset: Preset | str, scale: int = 4
) -> tuple[np.ndarray, Plan]:
    """Draw a plan for the image and apply it: (low_res, plan). Arguments and errors as in those two."""
    check_image(image)
    plan = sample_plan(rng, preset, scale, (image.shape[0], image.shape[1]))
    return apply_plan(image, plan), plan


def target(image: np.ndarray, plan: Plan) -> np.ndarray:
    """The high-resolution side of the pair: the image, or the sharpened image if the plan says so."""
    return apply_step(image, plan.sharpen) if plan.sharpen else image


def apply_step(image: np.ndarray, step: Step) -> np.ndarray:
    """One step applied to float32 (H, W, 3) RGB in [0, 1]; the image is not changed."""
    match step:
        case Blur(sigma, size):
            return blur(image, sigma, size)
        case AnisotropicBlur(sigma_x, sigma_y, angle, size):
            return anisotropic_blur(image, sigma_x, sigma_y, angle, size)
        case Resize(height, width, interpolation):
            return resize(image, height, width, interpolation)
        case Decimate(factor, sigma, size):
            return decimate(image, factor, sigma, size)
        case GaussianNoise(level, kind, seed, mixing):
            return gaussian_noise(image, np.random.default_rng(seed), level, kind, mixing)
        case PoissonNoise(peak, grey, seed):
            return poisson_noise(image, np.random.default_rng(seed), peak, grey)
        case SpeckleNoise(level, kind, seed, mixing):
            return speckle_noise(image, np.random.default_rng(seed), level, kind, mixing)
        case CameraNoise(shot, read, red, blue, gain, matrix, pattern, seed):
            rng = np.random.default_rng(seed)
            return camera_noise(image, rng, shot, read, red, blue, gain, matrix, pattern)
        case Jpeg(quality, subsampling):
            return jpeg(image, quality, subsampling)
        case Sharpen(weight, radius, threshold):
            return sharpen(image, weight, radius, threshold)
    raise TypeError(f"not a step: {step!r}")


def crop_to_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """The centre of (H, W, …) whose height and width are the largest multiples of the scale: a view.

    Raises ValueError for an image smaller than the scale.
    """
    height, width = image.shape[:2]
    if height < scale or width < scale:
        raise ValueError(f"an image of {height}×{width} pixels has no {scale}×{scale} crop")
    top, left = height % scale // 2, width % scale // 2
    return image[top : top + height - height % scale, left : left + width - width % scale]


def check_image(image: np.ndarray) -> None:
    """Raises ValueError for anything but a finite float32 (H, W, 3) array in [0, 1]."""
    if not isinstance(image, np.ndarray) or image.dtype != np.float32:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"an image is a float32 array in [0, 1], got {kind} (to_float converts)")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image has the shape (height, width, 3), got {image.shape}")
    if image.size == 0 or not (image.min() >= 0 and image.max() <= 1):  # a NaN fails both comparisons
        raise ValueError("an image's values are finite numbers in [0, 1]")
