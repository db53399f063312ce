"""The measures, against second implementations and known answers."""

import numpy as np
import pytest

from degradation.resize import resize
from sr3.metrics import consistency, luminance, psnr, ssim, ssimulacra2


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


def test_ssim_agrees_with_a_direct_computation():
    first, second = noise(1), (noise(1) * 0.7 + noise(2) * 0.3).astype(np.uint8)
    a, b = (luminance(p)[4:-4, 4:-4] for p in (first, second))
    taps = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
            cov = (window * p * q).sum() - mp * mq
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert ssim(first, second) == pytest.approx(np.mean(values), abs=1e-6)
    assert ssim(first, first) == pytest.approx(1)


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
