"""Picture files, those too that no library at hand writes: PNG and TIFF from their samples as they are."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colours: int, rows: bytes = b"", *more: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = ((b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*each) for each in chunks)


def tiff(pixels: np.ndarray, photometric: int, planes: int = 1, extra: int | None = None) -> bytes:
    """A TIFF of these samples (H, W, C) as they are, in one strip, or one for each plane."""
    height, width, samples = pixels.shape
    strips = [pixels[..., i].tobytes() for i in range(samples)] if planes == 2 else [pixels.tobytes()]
    tags = {256: [width], 257: [height], 258: [8 * pixels.itemsize] * samples, 259: [1], 262: [photometric], 273: []}
    tags |= {277: [samples], 278: [height], 279: [len(each) for each in strips], 284: [planes]}
    if extra is not None:
        tags[338] = [extra]
    behind = 8 + 2 + 12 * len(tags) + 4  # the values that do not fit into an entry, of up to 16 bytes each
    start = behind + 16 * len(tags)
    tags[273] = [start + i * len(strips[0]) for i in range(len(strips))]
    entries, values = b"", b""
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        place = packed if len(packed) == 4 else struct.pack("<I", behind + len(values))
        values += packed if len(packed) > 4 else b""
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + place
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + values.ljust(16 * len(tags), b"\0") + b"".join(strips)


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)
