"""Requests that are being answered: their state, their result for a while, and which were sent before."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from service.messages import Made
from service.metadata import metadata_of, settings_of
from service.pictures import MEDIA_TYPES, InvalidPicture, encode_picture, written_format
from service.pool import Cancelled, Expired, Job, Pool
from service.problems import Problem
from service.requests import GenerateRequest, Request
from service.settings import Settings

_log = logging.getLogger("service")


@dataclass(frozen=True)
class Output:
    """How a result is to be written: a format of `MEDIA_TYPES` or None for the picture's own, its quality, and whether
    the file says how it was made."""

    format: str | None = None
    quality: int = 95
    metadata: bool = True


@dataclass(frozen=True)
class Delivered:
    """A finished picture as a file, with how it was made."""

    data: bytes
    media_type: str
    width: int
    height: int
    seed: int
    settings: dict[str, Any]


class Record:
    """One HTTP request for pictures, from its acceptance until its result is forgotten.

    `detached`: it goes on when nobody follows it. `problem` says why there are no pictures.
    """

    def __init__(self, client: str, output: Output, detached: bool) -> None:
        self.id = secrets.token_hex(16)
        self.client = client
        self.output = output
        self.detached = detached
        self.created = time.time()
        self.ended: float | None = None
        self.jobs: list[Job] = []
        """Until it ends: they hold the pictures' pixels."""
        self.key: tuple[str, str] | None = None
        self.pictures: list[Delivered] = []
        self.problem: Problem | None = None
        self.unwanted = False
        """To be stopped, however far it is."""
        self.cancelled = False
        self.seconds: dict[str, float] = {}
        self.followers = 0
        self.version = 0
        self._changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """queued, running, succeeded, failed or cancelled."""
        if self.ended is not None:
            return "cancelled" if self.cancelled else "failed" if self.problem else "succeeded"
        return "running" if any(job.waited is not None for job in self.jobs) else "queued"

    @property
    def size(self) -> int:
        """Bytes of its pictures."""
        return sum(len(picture.data) for picture in self.pictures)

    def touch(self, job: Job | None = None) -> None:
        """Tell the followers that something changed."""
        self.version += 1
        self._changed.set()

    async def change(self, version: int) -> None:
        """Wait until something is newer than `version`."""
        while self.version == version:
            self._changed.clear()
            await self._changed.wait()

    async def wait(self) -> None:
        """Wait for the end."""
        while self.ended is None:
            await self.change(self.version)


