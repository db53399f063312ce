"""Kernels, noise and JPEG against basicsr's, where it is installed (``sr3/reference.py``)."""

import math

import numpy as np
import pytest
import torch

from degradation.batched_jpeg import jpeg_batch
from degradation.blur import gaussian_kernel
from degradation.jpeg import jpeg
from degradation.noise import gaussian_noise, poisson_noise
from sr3.reference import load
from tests.degradation_measures import textured

theirs = load("data.degradations")
pytestmark = pytest.mark.skipif(theirs is None, reason="basicsr is not installed")


def psnr(a, b):
    return -10 * math.log10(float(np.mean((a - b) ** 2)) + 1e-20)


@pytest.mark.parametrize("size", [7, 15, 21])
@pytest.mark.parametrize("sigma_x, sigma_y, angle", [(2.0, 0.7, 0.5), (0.5, 3.0, -1.2), (1.3, 1.3, 0.0)])
def test_kernels(size, sigma_x, sigma_y, angle):
    kernel = theirs.bivariate_Gaussian(size, sigma_x, sigma_y, angle, isotropic=False)
    assert np.allclose(gaussian_kernel(sigma_x, sigma_y, angle, size), kernel, atol=1e-7)


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_noise(grey):
    image = np.full((200, 200, 3), 0.5, np.float32)
    np.random.seed(0)
    other = theirs.add_gaussian_noise(image, sigma=12, gray_noise=grey) - image
    ours = gaussian_noise(image, np.random.default_rng(0), 12, "grey" if grey else "colour") - image
    assert np.allclose(np.cov(ours.reshape(-1, 3).T), np.cov(other.reshape(-1, 3).T), atol=1e-4)


@pytest.mark.parametrize("grey", [False, True])
def test_poisson_noise(grey):
    """Their peak is the number of different values, rounded up to a power of two: here 256."""
    ramp = np.tile(np.arange(256, dtype=np.float32) / 255, (200, 1))
    image = np.repeat(ramp[..., None], 3, axis=2)
    np.random.seed(0)
    other = theirs.add_poisson_noise(image, gray_noise=grey) - image
    ours = poisson_noise(image, np.random.default_rng(0), 256, grey) - image
    for columns in (slice(20, 60), slice(100, 140), slice(180, 220)):
        assert ours[:, columns].var() == pytest.approx(other[:, columns].var(), rel=0.06)


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg(quality):
    image = textured(0, 64, 80)
    other = theirs.add_jpg_compression(np.ascontiguousarray(image[..., ::-1]), quality)[..., ::-1]
    assert psnr(jpeg(image, quality), other) > 50


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_in_batches_is_closer_to_the_codec_than_theirs(quality):
    image = textured(1, 64, 80)
    tensor = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
    other = load("utils.diffjpeg").DiffJPEG(differentiable=False)(tensor, torch.tensor([float(quality)]))
    ours = jpeg_batch(tensor, [(64, 80)], torch.tensor([quality]), "4:2:0")
    codec = jpeg(image, quality).transpose(2, 0, 1)
    assert psnr(ours[0].numpy(), codec) > max(38, psnr(other[0].detach().numpy(), codec))
