"""Uploaded bytes to pictures and back, and what is written into the file about how it was made."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from service.pictures import (
    InvalidPicture,
    check_format,
    decode_picture,
    encode_picture,
    read_metadata,
    written_format,
)
from sr3.images import Picture

METADATA = {"Software": "us", "parameters": "红苹果 <&>\nSteps: 3, Seed: 7", "settings": '{"a": "]]> \\"q\\""}'}


def pixels(height: int = 8, width: int = 8, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_metadata_is_read_back_from_every_format(format: str) -> None:
    data = encode_picture(Picture(pixels()), format, 90, METADATA)
    assert read_metadata(data) == METADATA
    with Image.open(io.BytesIO(data)) as file:
        assert file.format == format


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_carry_metadata_too(format: str) -> None:
    picture = Picture(pixels(dtype=np.uint16))
    data = encode_picture(picture, format, metadata=METADATA)
    assert read_metadata(data) == METADATA
    assert np.array_equal(decode_picture(data, 64).pixels, picture.pixels)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_none_is_written_when_none_is_wanted(format: str) -> None:
    assert read_metadata(encode_picture(Picture(pixels()), format)) == {}


def test_the_uploads_own_exif_stays_beside_ours() -> None:
    exif = Image.Exif()
    exif[0x0131], exif[0x010E] = "a camera", "a description"
    data = encode_picture(Picture(pixels(), exif=exif.tobytes()), "JPEG", 90, METADATA)
    with Image.open(io.BytesIO(data)) as file:
        assert (file.getexif()[0x0131], file.getexif()[0x010E]) == ("a camera", "a description")
    assert read_metadata(data)["Software"] == "us"


def test_exif_of_an_upload_stays_in_a_tiff_beside_ours() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    exif.get_ifd(0x8769)[0x829A] = 0.125
    data = encode_picture(Picture(pixels(), b"a profile", exif.tobytes()), "TIFF", metadata=METADATA)
    with Image.open(io.BytesIO(data)) as file:
        assert (file.getexif()[0x010E], file.info["icc_profile"]) == ("a description", b"a profile")
        assert file.getexif().get_ifd(0x8769)[0x829A] == 0.125
    assert read_metadata(data) == METADATA


def test_exif_that_leaves_no_room_for_ours_goes_into_a_jpeg_alone() -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8769)[0x927C] = b"m" * 65_400  # a maker's note
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "JPEG", exif=exif)
    picture = decode_picture(buffer.getvalue(), 64)
    check_format(picture, "JPEG")
    data = encode_picture(picture, "JPEG", 90, METADATA)
    with Image.open(io.BytesIO(data)) as file:
        assert file.getexif()[0x010F] == "a camera"
        assert file.getexif().get_ifd(0x8769)[0x927C] == b"m" * 65_400
    assert read_metadata(data) == METADATA


def test_automatic1111s_comment_in_a_jpeg_is_read() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat\nSteps: 20".encode("utf-16-be")
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, "JPEG", exif=exif)
    assert read_metadata(buffer.getvalue()) == {"parameters": "a cat\nSteps: 20"}


def test_refusals_say_whether_only_the_size_is_at_fault() -> None:
    png = encode_picture(Picture(pixels(16, 16)))
    with pytest.raises(InvalidPicture, match="at most") as large:
        decode_picture(png, 255)
    assert large.value.too_large
    with pytest.raises(InvalidPicture, match="damaged") as broken:
        decode_picture(png[:60], 256)
    assert not broken.value.too_large
    with pytest.raises(InvalidPicture, match="16x7; both sides must be at least 8"):
        decode_picture(encode_picture(Picture(pixels(7, 16))), 256)
    with pytest.raises(InvalidPicture, match="cannot be read"):
        read_metadata(b"no picture")
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + png[24:29]
    with pytest.raises(InvalidPicture, match="too large") as bomb:
        read_metadata(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])
    assert bomb.value.too_large


@pytest.mark.parametrize(
    ("own", "wanted", "side", "factor", "written"),
    [
        ("JPEG", None, 8, 4, "JPEG"),
        ("JPEG", "PNG", 8, 4, "PNG"),
        ("BMP", None, 8, 4, "PNG"),
        (None, None, 8, 4, "PNG"),
        ("WEBP", None, 4095, 4, "WEBP"),
        ("WEBP", None, 4096, 4, "PNG"),
    ],
)
def test_format_stays_where_it_can(own: str | None, wanted: str | None, side: int, factor: int, written: str) -> None:
    picture = Picture(np.zeros((8, side, 3), np.uint8), format=own)
    assert written_format(picture, wanted, factor) == written


def test_format_that_cannot_hold_the_result_is_refused_before_it_is_made() -> None:
    with pytest.raises(InvalidPicture, match="no transparency"):
        check_format(Picture(pixels(channels=4)), "JPEG")
    with pytest.raises(InvalidPicture, match="at most 16383") as large:
        check_format(Picture(np.zeros((8, 4096, 3), np.uint8)), "WEBP", 4)
    assert large.value.too_large
