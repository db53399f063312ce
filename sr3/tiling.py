"""Evaluating a network in overlapping tiles, blended, so that memory does not grow with the picture."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """Sides in low-resolution pixels. A picture no larger than `size` is evaluated in one piece."""

    size: int = 256
    overlap: int = 48

    def __post_init__(self) -> None:
        if self.overlap < 0 or self.size <= 2 * self.overlap:
            raise ValueError(f"tile size {self.size} must be larger than twice the overlap {self.overlap}")


def starts(length: int, size: int, overlap: int, multiple: int) -> list[int]:
    """Where tiles of `size` begin along a side of `length`: multiples of `multiple`, neighbours sharing at least
    `overlap`. `length` and `size` are multiples of `multiple`."""
    if length <= size:
        return [0]
    stride = (size - overlap) // multiple * multiple
    return [*range(0, length - size, stride), length - size]


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


def boxes(height: int, width: int, tiling: Tiling, multiple: int) -> Iterator[tuple[slice, slice, list[bool]]]:
    """The tiles of a picture: rows, columns, and whether they are the first and last down and across."""
    size = tiling.size // multiple * multiple
    tops = starts(height, size, tiling.overlap, multiple)
    lefts = starts(width, size, tiling.overlap, multiple)
    for top in tops:
        for left in lefts:
            edges = [top == tops[0], top == tops[-1], left == lefts[0], left == lefts[-1]]
            yield slice(top, min(top + size, height)), slice(left, min(left + size, width)), edges


def count(height: int, width: int, tiling: Tiling, multiple: int) -> int:
    """How many tiles `evaluate` takes for a picture of this size."""
    return sum(1 for _ in boxes(height, width, tiling, multiple))


def evaluate(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    tiling: Tiling,
    multiple: int,
    on_tile: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """`function` of `inputs`, each (N, C, H, W) of one H and W, in tiles.

    Each output's sides may be a whole multiple of its input's. Equal to `function(*inputs)` but for what the
    network sees beyond a quarter of the overlap.
    """
    height, width = inputs[0].shape[-2:]
    tiles = list(boxes(height, width, tiling, multiple))
    if len(tiles) == 1:
        outputs = list(function(*inputs))
        on_tile()
        return outputs
    sums: list[Tensor] = []
    weights: dict[int, Tensor] = {}
    for rows, columns, (top, bottom, left, right) in tiles:
        outputs = list(function(*(x[..., rows, columns] for x in inputs)))
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        scales = [y.shape[-1] // wide for y in outputs]
        if not sums:
            sums = [y.new_zeros(*y.shape[:2], height * k, width * k) for y, k in zip(outputs, scales, strict=True)]
            weights = {k: torch.zeros(height * k, width * k, device=inputs[0].device) for k in set(scales)}
        placed = set()
        for total, output, k in zip(sums, outputs, scales, strict=True):
            down = ramp(tall, tiling.overlap, top, bottom, k)
            across = ramp(wide, tiling.overlap, left, right, k)
            weight = torch.outer(down, across).to(output.device)
            where = (..., slice(rows.start * k, rows.stop * k), slice(columns.start * k, columns.stop * k))
            total[where] += output * weight.to(output.dtype)
            if k not in placed:
                weights[k][where] += weight
                placed.add(k)
        on_tile()
    return [total.div_(weights[total.shape[-1] // width].to(total.dtype)) for total in sums]
