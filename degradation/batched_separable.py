"""Blurs and resizes as pairs of matrices (rows, columns), so that a batch of different ones is one
matrix product: out = A · X · Bᵀ. Borders are part of the matrices. Needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from degradation.batched_borders import mirror


def apply_separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(n, 3, H, W) by (n, h, H) and (n, w, W) → (n, 3, h, w)."""
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def gaussian_taps(sigma: Tensor, size: Tensor, centre: Tensor, width: int) -> Tensor:
    """(n, width) normalised Gaussians, zero outside the middle ``size`` taps; float64 arithmetic."""
    offsets = torch.arange(width, device=sigma.device) - width // 2
    exponent = -0.5 * ((offsets - centre[:, None]) / sigma.clamp(min=1e-6)[:, None]) ** 2
    exponent = exponent.masked_fill(offsets.abs() > (size // 2)[:, None], -torch.inf)
    taps = torch.exp(exponent - exponent.amax(dim=1, keepdim=True))
    return (taps / taps.sum(dim=1, keepdim=True)).float()


def blur_matrix(taps: Tensor, sizes: Sequence[int], start: int = 0, stride: int = 1) -> Tensor:
    """(n, K) taps → (n, out, in): output i is centred on input start + stride · i, mirrored borders.

    ``sizes`` are the n input sizes; out and in are those of the largest.
    """
    largest = max(sizes)
    centres = start + stride * torch.arange(largest // stride, device=taps.device)
    offsets = torch.arange(taps.shape[1], device=taps.device) - taps.shape[1] // 2
    index = mirror((centres[:, None] + offsets)[None], torch.tensor(sizes, device=taps.device)[:, None, None])
    return _scatter(index, taps[:, None].expand(-1, len(centres), -1), largest)


def resize_matrix(old: Sequence[int], new: Sequence[int], method: str, device: torch.device) -> Tensor:
    """(n, max new, max old): each resize from old[i] to new[i] pixels as degradation.resize does it.

    ``method`` is linear, cubic, area or bicubic.
    """
    old_size = torch.tensor(old, device=device)[:, None, None]
    new_size = torch.tensor(new, device=device, dtype=torch.float64)[:, None, None]
    ratio = old_size / new_size
    i = torch.arange(max(new), device=device)[None, :, None]
    centre = (i + 0.5) * ratio - 0.5
    if method == "bicubic":
        return _antialiased(centre, ratio, old_size, max(old))
    if method == "area":
        larger = _enlarge(i, new_size / old_size, old_size, max(old))
        return torch.where(ratio >= 1, _shrink(i, ratio, max(old)), larger)
    taps = torch.arange(2, device=device) if method == "linear" else torch.arange(-1, 3, device=device)
    index = torch.floor(centre).long() + taps
    distance = (centre - index).abs()
    weights = 1 - distance if method == "linear" else _cubic(distance, -0.75)
    return _scatter(torch.minimum(index.clamp(min=0), old_size - 1), weights.float(), max(old))


def _scatter(index: Tensor, weights: Tensor, width: int) -> Tensor:
    """(n, out, K) input indices and weights → dense (n, out, width)."""
    dense = torch.zeros(*index.shape[:2], width, device=weights.device, dtype=weights.dtype)
    return dense.scatter_add_(2, index.expand(weights.shape), weights)


def _enlarge(i: Tensor, scale: Tensor, old_size: Tensor, width: int) -> Tensor:
    """How OpenCV enlarges with area: linear only where an output pixel touches two input pixels.

    ``scale`` is new/old. Its arithmetic is OpenCV's to the bit, for it decides which pixel is taken.
    """
    first = torch.floor(i * (1 / scale))
    part = ((i + 1) - (first + 1) * scale).float()
    part = torch.where(part <= 0, 0, part - torch.floor(part))
    index = first.long() + torch.arange(2, device=i.device)
    weights = torch.cat([1 - part, part], dim=-1)
    return _scatter(torch.minimum(index.clamp(min=0), old_size - 1), weights, width)


def _shrink(i: Tensor, ratio: Tensor, width: int) -> Tensor:
    """Area: each output pixel averages the input that it covers."""
    j = torch.arange(width, device=i.device)
    covered = torch.minimum((i + 1) * ratio, (j + 1).double()) - torch.maximum(i * ratio, j.double())
    return (covered.clamp(min=0) / ratio).float()


def _antialiased(centre: Tensor, ratio: Tensor, old_size: Tensor, width: int) -> Tensor:
    """Cubic with a = −0.5, stretched when shrinking, normalised over the pixels that exist.

    Rows beyond an image's new size are zero: normalised, they would be 0/0, which a later product spreads.
    """
    stretch = ratio.clamp(min=1)
    j = torch.arange(width, device=centre.device)
    weights = _cubic(((j - centre) / stretch).abs(), -0.5) * (j < old_size)
    exists = centre < old_size - 0.5
    return torch.where(exists, weights / weights.sum(dim=-1, keepdim=True), 0).float()


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel at distances x ≥ 0."""
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
