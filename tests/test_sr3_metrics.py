"""The measures, against second implementations and known answers."""

import cv2
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from degradation.resize import resize
from sr3.metrics import consistency, luminance, ms_ssim, psnr, ssim, ssimulacra2


def noise(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_luminance_runs_from_16_to_235():
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    assert luminance(ends)[0] == pytest.approx([16, 235], abs=0.01)


def test_psnr_of_a_known_error():
    first = np.full((40, 40, 3), 100, np.uint8)
    expected = 20 * np.log10(255 / (10 * 219 / 255))
    assert psnr(first, first + np.uint8(10)) == pytest.approx(expected, abs=0.01)


def test_the_border_does_not_count():
    first, second = noise(0), noise(0)
    second[:4] = second[:, -4:] = 0
    assert psnr(first, second) > 100
    assert psnr(first, second, border=3) < 40


def blurred() -> tuple[np.ndarray, np.ndarray]:
    first = cv2.GaussianBlur(noise(0, 200, 230), (0, 0), 1.2)
    return first, cv2.GaussianBlur(first, (0, 0), 1.1)


def test_psnr_and_ssim_agree_with_scikit_image():
    first, second = blurred()
    a, b = (luminance(p)[4:-4, 4:-4] for p in (first, second))
    assert psnr(first, second) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-6)
    expected = structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(first, second) == pytest.approx(expected, abs=1e-9)
    assert ssim(first, first) == pytest.approx(1)


def test_ms_ssim_agrees_with_torchmetrics():
    """0.973581 is what torchmetrics 1.9 says of these luminances; it treats the window's border otherwise."""
    assert ms_ssim(*blurred()) == pytest.approx(0.973581, abs=1e-4)
    assert ms_ssim(blurred()[0], blurred()[0]) == pytest.approx(1)
    assert ms_ssim(noise(0), noise(1)) is None  # too small for five scales


def test_consistency_is_nothing_for_what_reduces_to_the_input():
    high_res = noise(3, 64, 64)
    low_res = np.round(resize(high_res.astype(np.float32) / 255, 16, 16, "bicubic") * 255).astype(np.uint8)
    assert consistency(low_res, high_res) < 0.5
    assert consistency(np.clip(low_res.astype(int) + 10, 0, 255).astype(np.uint8), high_res) > 100


def test_ssimulacra2_knows_the_original():
    original = np.kron(noise(4, 16, 16), np.ones((8, 8, 1), np.uint8))
    assert ssimulacra2(original, original) == pytest.approx(100)
    assert ssimulacra2(original, np.clip(original.astype(int) + 40, 0, 255).astype(np.uint8)) < 90


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="differ in size"):
        psnr(noise(0), noise(0, 40, 40))
