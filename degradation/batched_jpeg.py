"""JPEG's loss in torch: colour transform, chroma subsampling, 8 × 8 cosine transform, quantisation.

The tables and their scaling with quality: ITU-T T.81, annex K, as libjpeg applies them. Entropy coding
loses nothing, so it is left out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from degradation.batched_borders import Size, extents, gather

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
_STRIDES = {"4:4:4": (1, 1), "4:2:2": (1, 2), "4:2:0": (2, 2)}
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg_batch(images: Tensor, sizes: Sequence[Size], quality: Tensor, subsampling: str) -> Tensor:
    """(n, 3, H, W) RGB in [0, 1], of which ``sizes`` count, and (n,) qualities → what JPEG leaves of it.

    Borders are repeated up to whole blocks as libjpeg does: to the right the pixels, below the means of
    the chroma; and again when the chroma is enlarged.
    """
    height, width = images.shape[2:]
    whole = _repeat(images, sizes, (-(-height // 16) * 16, -(-width // 16) * 16))
    pixels = torch.round(whole.clamp(0, 1) * 255)
    ycc = torch.round(torch.einsum("cd,ndhw->nchw", images.new_tensor(_TO_YCC), pixels))
    luma = _quantise(ycc[:, :1] - 128, _table(quality, _LUMA)) + 128
    down, across = _STRIDES[subsampling]
    means = _subsample(ycc[:, 1:], (down, across))
    means = _repeat(means, [(-(-h // down), means.shape[3]) for h, _ in sizes], means.shape[2:])
    chroma = _quantise(means, _table(quality, _CHROMA))
    if across != 1:  # libjpeg enlarges with a triangle filter: weights 3/4 and 1/4
        chroma = _repeat(chroma, [(-(-h // down), -(-w // across)) for h, w in sizes], chroma.shape[2:])
        chroma = torch.round(F.interpolate(chroma, size=luma.shape[2:], mode="bilinear"))
    rgb = torch.einsum("cd,ndhw->nchw", images.new_tensor(_TO_RGB), torch.cat([luma, chroma], dim=1))
    return (torch.round(rgb).clamp(0, 255) / 255)[:, :, :height, :width]


def _repeat(planes: Tensor, sizes: Sequence[Size], whole: Sequence[int]) -> Tensor:
    """``whole`` (height, width) of each: its last row and column that count, repeated."""
    heights, widths = extents(sizes, planes.device)
    rows, columns = (torch.arange(side, device=planes.device) for side in whole)
    return gather(planes, torch.minimum(rows, heights[:, None] - 1), torch.minimum(columns, widths[:, None] - 1))


def _subsample(chroma: Tensor, strides: tuple[int, int]) -> Tensor:
    """Means of 1, 2 or 4 pixels; halves are rounded down and up in turn, as in libjpeg."""
    if strides == (1, 1):
        return chroma
    count = strides[0] * strides[1]
    means = F.avg_pool2d(chroma, strides)
    turn = torch.arange(means.shape[3], device=chroma.device, dtype=chroma.dtype) % 2
    return torch.floor(means + (turn + count // 2 - 1) / count)


def _table(quality: Tensor, base: tuple[tuple[int, ...], ...]) -> Tensor:
    """(n,) qualities → (n, 8, 8) quantisation tables."""
    quality = quality.float()
    percent = torch.where(quality < 50, torch.floor(5000 / quality), 200 - 2 * quality)
    steps = torch.tensor(base, device=quality.device, dtype=torch.float32)
    return torch.floor((steps * percent[:, None, None] + 50) / 100).clamp(1, 255)


def _quantise(planes: Tensor, table: Tensor) -> Tensor:
    """(n, c, h, w) in −128…127 through the cosine transform of 8 × 8 blocks, rounded to steps, and back."""
    n, channels, height, width = planes.shape
    transform = planes.new_tensor(_cosines())
    blocks = planes.view(n, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    steps = table[:, None, None, None]
    coefficients = torch.round(transform @ blocks @ transform.T / steps) * steps
    restored = transform.T @ coefficients @ transform
    restored = torch.round(restored).clamp(-128, 127)
    return restored.transpose(3, 4).reshape(n, channels, height, width)


@functools.cache
def _cosines() -> list[list[float]]:
    """The orthonormal 8-point discrete cosine transform (type II)."""
    first = math.sqrt(1 / 8)
    rows = [[0.5 * math.cos(math.pi * k * (2 * x + 1) / 16) for x in range(8)] for k in range(1, 8)]
    return [[first] * 8, *rows]
