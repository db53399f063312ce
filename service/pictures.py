"""Uploaded bytes become pictures and pictures bytes, with how they were made in the file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace

from PIL import Image
from PIL.ExifTags import IFD, Base

from sr3.decoding import MAX_PIXELS, read, sixteen_bit
from sr3.encoding import LONGEST_SIDE, WRITTEN, encode
from sr3.encoding import check_format as _check_format
from sr3.images import FORMATS, SMALLEST_SIDE, ImageError, Picture, TooLarge
from sr3.xmp import properties

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "TIFF": "image/tiff"}
_LONGEST_EXIF = {"JPEG": 65_533}  # bytes, with the six of its name


class InvalidPicture(ValueError):
    """Bytes that are no picture which can be enlarged; the message says why and what is accepted.

    `too_large` where only its size is at fault.
    """

    def __init__(self, message: str, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


def decode_picture(data: bytes, max_pixels: int) -> Picture:
    """An upright picture of 8 or 16 bits, grey or RGB, with or without alpha. Raises InvalidPicture."""
    try:
        picture = read(data, max_pixels)
    except TooLarge as error:
        raise InvalidPicture(str(error), too_large=True) from error
    except ImageError as error:
        raise InvalidPicture(str(error)) from error
    height, width = picture.pixels.shape[:2]
    if min(height, width) < SMALLEST_SIDE:
        raise InvalidPicture(f"the picture is {width}x{height}; both sides must be at least {SMALLEST_SIDE} pixels")
    return picture


def announced(data: bytes) -> tuple[int, int, int]:
    """Width and height of a picture as its file announces them, and the most bytes that its pixels take, before any of
    them is decoded; zeros where the file announces nothing."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            width, height = file.size
            channels = 4 if file.mode in ("P", "PA") else len(file.getbands()) + ("transparency" in file.info)
            deep = file.mode.startswith("I") or sixteen_bit(file, data)
            return width, height, width * height * channels * (2 if deep else 1)
    except Exception:  # whatever is wrong with it, decoding will say
        return 0, 0, 0


def written_format(picture: Picture, wanted: str | None, factor: int = 1) -> str:
    """The format to write `picture` in once it is `factor` times as large: `wanted`, or its file's own where that can
    hold it, or PNG."""
    if wanted:
        return wanted
    own = picture.format or "PNG"
    longest = factor * max(picture.pixels.shape[:2])
    return own if own in WRITTEN and longest <= LONGEST_SIDE.get(own, 2**31) else "PNG"


def check_format(picture: Picture, format: str, factor: int = 1) -> None:
    """InvalidPicture where `format` cannot hold what the picture, `factor` times as large, has."""
    try:
        _check_format(picture, format, factor)
    except ImageError as error:
        raise InvalidPicture(str(error), too_large=isinstance(error, TooLarge)) from error


def encode_picture(
    picture: Picture, format: str = "PNG", quality: int = 95, metadata: Mapping[str, str] | None = None
) -> bytes:
    """The picture as a file of `format`, one of PNG, JPEG, WEBP and TIFF, with its profile and EXIF.

    `metadata` becomes text chunks in a PNG. In the others it is written as XMP, each entry a property of
    `sr3.xmp.NAMESPACE`, and `parameters` as EXIF's user comment too, where image viewers look for it and the format
    holds so much EXIF. Raises InvalidPicture where the format cannot hold the picture.
    """
    text = dict(metadata or {})
    if text and format != "PNG":
        exif = _with_comment(picture.exif, text)
        if len(exif) <= _LONGEST_EXIF.get(format, len(exif)):
            picture = replace(picture, exif=exif)
    try:
        return encode(picture, format, quality, text)
    except ImageError as error:
        raise InvalidPicture(str(error)) from error


def read_metadata(data: bytes, max_pixels: int = MAX_PIXELS) -> dict[str, str]:
    """What `encode_picture` wrote into a file; other programs' `parameters` too. Raises InvalidPicture, also for more
    pixels: those of a PNG are decoded on the way to the text behind them."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            width, height = file.size
            if width * height > max_pixels:
                limit = f"at most {max_pixels / 1e6:g} megapixels are accepted"
                raise InvalidPicture(f"the picture is {width}x{height}; {limit}", too_large=True)
            found = {key: value for key, value in getattr(file, "text", {}).items() if isinstance(value, str)}
            comment = file.getexif().get_ifd(IFD.Exif).get(Base.UserComment)
            if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
                found.setdefault("parameters", comment[8:].decode("utf-16-be", "replace"))
            return found | properties(file.info.get("xmp"))
    except InvalidPicture:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidPicture(f"the picture is too large: {error}", too_large=True) from error
    except Exception as error:  # Pillow raises many kinds for broken files
        reason = f"{error}".split("<", 1)[0].strip() or type(error).__name__
        raise InvalidPicture(f"the picture cannot be read: {reason}; accepted are {', '.join(FORMATS)}") from error


def _with_comment(exif: bytes | None, text: Mapping[str, str]) -> bytes:
    """The EXIF with `Software` and `parameters`, where those entries are free."""
    made = Image.Exif()
    if exif:
        made.load(exif)
    if "Software" in text:
        made.setdefault(Base.Software, text["Software"])
    if "parameters" in text:
        inner = made.get_ifd(IFD.Exif)
        inner.setdefault(Base.UserComment, b"UNICODE\0" + text["parameters"].encode("utf-16-be", "replace"))
    return made.tobytes()
