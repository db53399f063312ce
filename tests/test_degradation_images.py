"""Pictures come in whole, upright and in 16 bits where they have them, or are refused by name."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from degradation.images import find_images, read_image, to_float
from tests.degradation_measures import textured
from tests.picture_files import png, tiff


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_comes_back(dtype):
    top = np.iinfo(dtype).max
    values = np.arange(top + 1, dtype=dtype).reshape(16, -1)
    image = to_float(values)
    assert image.shape == (*values.shape, 3) and image.dtype == np.float32
    assert image.min() == 0 and image.max() == 1
    assert np.array_equal(np.rint(image * top).astype(dtype), np.repeat(values[..., None], 3, axis=2))


def test_grey_of_either_shape_and_floats():
    grey = np.linspace(0, 1, 12).reshape(3, 4)
    assert np.array_equal(to_float(grey), to_float(grey[..., None]))
    colour = textured(0, 5, 6)
    assert np.array_equal(to_float(colour), colour)
    assert not np.shares_memory(to_float(colour), colour)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.zeros((4, 4, 4), np.uint8), "transparency"),
        (np.zeros((4, 4, 2), np.uint8), "transparency"),
        (np.zeros((4, 4, 5), np.uint8), "channels"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.full((4, 4), 2.0), r"\[0, 1\]"),
        (np.full((4, 4), np.nan), r"\[0, 1\]"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        to_float(pixels)


def test_files_of_many_kinds(tmp_path):
    pixels = np.rint(textured(1, 20, 30) * 255).astype(np.uint8)
    colour = Image.fromarray(pixels)
    for name in ("a.png", "a.bmp", "a.tif", "a.ppm"):
        colour.save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), to_float(pixels))
    colour.save(tmp_path / "a.webp", lossless=True)
    assert np.array_equal(read_image(tmp_path / "a.webp"), to_float(pixels))
    colour.convert("L").save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), to_float(np.asarray(colour.convert("L"))))
    colour.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 1}
    colour.quantize(16).save(tmp_path / "palette.png")
    assert np.array_equal(
        read_image(tmp_path / "palette.png"), to_float(np.asarray(colour.quantize(16).convert("RGB")))
    )
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg").shape == (20, 30, 3)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_kept(tmp_path, suffix):
    deep = np.random.default_rng(0).integers(0, 65536, (9, 11, 3), dtype=np.uint16)
    path = tmp_path / f"deep.{suffix}"
    cv2.imwrite(str(path), deep[..., ::-1])
    assert np.array_equal(read_image(path), to_float(deep))
    if suffix == "png":
        cv2.imwrite(str(tmp_path / "grey.png"), deep[..., 0])
        assert np.array_equal(read_image(tmp_path / "grey.png"), to_float(deep[..., 0]))


def test_deep_tiffs_of_other_layouts_are_read_right_or_refused(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (9, 11, 3), dtype=np.uint16)
    path = tmp_path / "deep.tiff"
    path.write_bytes(tiff(deep[..., :1], 0))
    assert np.array_equal(read_image(path), to_float(65535 - deep[..., 0]))
    path.write_bytes(tiff(deep, 2, planes=2))
    with pytest.raises(ValueError, match=r"deep\.tiff.*separate planes"):
        read_image(path)


def test_of_twelve_bits_white_is_the_largest_value(tmp_path):
    first, second = np.random.default_rng(0).integers(0, 4096, (2, 6, 4), dtype=np.uint16)
    first[0, 0] = 4095
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8)
    data = tiff(packed.reshape(6, 12, 1), 1)
    for tag, was, now in ((256, 12, 8), (258, 8, 12)):
        before, after = (struct.pack("<HHII", tag, 4, 1, value) for value in (was, now))
        assert data.count(before) == 1
        data = data.replace(before, after)
    (tmp_path / "a.tiff").write_bytes(data)
    wanted = np.stack([first, second], axis=2).reshape(6, 8) / 4095
    assert np.abs(read_image(tmp_path / "a.tiff")[..., 0] - wanted).max() < 1e-4


def test_a_palette_that_hides_nothing_is_no_transparency(tmp_path):
    picture = Image.fromarray(np.rint(textured(1, 20, 30) * 255).astype(np.uint8)).quantize(16)
    picture.save(tmp_path / "a.png", transparency=bytes([255] * 16))
    assert np.array_equal(read_image(tmp_path / "a.png"), to_float(np.asarray(picture.convert("RGB"))))
    picture.save(tmp_path / "a.png", transparency=bytes([255] * 15 + [254]))
    with pytest.raises(ValueError, match="transparency"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_alpha_that_hides_nothing_is_left_out(tmp_path, mode):
    picture = Image.fromarray(np.rint(textured(4, 12, 16) * 255).astype(np.uint8)).convert(mode)
    picture.save(tmp_path / "opaque.png")
    assert np.array_equal(read_image(tmp_path / "opaque.png"), to_float(np.asarray(picture.convert("RGB"))))
    picture.putpixel((3, 2), (*picture.getpixel((3, 2))[:-1], 254))
    picture.save(tmp_path / "hole.png")
    with pytest.raises(ValueError, match=r"hole\.png.*transparency"):
        read_image(tmp_path / "hole.png")


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_with_an_alpha_that_hides_nothing_are_kept(tmp_path, suffix):
    deep = np.random.default_rng(0).integers(0, 65536, (9, 11, 4), dtype=np.uint16)
    deep[..., 3] = 65535
    path = tmp_path / f"deep.{suffix}"
    cv2.imwrite(str(path), deep)
    assert np.array_equal(read_image(path), to_float(deep[..., 2::-1]))
    if suffix == "png":
        path.write_bytes(png(2, 1, 16, 4, b"\0" + struct.pack(">4H", 258, 65535, 772, 65535)))  # grey
        assert np.array_equal(read_image(path), to_float(np.uint16([[258, 772]])))
    else:
        path.write_bytes(tiff(deep, 2, planes=2, extra=2))
        with pytest.raises(ValueError, match=r"deep\.tiff.*separate planes"):
            read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path, orientation):
    picture = Image.fromarray(np.rint(textured(2, 16, 24) * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "turned.png", exif=exif)
    from PIL import ImageOps

    with Image.open(tmp_path / "turned.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(read_image(tmp_path / "turned.png"), to_float(expected))


def huge_png():
    """A valid header of 40,000 × 40,000 pixels and nothing behind it."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_bad_files_are_refused_with_their_name(tmp_path):
    good = tmp_path / "good.jpg"
    Image.fromarray(np.rint(textured(3, 64, 64) * 255).astype(np.uint8)).save(good)
    bad = {
        "truncated.jpg": good.read_bytes()[:900],
        "text.png": b"this is no picture",
        "empty.png": b"",
        "huge.png": huge_png(),
    }
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    for name, mode in (("rgba.png", "RGBA"), ("la.png", "LA")):
        Image.new(mode, (8, 8)).save(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}.*transparency"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match=r"missing\.png"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ValueError, match=tmp_path.name):
        read_image(tmp_path)


def test_folders_give_their_pictures_in_order(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "inside").mkdir()
    assert [path.name for path in find_images((tmp_path,))] == ["a.JPG", "b.png"]
    with pytest.raises(ValueError, match="no pictures"):
        find_images((tmp_path / "inside",))
    with pytest.raises(ValueError, match="no such"):
        find_images((tmp_path / "elsewhere",))
