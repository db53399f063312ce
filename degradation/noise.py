"""Gaussian, speckle and Poisson noise. Images are float32 (H, W, 3) RGB in [0, 1], and stay there."""

from __future__ import annotations

import numpy as np

from degradation.plan import Matrix3, NoiseKind

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def gaussian_field(
    rng: np.random.Generator, shape: tuple[int, ...], kind: NoiseKind, mixing: Matrix3 | None = None
) -> np.ndarray:
    """Noise of zero mean, float32 of shape (H, W, 3).

    "colour": each colour by itself, variance 1; "grey": the same value in all three, variance 1;
    "correlated": covariance M Mᵀ between the colours, M being ``mixing``.
    Source: arXiv 2103.14006, section 3.4. Raises ValueError for an unknown kind or a missing mixing.
    """
    if kind == "grey":
        return np.broadcast_to(rng.standard_normal((*shape[:2], 1), dtype=np.float32), shape)
    white = rng.standard_normal(shape, dtype=np.float32)
    if kind == "colour":
        return white
    if kind != "correlated" or mixing is None:
        raise ValueError(f"noise is colour, grey or correlated (with a mixing matrix); got {kind!r}")
    return white @ np.asarray(mixing, np.float32).T


def gaussian_noise(
    image: np.ndarray,
    rng: np.random.Generator,
    level: float,
    kind: NoiseKind = "colour",
    mixing: Matrix3 | None = None,
) -> np.ndarray:
    """The image plus ``level``/255 times ``gaussian_field``, clipped to [0, 1]."""
    field = gaussian_field(rng, image.shape, kind, mixing)
    return np.clip(image + np.float32(level / 255) * field, 0, 1)


def speckle_noise(
    image: np.ndarray,
    rng: np.random.Generator,
    level: float,
    kind: NoiseKind = "colour",
    mixing: Matrix3 | None = None,
) -> np.ndarray:
    """The image x plus x · level/255 times ``gaussian_field``, clipped to [0, 1]."""
    field = gaussian_field(rng, image.shape, kind, mixing)
    return np.clip(image + image * (np.float32(level / 255) * field), 0, 1)


def poisson_noise(image: np.ndarray, rng: np.random.Generator, peak: float, grey: bool = False) -> np.ndarray:
    """Poisson(peak · x) / peak for each colour, or what that adds to the grey image added to all three.

    ``peak`` is the number of photons at full scale. Clipped to [0, 1]. Raises ValueError if it is ≤ 0.
    """
    if peak <= 0:
        raise ValueError(f"Poisson noise needs a peak above 0 photons, got {peak}")
    if not grey:
        return np.clip(rng.poisson(image * peak) / np.float32(peak), 0, 1).astype(np.float32)
    luma = image @ LUMA
    added = rng.poisson(luma * peak) / peak - luma
    return np.clip(image + added[..., None], 0, 1).astype(np.float32)
