"""Borders of images of different sizes on one canvas: the first ``sizes[i]`` (height, width) pixels of
image i count. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Size = tuple[int, int]


def mirror(index: Tensor, size: Tensor) -> Tensor:
    """Indices reflected at the borders of [0, size − 1], the border pixel not repeated."""
    period = torch.clamp(2 * (size - 1), min=1)
    index = torch.remainder(index, period)
    return torch.minimum(index, period - index).clamp(max=size - 1, min=torch.zeros_like(size))


def mirror_pad(images: Tensor, sizes: Sequence[Size], radius: int) -> Tensor:
    """``radius`` more pixels on each side of each image, reflected at its borders."""
    heights, widths = extents(sizes, images.device)
    rows = torch.arange(-radius, images.shape[2] + radius, device=images.device)
    columns = torch.arange(-radius, images.shape[3] + radius, device=images.device)
    return gather(images, mirror(rows, heights[:, None]), mirror(columns, widths[:, None]))


def gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(n, c, H, W) at (n, h) rows and (n, w) columns → (n, c, h, w)."""
    n = torch.arange(len(images), device=images.device)[:, None, None]
    picked = images.permute(0, 2, 3, 1)[n, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def extents(sizes: Sequence[Size], device: torch.device) -> tuple[Tensor, Tensor]:
    """Heights and widths, (n,) each."""
    table = torch.tensor(sizes, device=device)
    return table[:, 0], table[:, 1]
