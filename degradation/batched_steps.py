"""Steps of one kind, each with its own parameters, taken by a group of images at once. Needs torch.

Each function takes images (n, 3, H, W) whose first ``sizes[i]`` rows and columns count, and as many
steps. They do what the functions of the same names do to single images; see there for the sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from degradation.batched_borders import Size, mirror_pad
from degradation.batched_jpeg import jpeg_batch
from degradation.batched_noise import camera_noise_batch, gaussian_noise_batch, poisson_noise_batch
from degradation.batched_separable import apply_separable, blur_matrix, gaussian_taps, resize_matrix
from degradation.blur import check_kernel, gaussian_kernel
from degradation.jpeg import check_jpeg
from degradation.plan import (
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
)
from degradation.resize import check_resize


def apply_group(
    images: Tensor, sizes: Sequence[Size], steps: Sequence[Any], generator: torch.Generator | None
) -> Tensor:
    """The group's images after one step each; all steps are of one type, interpolation and factor."""
    match steps[0]:
        case Blur():
            return _blur(images, sizes, [s.sigma for s in steps], [s.size for s in steps])
        case AnisotropicBlur():
            return _anisotropic_blur(images, sizes, steps)
        case Resize():
            return _resize(images, sizes, steps)
        case Decimate():
            return _decimate(images, sizes, steps)
        case GaussianNoise() | SpeckleNoise():
            return gaussian_noise_batch(images, sizes, steps, generator)
        case PoissonNoise():
            return poisson_noise_batch(images, sizes, steps, generator)
        case CameraNoise():
            return camera_noise_batch(images, sizes, steps, generator)
        case Jpeg():
            return _jpeg(images, sizes, steps)
        case Sharpen():
            return _sharpen(images, sizes, steps)
    raise TypeError(f"not a step: {steps[0]!r}")


def _blur(images: Tensor, sizes: Sequence[Size], sigmas: Sequence[float], kernel_sizes: Sequence[int]) -> Tensor:
    for size, each in zip(kernel_sizes, sigmas, strict=True):
        check_kernel(size, each)
    sigma = torch.tensor(sigmas, device=images.device, dtype=torch.float64)
    kernel_size = torch.tensor(kernel_sizes, device=images.device)
    taps = gaussian_taps(sigma, kernel_size, torch.zeros_like(sigma), max(kernel_sizes))
    rows, columns = (blur_matrix(taps, [size[axis] for size in sizes]) for axis in (0, 1))
    return apply_separable(images, rows, columns)


def _anisotropic_blur(images: Tensor, sizes: Sequence[Size], steps: Sequence[AnisotropicBlur]) -> Tensor:
    largest = max(step.size for step in steps)
    kernels = np.zeros((len(steps), largest, largest), np.float32)
    for kernel, step in zip(kernels, steps, strict=True):
        edge = (largest - step.size) // 2
        inside = np.s_[edge : edge + step.size]
        kernel[inside, inside] = gaussian_kernel(step.sigma_x, step.sigma_y, step.angle, step.size)
    weights = torch.from_numpy(kernels).to(images.device)[:, None].repeat_interleave(3, dim=0)
    padded = mirror_pad(images, sizes, largest // 2)
    stacked = padded.reshape(1, -1, *padded.shape[2:])
    blurred = F.conv2d(stacked, weights, groups=len(weights))
    return blurred.view_as(images).clamp(0, 1)


def _resize(images: Tensor, sizes: Sequence[Size], steps: Sequence[Resize]) -> Tensor:
    method = steps[0].interpolation
    for step in steps:
        check_resize(step.height, step.width, method)
    rows = resize_matrix([h for h, _ in sizes], [s.height for s in steps], method, images.device)
    columns = resize_matrix([w for _, w in sizes], [s.width for s in steps], method, images.device)
    return apply_separable(images, rows, columns).clamp(0, 1)


def _decimate(images: Tensor, sizes: Sequence[Size], steps: Sequence[Decimate]) -> Tensor:
    factor = steps[0].factor
    if factor < 1 or any(side % factor for size in sizes for side in size):
        raise ValueError(f"cannot take every {factor}-th pixel of {sizes}: not multiples")
    for step in steps:
        check_kernel(step.size, step.sigma)
    start = (factor - 1) // 2
    sigma = torch.tensor([s.sigma for s in steps], device=images.device, dtype=torch.float64)
    kernel_size = torch.tensor([s.size for s in steps], device=images.device)
    centre = torch.full_like(sigma, (factor - 1) / 2 - start)
    taps = gaussian_taps(sigma, kernel_size, centre, max(s.size for s in steps))
    rows, columns = (blur_matrix(taps, [size[axis] for size in sizes], start, factor) for axis in (0, 1))
    return apply_separable(images, rows, columns)


def _jpeg(images: Tensor, sizes: Sequence[Size], steps: Sequence[Jpeg]) -> Tensor:
    for step in steps:
        check_jpeg(step.quality, step.subsampling)
    quality = torch.tensor([step.quality for step in steps], device=images.device)
    return jpeg_batch(images, sizes, quality, steps[0].subsampling)


def _sharpen(images: Tensor, sizes: Sequence[Size], steps: Sequence[Sharpen]) -> Tensor:
    radii = [step.radius for step in steps]
    sigmas = [0.3 * ((radius - 1) * 0.5 - 1) + 0.8 for radius in radii]
    weight, threshold = (
        images.new_tensor(values)[:, None, None, None]
        for values in ([step.weight for step in steps], [step.threshold for step in steps])
    )
    residual = images - _blur(images, sizes, sigmas, radii)
    soft_mask = _blur((residual.abs() * 255 > threshold).float(), sizes, sigmas, radii)
    sharpened = (images + weight * residual).clamp(0, 1)
    return soft_mask * sharpened + (1 - soft_mask) * images
