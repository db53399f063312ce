"""Pictures from files and arrays into the pipeline's one form: float32 (H, W, 3) RGB in [0, 1]."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_ORIENTATION_TAG = 0x0112  # EXIF
_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284  # TIFF: 0 is white as zero; 2 is a plane for each colour


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8, uint16, or float in [0, 1], of shape (H, W), (H, W, 1) or (H, W, 3) → float32 (H, W, 3).

    Grey becomes three equal colours. The result is a new array. Raises ValueError for alpha (2 or 4
    channels), other shapes and types, and floats that are not in [0, 1].
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.size == 0:
        raise ValueError(f"a picture has the shape (H, W) or (H, W, 3), got {pixels.shape}")
    channels = pixels.shape[2]
    if channels in (2, 4):
        raise ValueError(f"{channels} channels: transparency cannot be degraded; flatten the picture first")
    if channels not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, got {channels}")
    if pixels.dtype in (np.uint8, np.uint16):
        image = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    elif np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError("a picture of floats has finite values in [0, 1]")
        image = pixels.astype(np.float32)
    else:
        raise ValueError(f"a picture is uint8, uint16 or float, got {pixels.dtype}")
    return np.repeat(image, 3, axis=2) if channels == 1 else image


def read_image(path: Path) -> np.ndarray:
    """The picture in a file, upright (EXIF orientation), float32 (H, W, 3) RGB in [0, 1].

    8 and 16 bits, grey and palettes included; an alpha that hides nothing is left out. Raises ValueError,
    naming the file, for one that is missing, empty, truncated, no picture, too large (over 89 million
    pixels) or transparent.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as picture:
                pixels, orientation = _pixels(picture, data)
        return _upright(to_float(pixels), orientation)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not a picture that can be read") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: too large: over {Image.MAX_IMAGE_PIXELS} pixels") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def find_images(paths: tuple[Path, ...]) -> list[Path]:
    """The files named, and for each folder the pictures directly in it, in order of their names.

    Raises ValueError for a path that does not exist and a folder without pictures, OSError for what may not be read.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"{path}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise ValueError(f"{path}: no such file or folder")
    return found


def _pixels(picture: Image.Image, data: bytes) -> tuple[np.ndarray, int]:
    """The pixels as uint8 or uint16 (H, W) or (H, W, 3) RGB, not yet upright, and the orientation."""
    tiles = getattr(picture, "tile", [])
    deep_colour = picture.mode in ("RGB", "RGBA", "LA") and any("16" in str(tile[3]) for tile in tiles)
    picture.load()
    clear = picture.info.pop("transparency", None)
    hidden = clear is not None and not (isinstance(clear, bytes) and set(clear) <= {255})  # of a palette, or one colour
    alpha = picture.getchannel(len(picture.getbands()) - 1) if picture.mode in _ALPHA_MODES else None
    if hidden or (alpha and alpha.getextrema() != (255, 255)):
        raise ValueError("it has transparency, which cannot be degraded; flatten the picture first")
    orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    tags = getattr(picture, "tag_v2", {})
    if picture.mode in ("RGB", "RGBA") and tags.get(_PLANES) == 2 and 16 in tags.get(_BITS, ()):
        raise ValueError("its 16 bits a colour are in separate planes, which cannot be read")
    if deep_colour:  # Pillow gives 8 of the 16 bits
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is not None and decoded.dtype == np.uint16 and decoded.ndim == 3:
            return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), orientation
    if picture.mode.startswith("I"):
        pixels = np.asarray(picture)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("its values do not fit 16 bits")
        pixels = pixels.astype(np.uint16)
        depth = max(tags.get(_BITS, (16,)))
        if depth < 16:  # white is the largest value of so many bits
            pixels = (pixels.astype(np.uint32) * 65535 // (2**depth - 1)).astype(np.uint16)
        return ~pixels if tags.get(_PHOTOMETRIC) == 0 else pixels, orientation
    if picture.mode == "F":
        return np.asarray(picture), orientation
    return np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB")), orientation


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image as EXIF's orientation (1 to 8) means it to be seen."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
