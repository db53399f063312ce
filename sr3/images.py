"""The one place where pictures become tensors and tensors pictures, and where files are read and written."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:  # reading and writing pictures needs no torch, and who only does that does not load it
    from PIL.PngImagePlugin import PngInfo
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
LOSSY = ("JPEG", "WEBP")  # their blocks are not wanted back
WRITTEN = ("PNG", "JPEG", "WEBP", "TIFF")
LONGEST_SIDE = {"JPEG": 65_535, "WEBP": 16_383}
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
MAX_PIXELS = 100_000_000
SMALLEST_SIDE = 8
VIEWS = 8  # of a picture: four turns of it and of its mirror image
SLACK = 0.5  # beyond [-1, 1] of tensors: more than a resize or a decoder overshoots by
ORIENTATION, EXIF_IFD, GPS_IFD, ICC_TAG, XMP_TAG = 0x0112, 0x8769, 0x8825, 0x8773, 700  # EXIF and TIFF tags
STRIP_OFFSETS, PHOTOMETRIC, PLANES, EXTRA_SAMPLES = 0x0111, 262, 284, 338
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
INCH = 0.0254  # metres
NAMESPACE = "https://ns.sr3-cascade.invalid/1.0/"
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BASELINE = range(0x0300)  # tags of TIFF itself: but for the descriptive ones they are about how a file holds its pixels
SIDES = {0xA002, 0xA003}  # in the directory of EXIF, of the picture that was read
# Document, description, maker, model, resolution, software, date, artist, host, white point, primaries, copyright, and
# the directories of EXIF and GPS.
DESCRIPTIVE = {
    0x010D,
    0x010E,
    0x010F,
    0x0110,
    0x011A,
    0x011B,
    0x0128,
    0x0131,
    0x0132,
    0x013B,
    0x013C,
    0x013E,
    0x013F,
    0x8298,
    EXIF_IFD,
    GPS_IFD,
}


class ImageError(ValueError):
    """A picture that cannot be read or written; its text says why and what is accepted."""


class TooLarge(ImageError):
    """A picture of more pixels than are accepted."""


@dataclass(frozen=True)
class Picture:
    """A picture as its file holds it."""

    pixels: np.ndarray
    """uint8 or uint16, (H, W, C): C = 1 grey, 2 grey with alpha, 3 RGB, 4 RGB with alpha. Not premultiplied."""
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    """Pixels per inch of its width and height, which stay as they are: four times as large it prints so."""
    format: str | None = None
    """Of the file that it was read from, one of FORMATS."""

    def consistency(self, asked: int | None) -> int | None:
        """How many times its enlargement is projected: as often as asked; if not asked never for a lossy file, and as
        the model does it (None) for any other."""
        return 0 if asked is None and self.format in LOSSY else asked


def to_tensor(
    image: Image.Image | np.ndarray | Tensor | Sequence[Image.Image | np.ndarray | Tensor],
) -> Tensor:
    """RGB pictures of one size to float32 (N, 3, H, W) in [-1, 1].

    Takes PIL RGB, uint8 or uint16 (H, W, 3), float tensors (N, 3, H, W) or (3, H, W) already in [-1, 1], or a
    sequence of these. Raises ValueError for other shapes, modes and types, and for tensors of other values.
    """
    import torch

    if isinstance(image, Sequence) and not isinstance(image, str | bytes):
        tensors = [to_tensor(item) for item in image]
        if not tensors:
            raise ValueError("no picture given")
        if len({t.shape[-2:] for t in tensors}) > 1:
            raise ValueError(f"pictures of one batch must have one size, not {[tuple(t.shape[-2:]) for t in tensors]}")
        return torch.cat(tensors)
    if isinstance(image, Image.Image):
        if image.mode != "RGB":
            raise ValueError(f"the picture's mode is {image.mode}; convert it to RGB first")
        image = np.asarray(image)
    if isinstance(image, np.ndarray):
        if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"got {image.dtype} {image.shape}; it must be uint8 or uint16 of shape (H, W, 3)")
        top = np.iinfo(image.dtype).max
        values = torch.from_numpy(np.ascontiguousarray(image).astype(np.float32))
        return values.permute(2, 0, 1)[None].mul(2 / top).sub(1)
    if not isinstance(image, torch.Tensor):
        kind = type(image).__name__
        raise ValueError(f"got a {kind}; it must be PIL RGB, an array or a tensor (sr3.images.read reads files)")
    tensor = image if image.ndim == 4 else image[None]
    if tensor.ndim != 4 or tensor.shape[1] != 3 or not tensor.is_floating_point():
        raise ValueError(f"got {image.dtype} {tuple(image.shape)}; it must be floating point (N, 3, H, W) in [-1, 1]")
    if not len(tensor):
        raise ValueError("no picture given")
    low, high = (float(v) for v in tensor.aminmax()) if tensor.numel() else (0.0, 0.0)
    if not (low >= -1 - SLACK and high <= 1 + SLACK):  # a NaN fails both comparisons
        raise ValueError(f"got values of {low:g} to {high:g}; they must be finite and in [-1, 1]")
    return tensor.float()


def _to_levels(tensor: Tensor, top: int) -> np.ndarray:
    levels = tensor.detach().float().clamp(-1, 1).add_(1).mul_(top / 2).round_()
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def to_uint8(tensor: Tensor) -> list[np.ndarray]:
    """(N, 3, H, W) in [-1, 1] to N arrays, uint8 (H, W, 3). The inverse of `to_tensor` on eight bits."""
    return list(_to_levels(tensor, 255).astype(np.uint8))


def to_uint16(tensor: Tensor) -> list[np.ndarray]:
    """The same on sixteen bits."""
    return list(_to_levels(tensor, 65535).astype(np.uint16))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C) turned as EXIF's orientation (1 to 8; anything else is taken for 1) asks for."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def read(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture: 8 or 16 bits, grey or RGB, with or without alpha; EXIF orientation is applied.

    Raises ImageError for anything else: not a picture, truncated, animated, or of more than `max_pixels`.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}") from None
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            width, height = file.size
            if width * height > max_pixels:
                raise TooLarge(f"{name} is {width}x{height}; at most {max_pixels / 1e6:g} megapixels are accepted")
            kind = "JPEG" if file.format == "MPO" else file.format  # a camera's JPEG with its preview behind it
            if file.format == kind and getattr(file, "n_frames", 1) > 1:
                raise ImageError(f"{name} is animated or has several pages; one picture is accepted")
            file.load()
            return replace(_from_pil(file, data, name), format=kind)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLarge(f"{name} is too large: at most {max_pixels / 1e6:g} megapixels are accepted") from None
    except UnidentifiedImageError:
        if data.startswith(TIFF_HEADS):
            raise ImageError(
                f"{name} is a TIFF that is damaged or of a layout that is not accepted; with 16 bits a channel grey "
                "alone, and RGB with or without alpha, are accepted"
            ) from None
        raise ImageError(f"{name} is not a picture in a format that is accepted: {', '.join(FORMATS)}") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise ImageError(f"{name} is damaged: {error}") from None


def _from_pil(file: Image.Image, data: bytes, name: str) -> Picture:
    icc, exif = file.info.get("icc_profile"), file.getexif()
    orientation = exif.pop(ORIENTATION, 1)
    if file.mode.startswith("I") or sixteen_bit(file, data):
        pixels = _deep_pixels(file, data, name)
    else:
        if file.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            icc = None  # it is not of the RGB that the pixels become
        pixels = _pixels(file, data, name)
    dpi = _resolution(file)
    if dpi and orientation in (5, 6, 7, 8):
        dpi = dpi[::-1]
    return Picture(upright(pixels, orientation), icc, _portable(exif, file.format), dpi)


def _resolution(file: Image.Image) -> tuple[float, float] | None:
    """Pixels per inch where a file says so."""
    try:
        wide, tall = (float(each) for each in file.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (wide, tall) if 1 < wide < 65536 and 1 < tall < 65536 else None  # a TIFF that says nothing has 1


def _pixels(file: Image.Image, data: bytes, name: str) -> np.ndarray:
    """Of eight bits, (H, W, C)."""
    if file.format == "PNG" and file.mode == "L" and "transparency" in file.info and data[24] < 8:
        top = 2 ** data[24] - 1  # Pillow scales pixels of two and four bits, but not the one that is transparent
        file.info["transparency"] = (file.info["transparency"] & top) * 255 // top
    if file.mode in ("P", "PA"):
        file = file.convert("RGBA" if "transparency" in file.info or file.mode == "PA" else "RGB")
    elif file.mode == "1":
        file = file.convert("L")
    if file.mode in ("RGB", "L") and "transparency" in file.info:
        file = file.convert("RGBA" if file.mode == "RGB" else "LA")
    elif file.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        file = file.convert("RGB")
    if file.mode not in ("L", "LA", "RGB", "RGBA"):
        raise ImageError(f"{name} has pixels of mode {file.mode}; grey or RGB, with or without alpha, are accepted")
    pixels = np.asarray(file)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _deep_pixels(file: Image.Image, data: bytes, name: str) -> np.ndarray:
    """Of sixteen bits, (H, W, C): through OpenCV, as Pillow reads no sixteen bits a colour."""
    import cv2  # here, so that importing sr3 stays cheap

    tags = file.tag_v2 if file.format == "TIFF" else {}  # type: ignore[attr-defined]
    photometric = tags.get(PHOTOMETRIC, 1)
    if photometric not in (0, 1, 2):
        raise ImageError(
            f"{name} has 16 bits a channel of mode {file.mode} (photometric interpretation {photometric}); grey and "
            "RGB are accepted"
        )
    if tags.get(PLANES) == 2 and len(file.getbands()) > 1:
        raise ImageError(
            f"{name} has 16 bits a channel in separate planes (planar configuration 2); one plane of all channels is "
            "accepted"
        )
    before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # it warns of every alpha in a TIFF
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    cv2.utils.logging.setLogLevel(before)
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError(f"{name} has pixels of mode {file.mode}; 8 or 16 bits a channel are accepted")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    if file.format == "PNG" and data[25] == 4:  # grey with alpha, by the header chunk
        return pixels[..., [0, 3]]
    if file.format == "TIFF":
        return _plain_samples(pixels, photometric, tags.get(EXTRA_SAMPLES, ()))
    if pixels.shape[2] == 1 and "transparency" in file.info:  # which OpenCV leaves out for grey
        cover = np.where(pixels == file.info["transparency"], 0, 65535)
        pixels = np.concatenate([pixels, cover.astype(np.uint16)], axis=2)
    return pixels


def _plain_samples(pixels: np.ndarray, photometric: int, extra: tuple[int, ...]) -> np.ndarray:
    """Samples of a TIFF, uint16 (H, W, C), with white as the largest value and alpha not multiplied in (TIFF 6.0,
    PhotometricInterpretation and ExtraSamples)."""
    if photometric == 0:
        return ~pixels
    if pixels.shape[2] < 4 or not extra or extra[0] not in (0, 1):
        return pixels
    if extra[0] == 0:  # a fourth channel that is no alpha
        return pixels[..., :3]
    alpha = np.maximum(pixels[..., 3], 1).astype(np.uint32)
    for colour in (pixels[..., i] for i in range(3)):
        colour[:] = np.minimum((colour * np.uint32(65535) + alpha // 2) // alpha, 65535)
    return pixels


def _portable(exif: Image.Exif, format: str | None) -> bytes | None:
    """What of a file's EXIF is true of other pixels in another file too. Entries that cannot be written, as their
    values are not of their tag's type, are left out."""
    try:
        inner = {tag: exif.get_ifd(tag) for tag in (EXIF_IFD, GPS_IFD) if tag in exif}
        for tag in set(exif) - inner.keys():
            layout = (tag in BASELINE or format == "TIFF") and tag not in DESCRIPTIVE
            if layout or not _writable({tag: exif[tag]}):
                del exif[tag]
        for directory, entries in inner.items():
            for tag in set(entries):
                if tag in SIDES or not _writable({directory: {tag: entries[tag]}}):
                    del entries[tag]
        return exif.tobytes() if len(exif) else None
    except Exception:  # Pillow raises many kinds for broken entries
        return None


