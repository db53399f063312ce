"""The camera: the identity without noise, aligned, and with the noise of a sensor."""

import numpy as np
import pytest

from degradation.camera import (
    RED_POSITIONS,
    camera_noise,
    demosaic,
    mosaic,
    to_display,
    to_linear,
)
from tests.degradation_measures import textured

MATRIX = ((0.6, 0.3, 0.1), (0.1, 0.7, 0.2), (0.05, 0.2, 0.75))


def smooth(height, width):
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 17 + c) * np.cos(columns / 23 - c) for c in range(3)]
    return (0.5 + 0.4 * np.stack(waves, axis=-1)).astype(np.float32)


def test_the_curves_are_inverses_for_every_8_bit_value():
    values = np.linspace(0, 1, 256, dtype=np.float32)
    assert np.allclose(to_display(to_linear(values)), values, atol=5e-4)
    assert np.all(np.diff(to_linear(values)) > 0)


@pytest.mark.parametrize("pattern", RED_POSITIONS)
def test_each_pixel_keeps_its_own_colour(pattern):
    colours = textured(0, 9, 12)
    raw = mosaic(colours, pattern)
    names = np.array([list(pattern[:2]), list(pattern[2:])])
    for y in range(9):
        for x in range(12):
            assert raw[y, x] == colours[y, x, "RGB".index(names[y % 2, x % 2])]
    restored = demosaic(raw, pattern)
    assert np.allclose(mosaic(restored, pattern), raw)


@pytest.mark.parametrize("pattern", RED_POSITIONS)
def test_demosaicing_restores_linear_ramps(pattern):
    rows, columns = np.mgrid[0:20, 0:26].astype(np.float32)
    ramp = np.stack([0.1 + 0.01 * rows, 0.3 + 0.01 * columns, 0.2 + 0.01 * (rows + columns)], axis=-1)
    inside = np.s_[2:-2, 2:-2]
    assert np.allclose(demosaic(mosaic(ramp, pattern), pattern)[inside], ramp[inside], atol=1e-5)


@pytest.mark.parametrize("pattern", RED_POSITIONS)
def test_without_noise_a_smooth_picture_comes_back(pattern):
    image = smooth(64, 80)
    result = camera_noise(image, np.random.default_rng(0), 0, 0, 2.2, 1.6, 1.3, MATRIX, pattern)
    error = np.abs(result - image)
    assert error[2:-2, 2:-2].max() < 0.01
    assert error.max() < 0.06  # at the border the mirrored half is made up


def test_noise_has_the_variance_of_the_model():
    """Grey, no colour matrix, unit gains: the raw values are the linear ones, so the noise can be read."""
    shot, read = 0.002, 1e-5
    for value in (0.3, 0.7):
        image = np.full((300, 300, 3), value, np.float32)
        noisy = camera_noise(image, np.random.default_rng(1), shot, read, 1, 1, 1)
        green_pixels = to_linear(noisy)[0::2, 1::2, 1]  # measured, not interpolated, in RGGB
        level = float(to_linear(np.float32(value)))
        assert green_pixels.mean() == pytest.approx(level, rel=0.01)
        assert green_pixels.var() == pytest.approx(shot * level + read, rel=0.05)


def test_gains_make_red_and_blue_noisier_than_green():
    image = np.full((200, 200, 3), 0.5, np.float32)
    noisy = camera_noise(image, np.random.default_rng(2), 0.002, 1e-5, 2.4, 1.9, 1.2)
    red, green, blue = (noisy - image).reshape(-1, 3).std(axis=0)
    assert red > blue > green > 0


def test_noise_is_correlated_over_space_as_demosaicing_makes_it():
    image = np.full((200, 200, 3), 0.5, np.float32)
    added = camera_noise(image, np.random.default_rng(3), 0.002, 1e-5)[..., 0] - 0.5
    neighbours = np.corrcoef(added[:, :-1].ravel(), added[:, 1:].ravel())[0, 1]
    assert neighbours > 0.2


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (5, 7)])
def test_tiny_and_odd_sizes_work_and_the_input_is_not_changed(size):
    image = textured(3, 16, 16)[: size[0], : size[1]].copy()
    before = image.copy()
    result = camera_noise(image, np.random.default_rng(4), 0.01, 1e-4, camera_matrix=MATRIX)
    assert result.shape == image.shape and result.dtype == np.float32
    assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1
    assert np.array_equal(image, before)


def test_what_cannot_be_done_is_refused():
    image = smooth(8, 8)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="XTRANS"):
        camera_noise(image, rng, 0.001, 0, pattern="XTRANS")
    with pytest.raises(ValueError, match="gains"):
        camera_noise(image, rng, 0.001, 0, red_gain=0)
    with pytest.raises(ValueError, match="variances"):
        camera_noise(image, rng, -0.001, 0)
