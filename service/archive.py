"""ZIP archives in and out: unpacked with limits and no way out of the folder, packed as they are sent."""

import io
import lzma
import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

from service.storage import Place

MAX_FILES = 100_000
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PART = 1 << 20
_DRIVE = re.compile("[A-Za-z]:")
# What zipfile lets through of its own and of the packers it calls; bz2's is an OSError, that of a name a ValueError.
_DAMAGE = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError),
    *(struct.error, zlib.error, lzma.LZMAError),
)


class BadArchive(ValueError):
    """The upload is no archive that is taken; the message says why."""


class NoArchive(BadArchive):
    """It is no ZIP, or its directory cannot be read."""


class TooLarge(BadArchive):
    """It holds more than is taken."""


def unpack(file: IO[bytes], target: Place, max_bytes: int) -> int:
    """Write an archive's files below `target`; how many. Folders, links and hidden files are left out.

    Raises NoArchive for what is no ZIP, TooLarge for what holds more than `max_bytes` or MAX_FILES, and BadArchive for
    what is damaged, encrypted or leads out of the folder: before anything is written where its directory tells.
    """
    try:
        archive = zipfile.ZipFile(file)
    except _DAMAGE as error:
        raise NoArchive(f"the upload is not a ZIP archive that can be read: {error}") from error
    with archive:
        wanted = [entry for entry in archive.infolist() if _taken(entry)]
        if len(wanted) > MAX_FILES or sum(entry.file_size for entry in wanted) > max_bytes:
            raise TooLarge(f"the archive holds more than {MAX_FILES} files or {max_bytes} bytes")
        keys = [_key(entry) for entry in wanted]
        _check_apart(keys)
        for entry, key in zip(wanted, keys, strict=True):
            if entry.flag_bits & 1:
                raise BadArchive(f"{key} is encrypted")
        for entry, key in zip(wanted, keys, strict=True):
            target.write(key, _content(archive, entry))
        return len(wanted)


def packed(files: Iterable[tuple[str, Iterable[bytes]]]) -> Iterator[bytes]:
    """A ZIP of these files, as it grows. They are stored, not compressed: pictures are so already."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, parts in files:
            with archive.open(zipfile.ZipInfo(name, _EPOCH), "w", force_zip64=True) as entry:
                for part in parts:
                    entry.write(part)
                    yield sink.taken()
            yield sink.taken()
    yield sink.taken()


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """The entry in parts, no more than its file_size, its sum checked; BadArchive where it is damaged."""
    try:
        with archive.open(entry) as packed:
            while part := packed.read(_PART):
                yield part
    except _DAMAGE as error:
        raise BadArchive(f"{entry.filename[:100]} is damaged, or packed in a way that is not known: {error}") from error


def _taken(entry: zipfile.ZipInfo) -> bool:
    link = entry.external_attr >> 16 & 0o170000 == 0o120000
    parts = PurePosixPath(entry.filename).parts
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
    return bool(parts) and not (entry.is_dir() or link or hidden)


def _key(entry: zipfile.ZipInfo) -> str:
    """The entry's name as a key; BadArchive for one that is absolute, climbs or is no text."""
    name = entry.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or _DRIVE.match(name):
        raise BadArchive(f"{name[:100]!r} is a name that leads elsewhere")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise BadArchive(f"{name[:100]!r} is a name with control characters")
    return str(path)


def _check_apart(keys: Sequence[str]) -> None:
    """BadArchive where two files have one name, or one lies below another."""
    files = set(keys)
    if len(files) < len(keys):
        raise BadArchive("two files of the archive have one name")
    for key in keys:
        for folder in PurePosixPath(key).parents:
            if str(folder) in files:
                raise BadArchive(f"{str(folder)[:100]!r} is the name of both a file and a folder")


class _Sink(io.RawIOBase):
    """What was written since it was last asked; it cannot be sought in, so zipfile writes sizes behind the data."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._data += data
        return len(data)

    def taken(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data
