"""The one place where pictures become tensors and tensors pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # reading and writing pictures needs no torch, and who only does that does not load it
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
LOSSY = ("JPEG", "WEBP")  # their blocks are not wanted back
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
SMALLEST_SIDE = 8
VIEWS = 8  # of a picture: four turns of it and of its mirror image
SLACK = 0.5  # beyond [-1, 1] of tensors: more than a resize or a decoder overshoots by


class ImageError(ValueError):
    """A picture that cannot be read or written; its text says why and what is accepted."""


class TooLarge(ImageError):
    """A picture of more pixels than are accepted."""


@dataclass(frozen=True)
class Picture:
    """A picture as its file holds it."""

    pixels: np.ndarray
    """uint8 or uint16, (H, W, C): C = 1 grey, 2 grey with alpha, 3 RGB, 4 RGB with alpha. Not premultiplied."""
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    """Pixels per inch of its width and height, which stay as they are: four times as large it prints so."""
    format: str | None = None
    """Of the file that it was read from, one of FORMATS."""

    def consistency(self, asked: int | None) -> int | None:
        """How many times its enlargement is projected: as often as asked; if not asked never for a lossy file, and as
        the model does it (None) for any other."""
        return 0 if asked is None and self.format in LOSSY else asked


def with_pixels(picture: Picture, pixels: np.ndarray) -> Picture:
    """The same profile and EXIF around other pixels."""
    return replace(picture, pixels=pixels)


def to_tensor(
    image: Image.Image | np.ndarray | Tensor | Sequence[Image.Image | np.ndarray | Tensor],
) -> Tensor:
    """RGB pictures of one size to float32 (N, 3, H, W) in [-1, 1].

    Takes PIL RGB, uint8 or uint16 (H, W, 3), float tensors (N, 3, H, W) or (3, H, W) already in [-1, 1], or a
    sequence of these. Raises ValueError for other shapes, modes and types, and for tensors of other values.
    """
    import torch

    if isinstance(image, Sequence) and not isinstance(image, str | bytes):
        tensors = [to_tensor(item) for item in image]
        if not tensors:
            raise ValueError("no picture given")
        if len({t.shape[-2:] for t in tensors}) > 1:
            raise ValueError(f"pictures of one batch must have one size, not {[tuple(t.shape[-2:]) for t in tensors]}")
        return torch.cat(tensors)
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(f"the picture's mode is {image.mode}; convert it to RGB first")
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"got {image.dtype} {image.shape}; it must be uint8 or uint16 of shape (H, W, 3)")
        top = np.iinfo(image.dtype).max
        values = torch.from_numpy(np.ascontiguousarray(image).astype(np.float32))
        return values.permute(2, 0, 1)[None].mul(2 / top).sub(1)
    if not isinstance(image, torch.Tensor):
        kind = type(image).__name__
        raise ValueError(f"got a {kind}; it must be PIL RGB, an array or a tensor (sr3.decoding.read reads files)")
    tensor = image if image.ndim == 4 else image[None]
    if tensor.ndim != 4 or tensor.shape[1] != 3 or not tensor.is_floating_point():
        raise ValueError(f"got {image.dtype} {tuple(image.shape)}; it must be floating point (N, 3, H, W) in [-1, 1]")
    if not len(tensor):
        raise ValueError("no picture given")
    low, high = (float(v) for v in tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
    if not (low >= -1 - SLACK and high <= 1 + SLACK):  # a NaN fails both comparisons
        raise ValueError(f"got values of {low:g} to {high:g}; they must be finite and in [-1, 1]")
    return tensor.float()


def _to_levels(tensor: Tensor, top: int) -> np.ndarray:
    levels = tensor.detach().float().clamp(-1, 1).add_(1).mul_(top / 2).round_()
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def to_uint8(tensor: Tensor) -> list[np.ndarray]:
    """(N, 3, H, W) in [-1, 1] to N arrays, uint8 (H, W, 3). The inverse of `to_tensor` on eight bits."""
    return list(_to_levels(tensor, 255).astype(np.uint8))


def to_uint16(tensor: Tensor) -> list[np.ndarray]:
    """The same on sixteen bits."""
    return list(_to_levels(tensor, 65535).astype(np.uint16))
