"""Camera sensor noise: back to raw values, noise as a sensor makes it, forward to RGB again.

The signal processor's stages and the noise model: Brooks et al., "Unprocessing Images for Learned Raw
Denoising", arXiv 1811.11127, section 3. Demosaicing: Malvar, He, Cutler, "High-quality linear
interpolation for demosaicing of Bayer-patterned color images", ICASSP 2004, figure 2.

Unlike Brooks et al. the inverse gains do not bend highlights, so that without noise the whole is the
identity but for the demosaicing: a degradation must not change an image's exposure.
"""

from __future__ import annotations

import cv2
import numpy as np

from degradation.plan import Matrix3

RED_POSITIONS = {"RGGB": (0, 0), "GRBG": (0, 1), "GBRG": (1, 0), "BGGR": (1, 1)}

_GREEN = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]], np.float32)
_IN_ROW = np.array(
    [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]],
    np.float32,
)
_OPPOSITE = np.array(
    [[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5], [0, 2, 0, 2, 0], [0, 0, -1.5, 0, 0]],
    np.float32,
)
# Green at red and blue; a colour at green from its own row; from its own column; at the opposite colour.
DEMOSAIC_FILTERS = np.stack([_GREEN, _IN_ROW, _IN_ROW.T, _OPPOSITE]) / 8


def camera_noise(
    image: np.ndarray,
    rng: np.random.Generator,
    shot: float,
    read: float,
    red_gain: float = 2.1,
    blue_gain: float = 1.7,
    digital_gain: float = 1.25,
    camera_matrix: Matrix3 = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    pattern: str = "RGGB",
) -> np.ndarray:
    """Float32 (H, W, 3) RGB in [0, 1] → the same with sensor noise of variance shot · x + read.

    x are the raw values of the Bayer mosaic, ``camera_matrix`` takes linear RGB to the camera's
    colours, and the gains are those that the camera applies. Raises ValueError for an unknown
    pattern, negative variances or gains that are not above 0.
    """
    check_camera(pattern, (shot, read), (red_gain, blue_gain, digital_gain))
    gains = np.array([red_gain, 1, blue_gain], np.float32) * np.float32(digital_gain)
    to_camera = np.asarray(camera_matrix, np.float64)
    raw_colours = cv2.transform(to_linear(image), to_camera / gains[:, None])
    raw = mosaic(raw_colours, pattern)
    variance = np.float32(shot) * np.maximum(raw, 0) + np.float32(read)
    raw = raw + np.sqrt(variance) * rng.standard_normal(raw.shape, dtype=np.float32)
    raw = np.minimum(raw, 1)  # the sensor is full; below zero is left until the end, or black turns grey
    colours = demosaic(raw, pattern)
    return to_display(cv2.transform(colours, np.linalg.inv(to_camera) * gains[None, :]))


def check_camera(pattern: str, variances: tuple[float, float], gains: tuple[float, float, float]) -> None:
    """Raises ValueError for an unknown pattern, negative variances or gains that are not above 0."""
    if pattern not in RED_POSITIONS:
        raise ValueError(f"a Bayer pattern is one of {', '.join(RED_POSITIONS)}; got {pattern!r}")
    if min(variances) < 0 or min(gains) <= 0:
        raise ValueError("camera noise needs variances ≥ 0 and gains > 0")


def to_linear(image: np.ndarray) -> np.ndarray:
    """Display values in [0, 1] → linear light: the inverse tone curve, then gamma 2.2 undone."""
    untoned = 0.5 - np.sin(np.arcsin(1 - 2 * np.clip(image, 0, 1)) / 3)
    return np.maximum(untoned, 1e-8) ** np.float32(2.2)


def to_display(linear: np.ndarray) -> np.ndarray:
    """Linear light → display values in [0, 1]: gamma 1/2.2, then the tone curve 3x² − 2x³."""
    x = np.clip(linear, 1e-8, 1) ** np.float32(1 / 2.2)
    return np.clip(x * x * (3 - 2 * x), 0, 1)


def mosaic(colours: np.ndarray, pattern: str) -> np.ndarray:
    """(H, W, 3) → (H, W): the one colour that each pixel of the Bayer pattern sees."""
    row, column = RED_POSITIONS[pattern]
    raw = colours[..., 1].copy()
    raw[row::2, column::2] = colours[row::2, column::2, 0]
    raw[1 - row :: 2, 1 - column :: 2] = colours[1 - row :: 2, 1 - column :: 2, 2]
    return raw


def demosaic(raw: np.ndarray, pattern: str) -> np.ndarray:
    """(H, W) Bayer mosaic → (H, W, 3): Malvar, He and Cutler's linear filters, mirrored at borders."""
    green, in_row, in_column, opposite = (
        cv2.filter2D(raw, -1, kernel, borderType=cv2.BORDER_REFLECT_101) for kernel in DEMOSAIC_FILTERS
    )
    colours = np.empty((*raw.shape, 3), np.float32)
    colours[..., 1] = raw
    row, column = RED_POSITIONS[pattern]
    for channel, (y, x) in ((0, (row, column)), (2, (1 - row, 1 - column))):
        own, same_row = np.s_[y::2, x::2], np.s_[y::2, 1 - x :: 2]
        same_column, other = np.s_[1 - y :: 2, x::2], np.s_[1 - y :: 2, 1 - x :: 2]
        colours[..., 1][own] = green[own]
        colours[..., channel][own] = raw[own]
        colours[..., channel][same_row] = in_row[same_row]
        colours[..., channel][same_column] = in_column[same_column]
        colours[..., channel][other] = opposite[other]
    return colours
