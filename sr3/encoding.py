"""Pictures become picture files."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base

from sr3.images import SUFFIXES, ImageError, Picture, TooLarge, with_pixels
from sr3.xmp import packet

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

WRITTEN = ("PNG", "JPEG", "WEBP", "TIFF")
LONGEST_SIDE = {"JPEG": 65_535, "WEBP": 16_383}
INCH = 0.0254  # metres


def encode(picture: Picture, format: str = "PNG", quality: int = 95, text: dict[str, str] | None = None) -> bytes:
    """The picture as a file of `format` (PNG, JPEG, WEBP or TIFF), with its profile, EXIF and resolution. `text`, whose
    keys are names of XML, goes into a PNG's text chunks, into the other formats as XMP, each entry a property of
    `sr3.xmp.NAMESPACE`. Grey with alpha of sixteen bits is RGB with alpha in a TIFF.

    Raises ImageError where the format cannot hold what the picture has (alpha in JPEG, sixteen bits but in PNG
    and TIFF, sides that are too long).
    """
    pixels = picture.pixels
    channels, deep = pixels.shape[2], pixels.dtype == np.uint16
    if channels in (2, 4) and format == "JPEG":
        raise ImageError("JPEG holds no transparency; write PNG, WEBP or TIFF")
    if deep and format not in ("PNG", "TIFF"):
        raise ImageError(f"{format} holds no sixteen bits a channel; write PNG or TIFF")
    if max(pixels.shape[:2]) > LONGEST_SIDE.get(format, 2**31):
        raise ImageError(f"{format} holds sides of at most {LONGEST_SIDE[format]} pixels; write PNG or TIFF")
    xmp = packet(text) if text and format != "PNG" else None
    if deep:
        return _encode_deep(picture, format, text or {}, xmp)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode)
    options: dict[str, object] = {"icc_profile": picture.icc} if picture.icc else {}
    if picture.exif:
        options["exif"] = picture.exif
    if picture.dpi and format != "WEBP":
        options["dpi"] = picture.dpi
    if format == "PNG":
        options |= {"pnginfo": _png_text(text or {}), "compress_level": 4}
    elif format in ("JPEG", "WEBP"):
        options |= {"quality": quality} | ({"xmp": xmp} if xmp else {})
    elif xmp:  # as an entry of the EXIF, beside which Pillow would pass over a `tiffinfo`
        exif = Image.Exif()
        exif.load(picture.exif or b"")
        exif[Base.XMLPacket] = xmp
        options["exif"] = exif
    buffer = io.BytesIO()
    try:
        image.save(buffer, format, **options)
    except (OSError, ValueError) as error:  # more EXIF than a JPEG holds
        raise ImageError(f"the picture could not be written as {format}: {error}") from None
    return buffer.getvalue()


def check_format(picture: Picture, format: str, factor: int) -> None:
    """Raises ImageError where `format` cannot hold what the picture, `factor` times as large, has; TooLarge where it
    is the sides."""
    if factor * max(picture.pixels.shape[:2]) > LONGEST_SIDE.get(format, 2**31):
        raise TooLarge(f"{format} holds sides of at most {LONGEST_SIDE[format]} pixels; write PNG or TIFF")
    encode(with_pixels(picture, picture.pixels[:1, :1]), format)


def _png_text(text: dict[str, str]) -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in text.items():
        info.add_itxt(key, value) if not value.isascii() else info.add_text(key, value)
    return info


def _encode_deep(picture: Picture, format: str, text: dict[str, str], xmp: bytes | None) -> bytes:
    """Sixteen bits, which Pillow does not write, through OpenCV, which writes no profile, EXIF or text."""
    import cv2

    if format == "PNG" and picture.pixels.shape[2] == 2:
        return _png_with(_png_grey_alpha(picture.pixels), picture, text)
    order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[picture.pixels.shape[2]]
    done, data = cv2.imencode(".png" if format == "PNG" else ".tiff", picture.pixels[..., order])
    if not done:
        raise ImageError(f"the picture could not be written as {format}")
    written = data.tobytes()
    return _png_with(written, picture, text) if format == "PNG" else _tiff_with(written, picture, xmp)


def _png_with(png: bytes, picture: Picture, text: dict[str, str]) -> bytes:
    """The PNG with iCCP, eXIf, pHYs and text chunks (PNG specification, sections 11.3.2 to 11.3.4) after its header."""
    chunks = [(bytes(kind), bytes(data)) for kind, data, *_ in _png_text(text).chunks]
    if picture.dpi:
        wide, tall = (round(each / INCH) for each in picture.dpi)
        chunks.insert(0, (b"pHYs", struct.pack(">IIB", wide, tall, 1)))  # per metre
    if picture.exif:
        chunks.insert(0, (b"eXIf", picture.exif.removeprefix(b"Exif\0\0")))
    if picture.icc:
        chunks.insert(0, (b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)))
    made = b"".join(_chunk(kind, data) for kind, data in chunks)
    header = 8 + 25  # the signature, and IHDR of 13 bytes with its length, kind and checksum
    return png[:header] + made + png[header:]


def _png_grey_alpha(pixels: np.ndarray) -> bytes:
    """uint16 (H, W, 2) as a PNG of colour type 4, which OpenCV does not write, each row as what it differs from the one
    above (PNG specification, sections 9.2 and 11.2)."""
    height, width, _ = pixels.shape
    rows = np.ascontiguousarray(pixels, ">u2").view(np.uint8).reshape(height, -1)
    rows = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # modulo 256
    filtered = np.pad(rows, ((0, 0), (1, 0)), constant_values=2).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered, 4)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _tiff_with(tiff: bytes, picture: Picture, xmp: bytes | None) -> bytes:
    """The TIFF with profile, EXIF, resolution and XMP, and its fourth channel as alpha, behind a directory of them."""
    blocks = {tag: data for tag, data in ((Base.InterColorProfile, picture.icc), (Base.XMLPacket, xmp)) if data}
    transparent = picture.pixels.shape[2] in (2, 4)
    if not blocks and not picture.exif and not picture.dpi and not transparent:
        return tiff
    with Image.open(io.BytesIO(tiff), formats=("TIFF",)) as file:
        directory = file.tag_v2  # type: ignore[attr-defined]
        dict(directory)  # Pillow reads an entry when it is asked for, and writes those that were read
        for tag, data in blocks.items():
            directory.tagtype[tag] = 7  # bytes of no further type
            directory[tag] = data
        if transparent:
            directory[Base.ExtraSamples] = (2,)  # alpha that is not multiplied in
        if picture.exif:
            exif = Image.Exif()
            exif.load(picture.exif)
            for number, value in exif.items():
                if number not in directory:
                    directory[number] = exif.get_ifd(number) if number in (IFD.Exif, IFD.GPSInfo) else value
        if picture.dpi:
            directory[Base.XResolution], directory[Base.YResolution] = picture.dpi
            directory[Base.ResolutionUnit] = 2  # inches
        directory.tagtype[Base.StripOffsets] = 4  # 32 bits: Pillow moves them beyond the directory that it writes
        added = directory.tobytes(8)
    return tiff[:4] + struct.pack(directory._endian + "L", 8) + added + tiff


def format_of(path: Path) -> str:
    """The format that a file name's suffix asks for. Raises ImageError for an unknown one."""
    format = SUFFIXES.get(path.suffix.lower())
    if format is None:
        raise ImageError(f"{path} has a suffix that is not accepted; use one of {', '.join(SUFFIXES)}")
    return format


def write(picture: Picture, path: Path, quality: int = 95, text: dict[str, str] | None = None) -> None:
    """Write a picture in the format of the file's suffix: to a temporary name first, then renamed. What a link points
    to is written.

    Raises ImageError where it cannot be written.
    """
    data = encode(picture, format_of(path), quality, text)
    with _arriving(path) as temporary:
        temporary.write_bytes(data)
        temporary.replace(path.resolve())


def check_writable(path: Path) -> None:
    """Raises ImageError where no file could be made here, before the work for it is done."""
    for folder, wanted in ((path, False), (path.parent, True)):
        if os.path.isdir(folder) != wanted:
            raise ImageError(f"{folder} is {'not ' * wanted}a folder")
    with _arriving(path) as temporary:
        path.exists()  # raises OSError for a name that is too long
        temporary.touch()


@contextlib.contextmanager
def _arriving(path: Path) -> Iterator[Path]:
    """A short name beside a file, of which nothing is left; what cannot be written there is an ImageError."""
    temporary = path.resolve().with_name(f".{uuid4().hex}.part")
    try:
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ImageError(f"{path} cannot be written: {error.strerror}") from None
