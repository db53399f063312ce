"""Gaussian kernels and blurs; unsharp masking. Images are float32 (H, W, 3) in [0, 1].

Kernels are always odd, so that nothing shifts, and are normalised after the largest exponent has been
subtracted, so that no sigma, however small, underflows to zeros.
"""

from __future__ import annotations

import cv2
import numpy as np

_LARGEST_SIZE = 1001  # taps
_SMALLEST_SIGMA = 1e-6  # pixels; below it the kernel is one tap anyway


def gaussian_taps(sigma: float, size: int, centre: float = 0.0) -> np.ndarray:
    """One-dimensional Gaussian, float64 (size,), sum 1, its peak ``centre`` pixels from the middle tap.

    Raises ValueError for an even or too large size or a negative sigma.
    """
    check_kernel(size, sigma)
    offsets = np.arange(size) - size // 2 - centre
    exponent = -0.5 * (offsets / max(sigma, _SMALLEST_SIGMA)) ** 2
    taps = np.exp(exponent - exponent.max())
    return taps / taps.sum()


def gaussian_kernel(sigma_x: float, sigma_y: float, angle: float, size: int) -> np.ndarray:
    """Gaussian with covariance R diag(sigma_x², sigma_y²) Rᵀ, float64 (size, size), sum 1.

    R turns the x axis (columns) by ``angle`` radians towards the y axis (rows, downwards).
    Source: arXiv 2103.14006, section 3.2. Raises ValueError for an even or too large size or a negative sigma.
    """
    check_kernel(size, sigma_x, sigma_y)
    along = np.arange(size) - size // 2
    x, y = along[None, :], along[:, None]
    u = (x * np.cos(angle) + y * np.sin(angle)) / max(sigma_x, _SMALLEST_SIGMA)
    v = (y * np.cos(angle) - x * np.sin(angle)) / max(sigma_y, _SMALLEST_SIGMA)
    exponent = -0.5 * (u**2 + v**2)
    kernel = np.exp(exponent - exponent.max())
    return kernel / kernel.sum()


def blur(image: np.ndarray, sigma: float, size: int = 25) -> np.ndarray:
    """Isotropic Gaussian blur, mirrored at the borders. Raises ValueError for an even size."""
    taps = gaussian_taps(sigma, size)
    return cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)


def anisotropic_blur(
    image: np.ndarray, sigma_x: float, sigma_y: float, angle: float = 0.0, size: int = 25
) -> np.ndarray:
    """Blur by ``gaussian_kernel``, mirrored at the borders. Raises ValueError for an even size."""
    kernel = gaussian_kernel(sigma_x, sigma_y, angle, size)
    blurred = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return np.clip(blurred, 0, 1, out=blurred)  # large kernels go through a Fourier transform


def sharpen(image: np.ndarray, weight: float = 0.5, radius: int = 51, threshold: float = 10.0) -> np.ndarray:
    """Unsharp masking where the image differs from its blur by more than threshold/255.

    ``radius`` is the Gaussian's odd kernel size; its sigma is 0.3 ((radius − 1)/2 − 1) + 0.8 pixels.
    The mask is itself blurred, so that edges of the sharpened regions do not show.
    Source: the released code of arXiv 2103.14006. Raises ValueError for an even radius.
    """
    sigma = 0.3 * ((radius - 1) * 0.5 - 1) + 0.8
    residual = image - blur(image, sigma, radius)
    mask = (np.abs(residual) * 255 > threshold).astype(np.float32)
    soft_mask = blur(mask, sigma, radius)
    sharpened = np.clip(image + weight * residual, 0, 1)
    return soft_mask * sharpened + (1 - soft_mask) * image


def check_kernel(size: int, *sigmas: float) -> None:
    """Raises ValueError for an even or too large size or a negative sigma."""
    if not 1 <= size <= _LARGEST_SIZE or size % 2 == 0:
        raise ValueError(
            f"a kernel's size must be odd, so that it does not shift the image, and at most {_LARGEST_SIZE}; got {size}"
        )
    if not all(np.isfinite(sigma) and sigma >= 0 for sigma in sigmas):
        raise ValueError(f"a blur's sigma must be a finite number ≥ 0, got {sigmas}")
