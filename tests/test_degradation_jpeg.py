"""JPEG goes through a real codec, on the right channels, in place."""

import io

import numpy as np
import pytest
from PIL import Image

from degradation.jpeg import jpeg
from tests.degradation_measures import textured


def psnr(a, b):
    return -10 * np.log10(np.mean((a - b) ** 2) + 1e-20)


@pytest.mark.parametrize("subsampling, number", [("4:4:4", 0), ("4:2:2", 1), ("4:2:0", 2)])
def test_it_is_what_pillows_codec_makes(subsampling, number):
    image = textured(0, 70, 90)
    stream = io.BytesIO()
    pixels = np.rint(image * 255).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", quality=60, subsampling=number)
    expected = np.asarray(Image.open(stream)).astype(np.float32) / 255
    assert psnr(jpeg(image, 60, subsampling), expected) > 45


def test_quality_and_subsampling_order_as_they_should():
    image = textured(1, 96, 96)
    errors = [psnr(jpeg(image, quality), image) for quality in (10, 30, 60, 95)]
    assert errors == sorted(errors)
    kinds = [psnr(jpeg(image, 95, kind), image) for kind in ("4:2:0", "4:2:2", "4:4:4")]
    assert kinds == sorted(kinds)


def test_red_stays_red_and_blue_stays_blue():
    image = np.zeros((32, 32, 3), np.float32)
    image[..., 0], image[:, 16:] = 0.9, (0.1, 0.2, 0.8)
    result = jpeg(image, 95, "4:4:4")
    assert np.abs(result - image).max() < 0.06
    # Chroma is blurred by subsampling, luminance is not: with channels exchanged this would differ.
    stripes = np.zeros((32, 32, 3), np.float32)
    stripes[:, ::2] = (0.299, 0.299, 0.299)
    assert psnr(jpeg(stripes, 95), stripes) > 35


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (17, 33)])
def test_any_size_and_no_change_of_the_input(size):
    image = textured(2, 40, 40)[: size[0], : size[1]].copy()
    before = image.copy()
    result = jpeg(image, 50)
    assert result.shape == image.shape and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1
    assert np.array_equal(image, before)


@pytest.mark.parametrize("quality, subsampling", [(0, "4:2:0"), (101, "4:2:0"), (50, "4:1:0")])
def test_what_cannot_be_done_is_refused(quality, subsampling):
    with pytest.raises(ValueError, match=r"quality|subsampling"):
        jpeg(textured(0, 8, 8), quality, subsampling)


def test_sides_that_no_jpeg_has_are_refused():
    with pytest.raises(ValueError, match="4x70000 pixels is larger than a JPEG can be"):
        jpeg(np.zeros((70_000, 4, 3), np.float32), 50)
