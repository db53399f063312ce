"""ZIP archives in and out: unpacked with limits and no way out of the folder, packed as they are sent."""

import io
import re
import struct
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

from service.storage import Place

MAX_FILES = 100_000
MAX_DIRECTORY = 1 << 25  # bytes of an archive's directory, of which zipfile takes eight times as many of memory
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SAID_UTF8 = 0x800  # a flag of an entry
_PART = 1 << 20
_DRIVE = re.compile("[A-Za-z]:")
# Others zipfile unpacks to their end at once, however much that is, and whatever size their headers tell.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile lets through of its own and of what it calls; that of a name is a ValueError.
_DAMAGE = (
    *(zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError),
    *(struct.error, zlib.error),
)


class BadArchive(ValueError):
    """The upload is no archive that is taken; the message says why."""


class NoArchive(BadArchive):
    """It is no ZIP, or its directory cannot be read."""


class TooLarge(BadArchive):
    """It holds more than is taken."""


def unpack(file: IO[bytes], target: Place, max_bytes: int) -> int:
    """Write an archive's files below `target`; how many. Folders, links and hidden files are left out.

    Raises NoArchive for what is no ZIP, TooLarge for what holds more than `max_bytes` or MAX_FILES or has a directory
    of more than MAX_DIRECTORY bytes, and BadArchive for what is damaged, encrypted, packed by another method than
    deflate or leads out of the folder: before anything is written where its directory tells.
    """
    rationed = _Rationed(file)
    try:
        archive = zipfile.ZipFile(rationed)
        rationed.left = sys.maxsize
    except TooLarge:
        raise
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
            if entry.compress_type not in _METHODS:
                how = f"by method {entry.compress_type} of ZIP"
                raise BadArchive(f"{key[:100]} is packed {how}; stored and deflated files are accepted")
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


def _name(entry: zipfile.ZipInfo) -> str:
    """The entry's name: UTF-8 where it can be that, as Info-ZIP writes it without saying so, else what zipfile takes
    it for, the old code page of DOS."""
    try:
        return entry.filename if entry.flag_bits & _SAID_UTF8 else entry.filename.encode("cp437").decode()
    except UnicodeError:
        return entry.filename


def _taken(entry: zipfile.ZipInfo) -> bool:
    link = entry.external_attr >> 16 & 0o170000 == 0o120000
    parts = PurePosixPath(_name(entry)).parts
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
    return bool(parts) and not (entry.is_dir() or link or hidden)


def _key(entry: zipfile.ZipInfo) -> str:
    """The entry's name as a key; BadArchive for one that is absolute, climbs or is no text."""
    name = _name(entry)
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


class _Rationed:
    """A file of which only so much is read that zipfile can find and read a directory; TooLarge for more.

    What the archive itself says of its directory need not be what zipfile goes by.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.seek, self.tell, self.seekable = file, file.seek, file.tell, file.seekable
        self.left = MAX_DIRECTORY + (1 << 18)  # its end is looked for in the last 64 kB, twice

    def read(self, size: int = -1) -> bytes:
        """As of any file."""
        if size > self.left:
            raise TooLarge(f"the archive's directory is larger than {MAX_DIRECTORY} bytes")
        data = self._file.read(size)
        self.left -= len(data)
        return data


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
