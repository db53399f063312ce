"""Pictures as files: what stays, and what a format cannot hold."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sr3.decoding import read
from sr3.encoding import check_format, check_writable, encode, format_of, write
from sr3.images import ImageError, Picture, TooLarge, with_pixels
from sr3.xmp import properties
from tests.picture_files import noise, png, saved

LAYOUT = {
    0x0100: 16,
    0x0101: 12,
    0x0102: (8, 8, 8),
    0x0103: 6,
    0x0106: 6,
    0x010A: 2,
    0x0111: 100,
    0x0115: 3,
    0x0116: 8,
    0x0117: 99,
    0x011C: 2,
    0x0142: 16,
    0x0152: 1,
    0x0201: 100,
    0x0202: 99,
}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_eight_bits_survives(channels):
    pixels = noise(9, 11, channels)
    assert np.array_equal(read(encode(Picture(pixels))).pixels, pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_survive(channels, format):
    pixels = noise(9, 11, channels, np.uint16)
    assert np.array_equal(read(encode(Picture(pixels), format)).pixels, pixels)


def test_grey_with_alpha_stays_so_in_sixteen_bits():
    pixels = noise(9, 11, 2, np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    assert np.array_equal(read(png(11, 9, 16, 4, rows)).pixels, pixels)
    data = encode(Picture(pixels))
    assert np.array_equal(read(data).pixels, pixels)
    theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # as three equal channels and alpha
    assert np.array_equal(theirs[..., [0, 3]], pixels)


def test_what_a_format_cannot_hold_is_refused():
    with pytest.raises(ImageError, match="no transparency"):
        encode(Picture(noise(8, 8, 4)), "JPEG")
    with pytest.raises(ImageError, match="no sixteen bits"):
        encode(Picture(noise(8, 8, 3, np.uint16)), "WEBP")
    with pytest.raises(ImageError, match=r"use one of \.png"):
        format_of(Path("a.gif"))


def test_writing_leaves_no_temporary_file_and_keeps_text(tmp_path):
    write(Picture(noise(8, 8, 3)), tmp_path / "a.png", text={"seed": "7", "prompt": "红苹果"})
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert Image.open(tmp_path / "a.png").text == {"seed": "7", "prompt": "红苹果"}


@pytest.mark.parametrize(
    ("format", "dtype"), [("JPEG", np.uint8), ("WEBP", np.uint8), ("TIFF", np.uint8), ("TIFF", np.uint16)]
)
def test_text_is_xmp_where_a_format_has_no_text_of_its_own(format, dtype):
    text = {"seed": "7", "prompt": "红苹果"}
    with Image.open(io.BytesIO(encode(Picture(noise(8, 8, 3, dtype)), format, text=text))) as file:
        assert properties(file.info["xmp"]) == text
    with Image.open(io.BytesIO(encode(Picture(noise(8, 8, 3, dtype)), format))) as file:
        assert "xmp" not in file.info


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_a_lower_quality_is_a_smaller_file(format):
    picture = Picture(noise(64, 64, 3))
    sizes = [len(encode(picture, format, quality)) for quality in (10, 50, 95)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 2
    assert len(encode(picture, format)) == sizes[2]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_a_profile_alone_stays_in_sixteen_bits(format):
    assert read(encode(Picture(noise(8, 8, 3, np.uint16), icc=b"a profile"), format)).icc == b"a profile"


def test_channels_are_rgb_in_both_libraries(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert np.array_equal(cv2.imdecode(np.frombuffer(encode(Picture(red)), np.uint8), 1)[0, 0], [0, 0, 255])
    deep = red.astype(np.uint16) * 257
    assert np.array_equal(read(encode(Picture(deep))).pixels[0, 0], [65535, 0, 0])


@pytest.mark.parametrize(
    ("format", "channels"), [*(("PNG", n) for n in (1, 2, 3, 4)), *(("TIFF", n) for n in (1, 3, 4))]
)
def test_sixteen_bits_keep_profile_exif_and_text(channels, format):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    exif.get_ifd(0x8769)[0x829A] = 0.125  # exposure time
    picture = Picture(noise(9, 11, channels, np.uint16), b"a profile" * 9, exif.tobytes())
    data = encode(picture, format, text={"seed": "7", "prompt": "红苹果"})
    again = read(data)
    assert np.array_equal(again.pixels, picture.pixels)
    assert (again.icc, again.format) == (b"a profile" * 9, format)
    with Image.open(io.BytesIO(data)) as file:
        assert file.getexif()[0x010E] == "a description"
        assert file.getexif().get_ifd(0x8769)[0x829A] == 0.125
        assert format == "TIFF" or file.text == {"seed": "7", "prompt": "红苹果"}


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("icc", [None, b"a profile"])
def test_a_deep_tiff_says_that_its_fourth_channel_is_alpha(channels, icc):
    picture = Picture(noise(9, 11, channels, np.uint16), icc)
    data = encode(picture, "TIFF")
    with Image.open(io.BytesIO(data)) as file:
        assert file.tag_v2[338] == (2,)
    again = read(data).pixels
    assert np.array_equal(again[..., [0, 3]], picture.pixels[..., [0, -1]]) and again.shape[2] == 4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_a_tiff_describes_stays_and_its_layout_does_not(dtype):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    picture = read(encode(Picture(noise(9, 11, 3, dtype), b"a profile", exif.tobytes()), "TIFF"))
    large = read(encode(Picture(noise(36, 44, 3, dtype), picture.icc, picture.exif), "TIFF"))
    assert large.pixels.shape == (36, 44, 3)
    assert large.icc == b"a profile"
    again = Image.Exif()
    again.load(large.exif)
    assert again[0x010E] == "a description"
    assert set(again) <= {0x010E, 0x0128, 0x011A, 0x011B}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_resolution_stays(format, dtype):
    if (format, dtype) == ("JPEG", np.uint16):
        return
    data = encode(Picture(noise(9, 11, 3, dtype), dpi=(300.0, 150.0)), format)
    assert read(data).dpi == pytest.approx((300, 150), abs=0.02)
    with Image.open(io.BytesIO(data)) as file:
        assert file.info["dpi"] == pytest.approx((300, 150), abs=0.02)
    assert read(encode(Picture(noise(9, 11, 3, dtype)), format)).dpi is None


@pytest.mark.parametrize("name", ["a.png", f"{'n' * 251}.png"])
def test_what_a_link_points_to_is_written_and_a_name_may_be_as_long_as_names_may_be(name, tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / name)
    check_writable(tmp_path / "link.png")
    assert [*tmp_path.iterdir()] == [tmp_path / "link.png"]
    write(Picture(noise(9, 11, 3)), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink() and read(tmp_path / name).pixels.shape == (9, 11, 3)
    assert {each.name for each in tmp_path.iterdir()} == {"link.png", name}


def test_sides_too_long_for_a_format_are_refused():
    with pytest.raises(ImageError, match="WEBP holds sides of at most 16383"):
        encode(Picture(np.zeros((1, 16_384, 1), np.uint8)), "WEBP")
    assert read(encode(Picture(np.zeros((1, 16_383, 1), np.uint8)), "WEBP")).pixels.shape == (1, 16_383, 3)
    with pytest.raises(TooLarge, match="WEBP holds sides of at most 16383"):
        check_format(Picture(np.zeros((1, 4096, 1), np.uint8)), "WEBP", 4)
    check_format(Picture(np.zeros((1, 4095, 1), np.uint8)), "WEBP", 4)
    check_format(Picture(np.zeros((1, 16_384, 1), np.uint8)), "PNG", 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_of_the_layout_and_size_that_a_file_had_does_not_go_into_others(format, dtype):
    if dtype == np.uint16 and format not in ("PNG", "TIFF"):
        return
    exif = Image.Exif()
    exif.update({**LAYOUT, 0x010E: "a description", 0x0213: 1, 0x4746: 3})
    exif.get_ifd(0x8769).update({0x829A: 0.125, 0xA002: 16, 0xA003: 12})
    picture = read(saved(Image.fromarray(noise(12, 16, 3)), "JPEG", exif=exif.tobytes()))
    pixels = noise(48, 64, 3, dtype)
    data = encode(with_pixels(picture, pixels), format, 95, {"how": "with care"})
    with Image.open(io.BytesIO(data)) as file:
        assert (file.size, file.mode) == ((64, 48), "RGB")
        kept = file.getexif()
        assert (kept[0x010E], kept[0x4746]) == ("a description", 3)
        assert dict(kept.get_ifd(0x8769)) == {0x829A: 0.125}
        assert format == "TIFF" or not set(kept) & LAYOUT.keys()
    if format in ("PNG", "TIFF"):
        assert np.array_equal(read(data).pixels, pixels)
