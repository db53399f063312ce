"""Resizing. Images are float32 (H, W, 3) in [0, 1].

Every method maps the whole extent of the image onto the whole extent of the result (pixel centres at
half-integers), so any chain of them keeps an image aligned with its source.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from degradation.blur import gaussian_taps

_MOST_PIXELS = 2**27  # 1.6 GB of float32
_CV2 = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "bicubic") -> np.ndarray:
    """The image at height × width pixels, clipped to [0, 1].

    "linear" and "cubic" (a = −0.75) read only the nearest 2 × 2 and 4 × 4 pixels, so they alias when
    they shrink, as in the paper; "area" averages; "bicubic" is the antialiased one (a = −0.5, the
    kernel stretched by the scale) of MATLAB and Pillow. Raises ValueError for an unknown method or a
    size under 1 or over 2²⁷ pixels.
    """
    check_resize(height, width, interpolation)
    if interpolation == "bicubic":
        return np.clip(_bicubic(image, height, width), 0, 1)
    if interpolation == "area" and (height < image.shape[0]) != (width < image.shape[1]):
        # Averaging along the side that shrinks; asked for both at once, OpenCV would skip pixels of it.
        smaller = (min(width, image.shape[1]), min(height, image.shape[0]))
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    resized = cv2.resize(image, (width, height), interpolation=_CV2[interpolation])
    return np.clip(resized, 0, 1, out=resized)


def check_resize(height: int, width: int, interpolation: str) -> None:
    """Raises ValueError for an unknown method or a size under 1 or over 2²⁷ pixels."""
    if height < 1 or width < 1 or height * width > _MOST_PIXELS:
        raise ValueError(f"cannot resize to {height}×{width} pixels")
    if interpolation != "bicubic" and interpolation not in _CV2:
        raise ValueError(f"interpolation is one of {', '.join(_CV2)}, bicubic; got {interpolation!r}")


def _bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    planes = (Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2]))
    resized = [np.asarray(p.resize((width, height), Image.Resampling.BICUBIC)) for p in planes]
    return np.stack(resized, axis=-1)


def decimate(image: np.ndarray, factor: int, sigma: float, size: int = 25) -> np.ndarray:
    """Every factor-th pixel of the Gaussian-blurred image: (H, W, 3) → (H/factor, W/factor, 3).

    Pixel i of the result is centred on factor · i + (factor − 1)/2 in the source. The stride starts
    at the pixel nearest to that centre, and the kernel's peak is shifted by what is left (half a pixel
    for even factors), so the result stays aligned. Source: arXiv 2103.14006, section 3.3.
    Raises ValueError for a size that is not a multiple of the factor.
    """
    height, width = image.shape[:2]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"cannot take every {factor}-th pixel of {height}×{width}: not a multiple")
    start = (factor - 1) // 2
    taps = gaussian_taps(sigma, size, centre=(factor - 1) / 2 - start)
    blurred = cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(blurred[start::factor, start::factor])