def _writable(entries: dict[int, object]) -> bool:
    exif = Image.Exif()
    exif.update(entries)
    try:
        exif.tobytes()
    except Exception:
        return False
    return True


def sixteen_bit(file: Image.Image, data: bytes) -> bool:
    """Whether the file holds sixteen bits a channel, which Pillow reads as eight."""
    if file.format == "PNG":
        return data[24] == 16  # the bit depth in its header chunk
    if file.format == "TIFF":
        bits = file.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
        return max(bits if isinstance(bits, tuple) else (bits,)) == 16
    return False


def encode(picture: Picture, format: str = "PNG", quality: int = 95, text: dict[str, str] | None = None) -> bytes:
    """The picture as a file of `format` (PNG, JPEG, WEBP or TIFF), with its profile, EXIF and resolution. `text`, whose
    keys are names of XML, goes into a PNG's text chunks, into the other formats as XMP, each entry a property of
    NAMESPACE. Grey with alpha of sixteen bits is RGB with alpha in a TIFF.

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
    xmp = _xmp(text) if text and format != "PNG" else None
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
        exif[XMP_TAG] = xmp
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


def _xmp(text: Mapping[str, str]) -> bytes:
    """An XMP packet (ISO 16684-1) with the entries as properties; keys are names of XML."""
    entries = "".join(f"<sr3:{key}>{escape(value)}</sr3:{key}>" for key, value in text.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:sr3="{NAMESPACE}">{entries}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


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
    blocks = {tag: data for tag, data in ((ICC_TAG, picture.icc), (XMP_TAG, xmp)) if data}
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
            directory[EXTRA_SAMPLES] = (2,)  # alpha that is not multiplied in
        if picture.exif:
            exif = Image.Exif()
            exif.load(picture.exif)
            for tag, value in exif.items():
                if tag not in directory:
                    directory[tag] = exif.get_ifd(tag) if tag in (EXIF_IFD, GPS_IFD) else value
        if picture.dpi:
            directory[X_RESOLUTION], directory[Y_RESOLUTION] = picture.dpi
            directory[RESOLUTION_UNIT] = 2  # inches
        directory.tagtype[STRIP_OFFSETS] = 4  # 32 bits: Pillow moves them beyond the directory that it writes
        added = directory.tobytes(8)
    return tiff[:4] + struct.pack(directory._endian + "L", 8) + added + tiff


def format_of(path: Path) -> str:
    """The format that a file name's suffix asks for. Raises ImageError for an unknown one."""
    format = SUFFIXES.get(path.suffix.lower())
    if format is None:
        raise ImageError(f"{path} has a suffix that is not accepted; use one of {', '.join(SUFFIXES)}")
    return format


def read_folder(folder: Path) -> list[Path]:
    """Every file below a folder whose suffix is a picture's, sorted; links are left out.

    Raises ImageError where there is no such folder or no picture in it.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder")
    suffixes = {*SUFFIXES, ".bmp"}
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file() and not p.is_symlink())
    if not found:
        raise ImageError(f"{folder} holds no pictures ({', '.join(sorted(suffixes))})")
    return found


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


def with_pixels(picture: Picture, pixels: np.ndarray) -> Picture:
    """The same profile and EXIF around other pixels."""
    return replace(picture, pixels=pixels)
