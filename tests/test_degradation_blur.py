"""Kernels and blurs: odd, normalised, aligned, and never zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from degradation.blur import anisotropic_blur, blur, gaussian_kernel, gaussian_taps, sharpen
from tests.degradation_measures import textured

ODD = st.integers(0, 12).map(lambda half: 2 * half + 1)
SIGMA = st.floats(0, 20)


@settings(deadline=None)
@given(SIGMA, SIGMA, st.floats(-4, 4), ODD)
def test_kernels_are_normalised_symmetric_and_peak_in_the_middle(sigma_x, sigma_y, angle, size):
    kernel = gaussian_kernel(sigma_x, sigma_y, angle, size)
    assert kernel.shape == (size, size)
    assert kernel.sum() == pytest.approx(1)
    assert np.allclose(kernel, kernel[::-1, ::-1])
    assert kernel[size // 2, size // 2] == kernel.max() > 0


@pytest.mark.parametrize("sigma", [0.0, 1e-300, 1e-9, 0.001, 0.0179, 0.1])
def test_a_tiny_sigma_gives_a_delta_and_never_zeros(sigma):
    kernel = gaussian_kernel(sigma, sigma, 0.3, 7)
    assert kernel[3, 3] == pytest.approx(1, abs=1e-9)
    image = textured(0, 20, 24)
    assert np.allclose(blur(image, sigma, 7), image, atol=1e-6)
    assert np.allclose(anisotropic_blur(image, sigma, sigma, 0.3, 7), image, atol=1e-6)
    shifted = gaussian_taps(sigma, 7, centre=0.5)  # between two taps: half of each, also when it is tiny
    assert shifted.sum() == pytest.approx(1)
    assert shifted[3] == pytest.approx(shifted[4])


def test_even_kernels_are_refused():
    image = textured(0, 16, 16)
    for call in (lambda: blur(image, 1, 6), lambda: anisotropic_blur(image, 1, 2, 0, 24)):
        with pytest.raises(ValueError, match="odd"):
            call()


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_a_sigma_that_is_no_width_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        gaussian_taps(sigma, 5)


def test_covariance_and_angle_are_as_asked():
    kernel = gaussian_kernel(3.0, 1.0, np.pi / 6, 41)
    along = np.arange(41) - 20
    x, y = along[None, :], along[:, None]
    covariance = np.array(
        [[(kernel * x * x).sum(), (kernel * x * y).sum()], [(kernel * x * y).sum(), (kernel * y * y).sum()]]
    )
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.array([[c, -s], [s, c]])
    assert np.allclose(covariance, turn @ np.diag([9, 1]) @ turn.T, atol=0.01)


def test_blurs_agree_with_scipy_and_with_each_other():
    image = textured(1, 40, 52)
    kernel = gaussian_kernel(2.0, 0.7, 1.0, 15)
    expected = ndimage.convolve(image.astype(np.float64), kernel[:, :, None], mode="mirror")
    assert np.allclose(anisotropic_blur(image, 2.0, 0.7, 1.0, 15), expected, atol=1e-5)
    assert np.allclose(blur(image, 1.3, 15), anisotropic_blur(image, 1.3, 1.3, 0.4, 15), atol=1e-5)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (2, 3), (5, 1)])
def test_kernels_larger_than_the_image_are_fine(height, width):
    image = textured(2, 16, 16)[:height, :width].copy()
    for result in (blur(image, 3, 25), anisotropic_blur(image, 3, 1, 0.5, 25)):
        assert result.shape == image.shape
        assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1


def test_a_constant_image_stays_constant():
    image = np.full((30, 20, 3), 0.4, np.float32)
    for result in (blur(image, 3, 25), anisotropic_blur(image, 3, 1, 0.5, 25), sharpen(image)):
        assert np.allclose(result, 0.4, atol=1e-5)


def test_sharpening_raises_the_contrast_of_edges_only():
    image = np.full((64, 64, 3), 0.3, np.float32)
    image[:, 32:] = 0.7
    sharpened = sharpen(image, 0.5, 21, 10)
    assert sharpened[32, 33, 0] > 0.72 and sharpened[32, 30, 0] < 0.28
    assert np.allclose(sharpened[:, :4], 0.3, atol=1e-4)
    faint = 0.5 + (image - 0.5) * 0.05  # under the threshold
    assert np.allclose(sharpen(faint, 0.5, 21, 10), faint, atol=1e-6)
