"""Measures of an enlarged picture against its original, as the field takes them. Pictures are uint8 (H, W, 3) RGB."""

import cv2
import numpy as np

from sr3.model import SCALE

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM's five scales, as published


def luminance(picture: np.ndarray) -> np.ndarray:
    """Y of ITU-R BT.601 in [16, 235], float64 (H, W): MATLAB's rgb2ycbcr, which super-resolution papers use."""
    return picture.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def _cropped(first: np.ndarray, second: np.ndarray, border: int) -> tuple[np.ndarray, np.ndarray]:
    if first.shape != second.shape:
        raise ValueError(f"the pictures differ in size: {first.shape} and {second.shape}")
    height, width = first.shape[:2]
    inner = (slice(border, height - border), slice(border, width - border))
    return luminance(first)[inner], luminance(second)[inner]


def psnr(first: np.ndarray, second: np.ndarray, border: int = SCALE) -> float:
    """Peak signal-to-noise ratio in dB on luminance, without `border` pixels on each side."""
    a, b = _cropped(first, second, border)
    return float(10 * np.log10(255**2 / max(float(np.mean((a - b) ** 2)), 1e-10)))


def _similarity(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Means of SSIM and of its factor of contrast and structure over two planes in [0, 255]."""
    taps = cv2.getGaussianKernel(11, 1.5)

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.sepFilter2D(x, -1, taps, taps)[5:-5, 5:-5]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float(np.mean(light * structure)), float(np.mean(structure))


def ssim(first: np.ndarray, second: np.ndarray, border: int = SCALE) -> float:
    """Structural similarity on luminance (Wang et al., IEEE TIP 13(4), 2004): an 11x11 Gaussian window of σ 1.5."""
    return _similarity(*_cropped(first, second, border))[0]


def ms_ssim(first: np.ndarray, second: np.ndarray, border: int = SCALE) -> float | None:
    """Multi-scale SSIM on luminance (Wang, Simoncelli and Bovik, Asilomar 2003): five scales, each half the one
    before; None for sides below 176 pixels inside the border, which have no fifth scale."""
    a, b = _cropped(first, second, border)
    if min(a.shape) < 11 * 2 ** (len(SCALE_WEIGHTS) - 1):
        return None
    product = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        whole, structure = _similarity(a, b)
        product *= max(whole if scale == len(SCALE_WEIGHTS) - 1 else structure, 0.0) ** weight
        a, b = (_halved(x) for x in (a, b))
    return product


def _halved(plane: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels; an odd last row or column is left out."""
    height, width = (n // 2 for n in plane.shape)
    return plane[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3))


def consistency(low_res: np.ndarray, high_res: np.ndarray) -> float:
    """SR3's consistency (arXiv 2104.07636, section 4): mean squared error, × 1e-5 in units of [0, 1], between the
    input and the antialiased bicubic reduction of the output, whatever its factor. Lower is better.

    Both uint8 or uint16 of (H, W, C); with transparency (C of 2 or 4) colours are premultiplied."""
    from degradation.resize import resize

    height, width = low_res.shape[:2]
    small = resize(_premultiplied(high_res), height, width, "bicubic")
    return float(np.mean((small - _premultiplied(low_res)) ** 2) * 1e5)


def _premultiplied(pixels: np.ndarray) -> np.ndarray:
    """float32 in [0, 1]."""
    values = pixels.astype(np.float32)
    values /= np.iinfo(pixels.dtype).max
    if pixels.shape[2] in (2, 4):
        values[..., :-1] *= values[..., -1:]
    return values


def ssimulacra2(original: np.ndarray, picture: np.ndarray) -> float:
    """SSIMULACRA 2 through the package of that name: 100 is the original, 70 high, 50 medium, 30 low quality."""
    import tempfile
    from pathlib import Path

    from ssimulacra2 import compute_ssimulacra2

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("original.png", "picture.png")]
        for path, pixels in zip(paths, (original, picture), strict=True):
            cv2.imwrite(path, pixels[..., ::-1])
        return float(compute_ssimulacra2(*paths))
