"""Evaluating a network in overlapping tiles, blended, so that memory does not grow with the picture."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Protocol

import torch
from torch import Tensor

TILE = 384
OVERLAP = 160  # at which tiles of the bundled model differ from the whole by a level of 255, but for single values


@dataclass(frozen=True)
class Tiling:
    """Sides in low-resolution pixels. A picture no larger than `size` is evaluated in one piece. Where tiles overlap by
    much less than OVERLAP, they show."""

    size: int = TILE
    overlap: int = OVERLAP

    def __post_init__(self) -> None:
        if self.overlap < 0 or self.size <= 2 * self.overlap:
            raise ValueError(f"tile size {self.size} must be larger than twice the overlap {self.overlap}")


def starts(length: int, size: int, overlap: int, multiple: int) -> list[int]:
    """Where tiles of `size` begin along a side of `length`: multiples of `multiple`, neighbours sharing at least
    `overlap`; the last tile may be shorter. `size` is a multiple of `multiple`. Raises ValueError where the tiles would
    not move on."""
    stride = (size - overlap) // multiple * multiple
    if stride < 1:
        raise ValueError(f"tiles of {size} pixels that overlap by {overlap} are too small for steps of {multiple}")
    return list(range(0, max(length - size, 0) + stride, stride))


def ramp(size: int, overlap: int, first: bool, last: bool, scale: int) -> Tensor:
    """Blending weights along one side of a tile: (size·scale,). They rise over the inner half of the overlap, so
    that the outermost pixels, which see the tile's border, count for nothing."""
    position = torch.arange(size * scale, dtype=torch.float32).add_(0.5) / scale
    quarter = max(overlap / 4, 1e-3)
    weight = torch.ones_like(position)
    if not first:
        weight = weight * ((position - quarter) / (2 * quarter)).clamp(0, 1)
    if not last:
        weight = weight * ((size - position - quarter) / (2 * quarter)).clamp(0, 1)
    return weight


def weights(spans: Sequence[slice], length: int, overlap: int, scale: int) -> list[Tensor]:
    """The ramp of each of the tiles along a side of `length`, divided so that they add up to 1 everywhere. What a
    tile counts at a pixel is the product of its two sides' weights: these then add up to 1 as well."""
    ramps = [ramp(s.stop - s.start, overlap, s.start == 0, s.stop == length, scale) for s in spans]
    total = torch.zeros(length * scale)
    for span, each in zip(spans, ramps, strict=True):
        total[span.start * scale : span.stop * scale] += each
    return [each / total[s.start * scale : s.stop * scale] for s, each in zip(spans, ramps, strict=True)]


def spans(length: int, size: int, overlap: int, multiple: int) -> list[slice]:
    """The tiles along a side."""
    return [slice(start, min(start + size, length)) for start in starts(length, size, overlap, multiple)]


def boxes(height: int, width: int, tiling: Tiling, multiple: int) -> Iterator[tuple[slice, slice]]:
    """The tiles of a picture: rows and columns."""
    size = tiling.size // multiple * multiple
    for rows in spans(height, size, tiling.overlap, multiple):
        for columns in spans(width, size, tiling.overlap, multiple):
            yield rows, columns


def count(height: int, width: int, tiling: Tiling, multiple: int) -> int:
    """How many tiles `evaluate` takes for a picture of this size."""
    return sum(1 for _ in boxes(height, width, tiling, multiple))


class Sliceable(Protocol):
    """What `evaluate` cuts: a tensor (N, C, H, W), or what gives any part of one."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, where: tuple[EllipsisType, slice, slice], /) -> Tensor: ...


def evaluate(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Sliceable],
    tiling: Tiling,
    multiple: int,
    on_tile: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """`function` of `inputs`, the first (N, C, H, W), in tiles.

    Each output's sides may be a whole multiple of its input's. Equal to `function(*inputs)` but for what the
    network sees beyond a quarter of the overlap.
    """
    height, width = inputs[0].shape[-2:]
    size = tiling.size // multiple * multiple
    down, across = (spans(n, size, tiling.overlap, multiple) for n in (height, width))
    if len(down) == len(across) == 1:
        outputs = list(function(*(x[..., :, :] for x in inputs)))
        on_tile()
        return outputs
    sums: list[Tensor] = []
    for i, rows in enumerate(down):
        for j, columns in enumerate(across):
            outputs = list(function(*(x[..., rows, columns] for x in inputs)))
            scales = [y.shape[-1] // (columns.stop - columns.start) for y in outputs]
            if not sums:
                sums = [y.new_zeros(*y.shape[:2], height * k, width * k) for y, k in zip(outputs, scales, strict=True)]
            for total, output, k in zip(sums, outputs, scales, strict=True):
                tall = weights(down, height, tiling.overlap, k)[i].to(output)
                wide = weights(across, width, tiling.overlap, k)[j].to(output)
                part = total[..., rows.start * k : rows.stop * k, columns.start * k : columns.stop * k]
                part.addcmul_(output * tall[:, None], wide)
            on_tile()
    return sums
