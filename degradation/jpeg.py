"""JPEG compression through a real codec (OpenCV's libjpeg)."""

from __future__ import annotations

import cv2
import numpy as np

_SAMPLING = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
}


def jpeg(image: np.ndarray, quality: int, subsampling: str = "4:2:0") -> np.ndarray:
    """Float32 (H, W, 3) RGB in [0, 1] → the same after being rounded to 8 bits, encoded and decoded.

    Raises ValueError for a quality outside 1–100, an unknown chroma subsampling or sides that a JPEG cannot have.
    """
    check_jpeg(quality, subsampling)
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        int(quality),
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        _SAMPLING[subsampling],
    ]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"an image of {image.shape[1]}x{image.shape[0]} pixels is larger than a JPEG can be")
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(np.float32) / np.float32(255)


def check_jpeg(quality: int, subsampling: str) -> None:
    """Raises ValueError for a quality outside 1–100 and an unknown chroma subsampling."""
    if not 1 <= quality <= 100:
        raise ValueError(f"a JPEG quality is a whole number in 1–100, got {quality}")
    if subsampling not in _SAMPLING:
        raise ValueError(f"chroma subsampling is one of {', '.join(_SAMPLING)}; got {subsampling!r}")
