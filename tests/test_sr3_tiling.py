"""Tiles: they cover, they agree with the whole, they blend."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sr3.tiling import Tiling, boxes, count, evaluate


@settings(deadline=None)
@given(height=st.integers(2, 60), width=st.integers(2, 60), size=st.integers(3, 12), overlap=st.integers(0, 5))
def test_tiles_cover_every_pixel_and_overlap_enough(height, width, size, overlap):
    multiple = 4
    tiling = Tiling(size * multiple, min(overlap * multiple, (size * multiple - 1) // 2))
    seen = torch.zeros(height * multiple, width * multiple)
    for rows, columns in boxes(height * multiple, width * multiple, tiling, multiple):
        assert rows.start % multiple == 0 and columns.start % multiple == 0
        assert rows.stop - rows.start <= tiling.size
        seen[rows, columns] += 1
    assert seen.min() >= 1


def test_blending_weights_are_nowhere_zero():
    ones = evaluate(lambda x: [x, F.interpolate(x, scale_factor=4)], [torch.ones(1, 1, 120, 132)], Tiling(40, 16), 4)
    for result in ones:
        assert torch.allclose(result, torch.ones_like(result), atol=1e-6)


def test_a_function_of_each_pixel_is_the_same_in_tiles():
    x = torch.randn(2, 3, 100, 88)
    (tiled,) = evaluate(lambda t: [t * 2 + 1], [x], Tiling(32, 8), 4)
    assert torch.allclose(tiled, x * 2 + 1, atol=1e-5)


def test_a_convolution_is_the_same_in_tiles_that_overlap_enough():
    weight = torch.randn(3, 3, 5, 5)
    x = torch.randn(1, 3, 90, 110)

    def convolve(t):
        return [F.conv2d(F.pad(t, (2, 2, 2, 2), mode="replicate"), weight)]

    (tiled,) = evaluate(convolve, [x], Tiling(40, 12), 2)
    assert torch.allclose(tiled, convolve(x)[0], atol=1e-4)


def test_every_tile_is_reported():
    calls = []
    tiling = Tiling(32, 8)
    evaluate(lambda t: [t], [torch.zeros(1, 1, 64, 96)], tiling, 4, lambda: calls.append(1))
    assert len(calls) == count(64, 96, tiling, 4) > 1


def test_an_overlap_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="larger than twice the overlap"):
        Tiling(16, 8)


def test_tiles_that_would_not_move_on_are_refused():
    with pytest.raises(ValueError, match="tiles of 0 pixels that overlap by 0 are too small for steps of 4"):
        evaluate(lambda t: [t], [torch.ones(1, 1, 8, 8)], Tiling(3, 0), 4)
