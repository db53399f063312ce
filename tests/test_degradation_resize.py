"""Resizing keeps images where they are, and is the antialiased bicubic that the field means."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from degradation.blur import gaussian_kernel
from degradation.resize import decimate, resize
from tests.degradation_measures import textured

METHODS = ("linear", "cubic", "area", "bicubic")


def blob(height, width, y, x, sigma):
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2))
    return np.repeat(spot[..., None], 3, axis=2).astype(np.float32)


def centroid(image):
    """(y, x) of the mass, as fractions of height and width."""
    mass = image.astype(np.float64).mean(axis=2)
    height, width = mass.shape
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    return np.array([(mass * rows).sum() / height, (mass * columns).sum() / width]) / mass.sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(64, 48), (37, 29), (128, 96), (64, 192), (300, 230), (300, 50)])
def test_no_resize_moves_the_image(method, size):
    image = blob(256, 192, 120.3, 101.7, 14)
    moved = (centroid(resize(image, *size, method)) - centroid(image)) * (64, 48)
    assert np.abs(moved).max() < 0.005  # low-resolution pixels at scale 4


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.4])
def test_decimation_does_not_move_the_image(factor, sigma):
    image = blob(240, 192, 120.3, 101.7, 20)
    small = decimate(image, factor, sigma)
    assert small.shape == (240 // factor, 192 // factor, 3)
    assert np.abs(centroid(small) - centroid(image)).max() * 240 / factor < 0.005


def test_decimation_is_the_papers_blur_and_stride():
    image = textured(0, 48, 64)
    rows, columns = np.mgrid[-20:21, -20:21]
    kernel = np.exp(-((rows - 1.5) ** 2 + (columns - 1.5) ** 2) / (2 * 1.2**2))  # peak 1.5 pixels off
    kernel /= kernel.sum()
    blurred = ndimage.correlate(image.astype(np.float64), kernel[:, :, None], mode="mirror")
    assert np.allclose(decimate(image, 4, 1.2), blurred[::4, ::4], atol=1e-5)


def test_bicubic_is_the_antialiased_one_of_torch():
    image = textured(1, 96, 128)
    tensor = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
    for size in ((24, 32), (50, 77), (200, 300)):
        expected = torch.nn.functional.interpolate(tensor, size, mode="bicubic", antialias=True)
        expected = expected[0].clamp(0, 1).numpy().transpose(1, 2, 0)
        assert np.allclose(resize(image, *size), expected, atol=2e-5)


def test_area_is_the_mean_and_linear_aliases():
    image = textured(2, 32, 32)
    means = image.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    assert np.allclose(resize(image, 8, 8, "area"), means, atol=1e-6)
    middle = image.reshape(8, 4, 8, 4, 3)[:, 1:3, :, 1:3].mean(axis=(1, 3))
    assert np.allclose(resize(image, 8, 8, "linear"), middle, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_values_stay_in_range_and_height_comes_first(method):
    image = (textured(3, 40, 24) > 0.5).astype(np.float32)  # hard edges overshoot
    result = resize(image, 70, 33, method)
    assert result.shape == (70, 33, 3) and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1
    assert np.array_equal(resize(image, 40, 24, method), image)


def test_what_cannot_be_done_is_refused():
    image = textured(0, 18, 20)
    with pytest.raises(ValueError, match="lanczos"):
        resize(image, 4, 4, "lanczos")
    with pytest.raises(ValueError, match="0×4"):
        resize(image, 0, 4)
    with pytest.raises(ValueError, match="100000×100000"):
        resize(image, 100_000, 100_000)
    with pytest.raises(ValueError, match="not a multiple"):
        decimate(image, 4, 1.0)


def test_gaussian_kernel_of_the_decimation_has_no_even_size():
    with pytest.raises(ValueError, match="odd"):
        decimate(textured(0, 16, 16), 4, 1.0, size=24)
    with pytest.raises(ValueError, match="odd"):
        gaussian_kernel(1, 1, 0, 6)
    with pytest.raises(ValueError, match="at most 1001"):
        gaussian_kernel(1, 1, 0, 100_001)
