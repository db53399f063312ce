"""Folders and buckets under one interface: list, read, write whole or not at all, and only below allowed roots.

Folders go through the operating system, because links, `fsync` and temporary names need it; `s3://`, `gs://` and
`az://` go through obstore, whose credentials and endpoints come from the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`).
"""

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

_BUCKET = re.compile(r"(s3|gs|az)://[^/]+")
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT}
_TEMPORARY = re.compile(r"\..*\.part-\d+-\d+", re.DOTALL)
_CLOUDS = ("AWS", "GOOGLE", "AZURE")
_METADATA = "169.254.169.254"  # where a cloud's own machines are told their credentials; asked where none are given


class StorageError(Exception):
    """A picture cannot be read or written, and trying again will not help."""


class StorageTrouble(StorageError):
    """The storage cannot be used at the moment: the disk is full, the bucket does not answer. Worth trying again."""


class NotAllowed(ValueError):
    """A place that is refused, `input` or `output`: not below an allowed root, or an output inside its input."""

    def __init__(self, message: str, field: str = "output") -> None:
        super().__init__(message)
        self.field = field


class Place(Protocol):
    """A folder or a prefix of a bucket. Keys are relative, with `/` between their parts."""

    @property
    def url(self) -> str:
        """Its name, as it was given."""
        ...

    def list(self, recursive: bool = True, refused: dict[str, str] | None = None) -> Iterator[tuple[str, int]]:
        """Each file's key and size in bytes, in no order. Links, files being written and what is in hidden folders of
        this machine are left out. A folder below that cannot be read is an error, unless `refused` is given, which gets
        its key, with a / at the end, and the reason."""
        ...

    def read(self, key: str) -> bytes:
        """The whole file. Raises StorageError, or StorageTrouble where it may work later."""
        ...

    def size(self, key: str) -> int | None:
        """Its size in bytes; None where there is none."""
        ...

    def write(self, key: str, parts: bytes | Iterable[bytes], flush: bool = True) -> int:
        """Put the file there, whole or not at all, in place of one that is there. Returns its size in bytes.

        Without `flush` a power cut may take it back, until `flush` was called with its key.
        """
        ...

    def flush(self, keys: Iterable[str]) -> None:
        """Wait until these are on the disk; those that are gone are left out."""
        ...

    def stream(self, key: str) -> Iterator[bytes]:
        """The file in parts of about a megabyte."""
        ...

    def clear(self) -> None:
        """Delete everything there."""
        ...

    def tidy(self) -> None:
        """Delete what writers that were killed left half written; for when nobody writes there."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of this machine."""

    path: Path

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.path)

    def list(self, recursive: bool = True, refused: dict[str, str] | None = None) -> Iterator[tuple[str, int]]:
        """See `Place`."""
        waiting = [""]
        while waiting:
            below = waiting.pop()
            try:
                entries = os.scandir(self.path / below)
            except OSError as error:
                if below and refused is not None and error.errno not in _PASSING:
                    refused[below] = f"the folder cannot be read: {error.strerror}"
                    continue
                raise _of_os(error, str(self.path / below)) from error
            with entries:
                for entry in entries:
                    if entry.is_symlink() or _TEMPORARY.fullmatch(entry.name):
                        continue
                    if entry.is_dir():
                        if recursive and not entry.name.startswith("."):  # a trash need not be readable
                            waiting.append(f"{below}{entry.name}/")
                    elif entry.is_file():
                        with suppress(FileNotFoundError):  # it may be moved away meanwhile
                            yield f"{below}{entry.name}", entry.stat().st_size

    def read(self, key: str) -> bytes:
        """See `Place`."""
        try:
            return self._inside(key).read_bytes()
        except OSError as error:
            raise _of_os(error, key) from error

    def size(self, key: str) -> int | None:
        """See `Place`."""
        try:
            return self._inside(key).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _of_os(error, key) from error

    def write(self, key: str, parts: bytes | Iterable[bytes], flush: bool = True) -> int:
        """See `Place`. A temporary name in the same folder, flushed to the disk, then renamed."""
        path = self._inside(key)
        # 20 characters are at most 80 bytes; and on another machine a writer may have this one's number.
        temporary = path.with_name(f".{path.name[:20]}.part-{os.getpid()}-{secrets.randbits(64)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    size = sum(file.write(part) for part in ([parts] if isinstance(parts, bytes) else parts))
                    file.flush()
                    if flush:
                        os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise _of_os(error, key) from error
        return size

    def flush(self, keys: Iterable[str]) -> None:
        """See `Place`."""
        paths = [self._inside(key) for key in keys]
        for path in [*paths, *{path.parent for path in paths}]:  # a folder's own are the names
            try:
                file = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _of_os(error, str(path)) from error

    def stream(self, key: str) -> Iterator[bytes]:
        """See `Place`."""
        try:
            with self._inside(key).open("rb") as file:
                while part := file.read(1 << 20):
                    yield part
        except OSError as error:
            raise _of_os(error, key) from error

    def clear(self) -> None:
        """See `Place`."""
        shutil.rmtree(self.path, ignore_errors=True)

    def tidy(self) -> None:
        """See `Place`."""
        for folder, _, names in os.walk(self.path):
            for name in filter(_TEMPORARY.fullmatch, names):
                Path(folder, name).unlink(missing_ok=True)

    def _inside(self, key: str) -> Path:
        """The key's path; StorageError where a link or `..` in it leads out of the folder."""
        path = self.path / key
        root = Path(os.path.realpath(self.path))
        if not Path(os.path.realpath(path)).is_relative_to(root) or ".." in Path(key).parts:
            raise StorageError(f"{key} leads out of {self.path}")
        return path


class Bucket:
    """A prefix of an object store. Its own retries ride out what passes in seconds; the rest is StorageTrouble."""

    def __init__(self, url: str) -> None:
        from obstore.store import from_url

        self._url = url
        plain = any(os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() in ("1", "true") for cloud in _CLOUDS)
        options: dict[str, Any] = {
            "retry_config": {"max_retries": 8, "retry_timeout": timedelta(seconds=60)},
            "client_options": {
                "timeout": timedelta(seconds=120),
                "connect_timeout": timedelta(seconds=10),
                "allow_http": plain,
            },
        }
        try:
            self._store = from_url(url, **options)
        except Exception as error:  # obstore's, one kind for each cloud: the address or the environment is at fault
            raise StorageError(f"{url}: {_first_line(error)}{_hint(url)}") from error

    @property
    def url(self) -> str:
        """The prefix's address."""
        return self._url

    def list(self, recursive: bool = True, refused: dict[str, str] | None = None) -> Iterator[tuple[str, int]]:
        """See `Place`."""
        import obstore

        with _of_bucket(self.url):
            if not recursive:
                found: Iterable[Any] = [obstore.list_with_delimiter(self._store)["objects"]]
            else:
                found = obstore.list(self._store, chunk_size=1000)
            for page in found:
                for each in page:
                    if not each["path"].endswith("/"):
                        yield each["path"], each["size"]

    def read(self, key: str) -> bytes:
        """See `Place`."""
        import obstore

        with _of_bucket(key, self.url):
            return bytes(obstore.get(self._store, key).bytes())

    def size(self, key: str) -> int | None:
        """See `Place`."""
        import obstore

        try:
            with _of_bucket(key, self.url):
                return int(obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            return None

    def write(self, key: str, parts: bytes | Iterable[bytes], flush: bool = True) -> int:
        """See `Place`. A put is atomic; what is streamed goes up in parts that appear together at the end."""
        import obstore

        if isinstance(parts, bytes):
            with _of_bucket(key, self.url):
                obstore.put(self._store, key, parts)
            return len(parts)
        with tempfile.TemporaryFile() as file:  # the parts may come from a bucket, which obstore cannot do within a put
            size = sum(file.write(part) for part in parts)
            file.seek(0)
            with _of_bucket(key, self.url):
                obstore.put(self._store, key, file)
        return size

    def stream(self, key: str) -> Iterator[bytes]:
        """See `Place`."""
        import obstore

        with _of_bucket(key, self.url):
            yield from map(bytes, obstore.get(self._store, key).stream(min_chunk_size=1 << 20))

    def clear(self) -> None:
        """See `Place`."""
        import obstore

        with _of_bucket(self.url):
            for page in obstore.list(self._store, chunk_size=1000):
                obstore.delete(self._store, [each["path"] for each in page])

    def flush(self, keys: Iterable[str]) -> None:
        """See `Place`. What a bucket has taken is safe."""

    def tidy(self) -> None:
        """See `Place`. A bucket shows nothing half written; its own rules delete uploads that never ended."""


class _of_bucket:  # a context manager, named for how it reads: `with _of_bucket(key):`
    """Turns obstore's errors into this module's."""

    def __init__(self, key: str, url: str = "") -> None:
        self._key, self._url = key, url or key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from obstore import exceptions

        if isinstance(error, FileNotFoundError | exceptions.NotFoundError):
            raise Missing(f"{self._key}: there is no such object") from error
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            raise StorageError(f"{self._key}: access is denied") from error
        if isinstance(error, exceptions.InvalidPathError | exceptions.NotSupportedError | ValueError):
            raise StorageError(f"{self._key}: {_first_line(error)}") from error
        if isinstance(error, exceptions.BaseError | OSError):
            reason = _first_line(error)
            raise StorageTrouble(f"{self._key}: {reason}{_hint(self._url) if _METADATA in reason else ''}") from error


class Missing(StorageError, FileNotFoundError):
    """There is no such file."""


def _of_os(error: OSError, key: str) -> StorageError:
    reason = error.strerror or str(error)
    if isinstance(error, StorageError):
        return error
    if isinstance(error, FileNotFoundError):
        return Missing(f"{key}: {reason}")
    return (StorageTrouble if error.errno in _PASSING else StorageError)(f"{key}: {reason}")


def _hint(url: str) -> str:
    names = {"s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_SERVICE_ACCOUNT"}
    wanted = names.get(url.partition("://")[0], "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY")
    return f" (credentials come from the environment: {wanted}, …)"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def is_bucket(url: str) -> bool:
    """Whether the URL names a bucket rather than a folder."""
    return "://" in url


def open_place(url: str) -> Place:
    """The folder or bucket prefix of this name. Raises ValueError for what can be neither."""
    path = _folder(url)
    return Bucket(url.rstrip("/")) if path is None else Folder(path.absolute())


def _folder(url: str) -> Path | None:
    """The folder's path, None for a bucket's address; ValueError for what is neither."""
    if "\0" in url:
        raise ValueError(f"{url!r} has a NUL character, which no folder or bucket can have")
    if not is_bucket(url):
        return expanded(Path(url))
    if not _BUCKET.match(url):
        raise ValueError(f"{url} is neither a folder nor an s3://, gs:// or az:// address")
    return None


def expanded(path: Path) -> Path:
    """The path with the home folder in place of ~; ValueError where there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be found: there is no such user, or no home folder") from error


def resolved(url: str) -> tuple[str, ...]:
    """The place as parts that can be compared: a folder's with every link resolved, a bucket's without `..`."""
    path = _folder(url)
    if path is not None:
        return ("file", *Path(os.path.realpath(path)).parts)
    scheme, _, rest = url.partition("://")
    parts = [part for part in rest.split("/") if part]
    if {".", ".."} & set(parts) or set("?#%\\") & set(rest):
        raise NotAllowed(f"{url} must not contain . or .. as a part, nor any of ? # % \\")
    return (scheme, *parts)


def is_below(url: str, root: str) -> bool:
    """Whether a place is `root` or lies below it, links resolved."""
    inner, outer = resolved(url), resolved(root)
    return inner[: len(outer)] == outer


def check_places(source: str, target: str, roots: Sequence[str] | None) -> None:
    """NotAllowed where either is not below one of `roots` (None allows all), or one lies inside the other."""
    for name, url in (("input", source), ("output", target)):
        if roots is not None and not any(is_below(url, root) for root in roots):
            allowed = ", ".join(roots) or "none; SERVICE_STORAGE_ROOTS names them"
            raise NotAllowed(f"{name} {url} is not below a folder or bucket that is allowed ({allowed})", name)
    if is_below(target, source) or is_below(source, target):
        raise NotAllowed(f"output {target} and input {source} must not lie one inside the other")
