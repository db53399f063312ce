"""Picture files become pictures."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import IFD, Base

from sr3.images import FORMATS, SUFFIXES, ImageError, Picture, TooLarge

MAX_PIXELS = 100_000_000
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BASELINE = range(0x0300)  # tags of TIFF itself: but for the descriptive ones they are about how a file holds its pixels
SIDES = {Base.ExifImageWidth, Base.ExifImageHeight}  # in the directory of EXIF, of the picture that was read
DESCRIPTIVE = {
    Base.DocumentName,
    Base.ImageDescription,
    Base.Make,
    Base.Model,
    Base.XResolution,
    Base.YResolution,
    Base.ResolutionUnit,
    Base.Software,
    Base.DateTime,
    Base.Artist,
    Base.HostComputer,
    Base.WhitePoint,
    Base.PrimaryChromaticities,
    Base.Copyright,
    IFD.Exif,
    IFD.GPSInfo,
}


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


def _from_pil(file: Image.Image, data: bytes, name: str) -> Picture:
    icc, exif = file.info.get("icc_profile"), file.getexif()
    orientation = exif.pop(Base.Orientation, 1)
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


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C) turned as EXIF's orientation (1 to 8; anything else is taken for 1) asks for."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _resolution(file: Image.Image) -> tuple[float, float] | None:
    """Pixels per inch where a file says so."""
    try:
        wide, tall = (float(each) for each in file.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (wide, tall) if 1 < wide < 65536 and 1 < tall < 65536 else None  # a TIFF that says nothing has 1


def sixteen_bit(file: Image.Image, data: bytes) -> bool:
    """Whether the file holds sixteen bits a channel, which Pillow reads as eight."""
    if file.format == "PNG":
        return data[24] == 16  # the bit depth in its header chunk
    if file.format == "TIFF":
        bits = file.tag_v2.get(Base.BitsPerSample, (8,))  # type: ignore[attr-defined]
        return max(bits if isinstance(bits, tuple) else (bits,)) == 16
    return False


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
    photometric = tags.get(Base.PhotometricInterpretation, 1)
    if photometric not in (0, 1, 2):
        raise ImageError(
            f"{name} has 16 bits a channel of mode {file.mode} (photometric interpretation {photometric}); grey and "
            "RGB are accepted"
        )
    if tags.get(Base.PlanarConfiguration) == 2 and len(file.getbands()) > 1:
        raise ImageError(
            f"{name} has 16 bits a channel in separate planes (planar configuration 2); one plane of all channels is "
            "accepted"
        )
    before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # it warns of every alpha in a TIFF
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(before)
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError(f"{name} has pixels of mode {file.mode}; 8 or 16 bits a channel are accepted")
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    if file.format == "PNG" and data[25] == 4:  # grey with alpha, by the header chunk
        return pixels[..., [0, 3]]
    if file.format == "TIFF":
        return _plain_samples(pixels, photometric, tags.get(Base.ExtraSamples, ()))
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
        inner = {tag: exif.get_ifd(tag) for tag in (IFD.Exif, IFD.GPSInfo) if tag in exif}
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