class Records:
    """The records of one server. Results go after `result_seconds`, the oldest earlier where they take too much,
    never the newest."""

    def __init__(self, pool: Pool, settings: Settings, explain: Callable[[Exception], Problem]) -> None:
        self.pool = pool
        self._settings = settings
        self._explain = explain
        self._records: dict[str, Record] = {}
        self._ended: deque[Record] = deque()  # those of `_records` that are, in that order
        self._bytes = 0  # of their pictures
        self._keys: dict[tuple[str, str], tuple[bytes, Record]] = {}

    def start(self, client: str, requests: Sequence[Request], output: Output, detached: bool, watched: bool) -> Record:
        """Queue a request and answer for it in the background. Raises what `Pool.submit` does."""
        record = Record(client, output, detached)
        record.jobs = self.pool.submit(requests, client, record.touch, watched)
        self._sweep()
        self._records[record.id] = record
        record.task = asyncio.create_task(self._answer(record))
        return record

    def find(self, id: str, client: str) -> Record | None:
        """The client's record of this id."""
        self._sweep()
        record = self._records.get(id)
        return record if record is not None and record.client == client else None

    def repeated(self, client: str, key: str, fingerprint: bytes) -> Record | None:
        """The record that was started under this Idempotency-Key; none where it was or is being cancelled or the server
        failed at it, so that it is done anew. Problem 422 where that was another request."""
        self._sweep()
        known, record = self._keys.get((client, key), (b"", None))
        if record is None or record.cancelled or (record.unwanted and record.ended is None):
            return None
        if record.problem is not None and record.problem.status_code >= 500:
            return None
        if known != fingerprint:
            raise Problem(422, f"the Idempotency-Key {key!r} was used for another request; take a new one")
        return record

    def remember(self, client: str, key: str, fingerprint: bytes, record: Record) -> None:
        """Have `repeated` find the record."""
        record.key = client, key
        self._keys[record.key] = fingerprint, record

    def cancel(self, record: Record) -> None:
        """Stop the request's work."""
        record.unwanted = True
        for job in record.jobs:
            self.pool.cancel(job)

    def leave(self, record: Record) -> None:
        """A follower is gone; the last one's leaving cancels what is not detached."""
        record.followers -= 1
        if record.followers <= 0 and not record.detached and record.ended is None:
            _log.info("the client went away from %s", record.id)
            self.cancel(record)

    async def _answer(self, record: Record) -> None:
        try:
            async with asyncio.timeout(self._settings.request_timeout):
                made = await self._all(record)
                start = time.perf_counter()
                record.pictures = [await self._deliver(record, job, one) for job, one in made]
            record.seconds = {
                "queue": max(job.waited or 0.0 for job in record.jobs),
                **made[-1][1].seconds,
                "encode": time.perf_counter() - start,
            }
        except TimeoutError:
            for job in record.jobs:
                self.pool.cancel(job, Expired("out of time"))
            record.problem = self._explain(Expired(f"not done within {self._settings.request_timeout:g} s"))
        except Exception as error:
            record.cancelled = isinstance(error, Cancelled)
            record.problem = self._explain(error)
        record.ended, record.jobs = time.time(), []
        self._ended.append(record)
        self._bytes += record.size
        record.touch()

    async def _all(self, record: Record) -> list[tuple[Job, Made]]:
        """The outcomes of all jobs; the first failure cancels the rest."""
        # Not gather, which would cancel the futures, rather than the work, where the time is up.
        await asyncio.wait([job.done for job in record.jobs], return_when=asyncio.FIRST_EXCEPTION)
        failed = [error for job in record.jobs if job.done.done() and (error := job.done.exception())]
        if failed:
            self.cancel(record)
            raise failed[0]
        return [(job, job.done.result()) for job in record.jobs]

    async def _deliver(self, record: Record, job: Job, made: Made) -> Delivered:
        delivered = await asyncio.to_thread(deliver, job.request, made, record.output, self.pool.info.versions)
        if record.unwanted:
            raise Cancelled("the request was cancelled")
        return delivered

    def _sweep(self) -> None:
        """Forget what is old, and the oldest results where there are too many bytes of them; but not the newest, which
        nobody could have fetched."""
        least, most = time.time() - self._settings.result_seconds, self._settings.result_bytes
        while self._ended and ((self._bytes > most and len(self._ended) > 1) or (self._ended[0].ended or 0.0) < least):
            record = self._ended.popleft()
            self._bytes -= record.size
            del self._records[record.id]
            if record.key is not None and self._keys.get(record.key, (b"", None))[1] is record:
                del self._keys[record.key]


def deliver(request: Request, made: Made, output: Output, versions: dict[str, str]) -> Delivered:
    """A made picture as a file. Raises ValueError where it is not of the size that was promised."""
    height, width, channels = made.picture.pixels.shape
    base_width, base_height = made.used.base_size
    if (width, height) != (base_width * made.used.upscale, base_height * made.used.upscale) or channels > 4:
        raise ValueError(f"promised {made.used.upscale} times {base_width}x{base_height}, made {width}x{height}")
    format = written_format(made.picture, output.format)
    metadata = metadata_of(request, made.used, versions) if output.metadata else None
    data = encode_picture(made.picture, format, output.quality, metadata)
    return Delivered(data, MEDIA_TYPES[format], width, height, request.seed, settings_of(request, made.used))


def small_picture(pixels: Any) -> str:
    """A preview, uint8 RGB (H, W, 3), as a `data:` URL of a JPEG of at most 128 pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((128, 128))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def with_seeds(request: GenerateRequest, number: int) -> list[GenerateRequest]:
    """`number` pictures of one request: its seed and those that follow it."""
    return [replace(request, seed=(request.seed + index) % 2**32) for index in range(number)]


__all__ = ["Delivered", "InvalidPicture", "Output", "Record", "Records", "deliver", "small_picture", "with_seeds"]
