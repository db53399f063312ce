"""ZIP archives in and out: unpacked with limits and no way out of the folder, packed as they are sent."""

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import IO

from service.storage import Place

MAX_FILES = 100_000
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PART = 1 << 20


class BadArchive(ValueError):
    """The upload is no archive that is taken; the message says why."""


def unpack(file: IO[bytes], target: Place, max_bytes: int) -> int:
    """Write an archive's files below `target`; how many. Folders, links and hidden files are left out.

    Raises BadArchive for what is no ZIP, is damaged, encrypted, leads out of the folder, or holds more than `max_bytes`
    or MAX_FILES: before anything is written where its directory tells.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            wanted = [entry for entry in archive.infolist() if _taken(entry)]
            if len(wanted) > MAX_FILES or sum(entry.file_size for entry in wanted) > max_bytes:
                raise BadArchive(f"the archive holds more than {MAX_FILES} files or {max_bytes} bytes")
            keys = [_key(entry) for entry in wanted]
            if len(set(keys)) < len(keys):
                raise BadArchive("two files of the archive have one name")
            for entry, key in zip(wanted, keys, strict=True):
                if entry.flag_bits & 1:
                    raise BadArchive(f"{key} is encrypted")
                with archive.open(entry) as packed:  # reads no more than file_size, and checks the sum
                    target.write(key, iter(lambda packed=packed: packed.read(_PART), b""))  # type: ignore[misc]
            return len(wanted)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise BadArchive(f"the upload is not a ZIP archive that can be read: {error}") from error


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


def _taken(entry: zipfile.ZipInfo) -> bool:
    link = entry.external_attr >> 16 & 0o170000 == 0o120000
    parts = PurePosixPath(entry.filename).parts
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
    return not (entry.is_dir() or link or hidden)


def _key(entry: zipfile.ZipInfo) -> str:
    """The entry's name as a key; BadArchive for one that is absolute or climbs."""
    name = entry.filename
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0] or not name.isprintable():
        raise BadArchive(f"{name[:100]!r} is a name that leads elsewhere")
    return str(path)


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
