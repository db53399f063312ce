"""The pictures of a chunk: read, decoded, enlarged, encoded and written, each by one of the hands of a studio.

Where an accelerator enlarges, several hands overlap its work with reading, decoding, encoding and writing, and pictures
of equal size share a batch. On a CPU that would only take the network's cores away, which waits for the last of its
threads at every layer: there only waiting for a bucket is overlapped, and of a folder one picture is in hand at a time.
What is in memory at once stays under a budget, whatever the sizes.

Results are flushed to the disk behind the work, and a chunk's last is written down after all of them are there: a chunk
of which something is left may have lost to a power cut what it had done, one of which nothing is left has lost nothing.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, Protocol

from service.device import Device
from service.jobs import MAX_ATTEMPTS, JobSpec, PictureState
from service.pictures import InvalidPicture, Picture, announced, check_format, decode_picture, encode_picture
from service.plan import kept_record, named_format, output_format, output_key, picture_seed
from service.room import Budget, Turns
from service.storage import Place, StorageError, StorageTrouble, is_bucket

_log = logging.getLogger("service.jobs")
_HANDS_OF_A_CPU = 3  # one computes while the others wait for a bucket
_FLUSHED = 8, 1 << 22  # so many results, or bytes of them, are flushed together
_FILE_BYTES = 64 << 20, 16  # the most that a file has: for what is no pixels, and for each pixel that is taken
_IN_PLACE = 5.0  # seconds that a picture waits for its storage before other jobs' have their turn


class Ledger(Protocol):
    """Where a chunk's pictures are claimed and their results written down."""

    def begin(self, key: str) -> bool:
        """Count an attempt, before what might end the process; False where the chunk is to be left from now on."""
        ...

    def give_back(self, key: str) -> None:
        """Take an attempt back that the process outlived, and that came to no result yet."""
        ...

    def record(self, key: str, state: PictureState, record: dict[str, Any], following: str | None = None) -> bool:
        """Write down how it went and, in the same step, `begin` what follows it; whether that was begun."""
        ...

    def take_back(self, keys: Sequence[str]) -> None:
        """Results written down as done are not: they never came to the disk."""
        ...

    def waiting(self, reason: str | None) -> bool:
        """Say what the work waits for; None: nothing any more. False where it need not wait: the job is cancelled."""
        ...


class Stopped(Exception):
    """The work was told to stop, or lost its claim, before a picture came to a result."""


class PutOff(Exception):
    """The storage is in trouble for longer than others should wait: `waited` seconds of what patience there is."""

    def __init__(self, message: str, waited: float) -> None:
        super().__init__(message)
        self.waited = waited


class GivenUp(Exception):
    """Too many attempts at a picture ended the worker that made them."""


@dataclass(frozen=True)
class Task:
    """A picture to do: its key, size in bytes, the attempts made at it, whether its result may be there already."""

    key: str
    source_bytes: int
    attempts: int = 0
    verify: bool = False


@dataclass(frozen=True)
class Limits:
    """`max_pixels` of a result; pictures to a batch; bytes of pixels in hand at once; seconds to wait for storage."""

    max_pixels: int
    batch: int = 1
    bytes_in_hand: int = 512 << 20
    patience: float = 900.0


class Studio:
    """A device with the hands around it, shared by the chunks that a worker has in hand.

    `stop` set: pictures in hand are finished, no more are begun.
    """

    def __init__(self, device: Device, limits: Limits, stop: threading.Event) -> None:
        self.device, self.limits, self.stop = device, limits, stop
        self.overlaps = limits.batch > 1 or not device.upscaler.on_cpu
        self.hands = limits.batch + (os.cpu_count() or 1) if self.overlaps else _HANDS_OF_A_CPU
        self.budget, self.turns = Budget(limits.bytes_in_hand), Turns()
        self.flusher = ThreadPoolExecutor(1, "flusher")

    def compute(self, work: Callable[[], bytes]) -> bytes:
        """`work()`; on a CPU in the device's thread, so that nothing takes its cores away."""
        return work() if self.overlaps else self.device.run(work)

    def run(
        self,
        spec: JobSpec,
        source: Place,
        target: Place,
        tasks: Sequence[Task],
        ledger: Ledger,
        waited: float = 0.0,
    ) -> bool:
        """Do these pictures; False where it ended before the last, by `stop` or by the ledger's word.

        Those at which an attempt was begun before may have ended their process: each is done first, and alone.
        Raises PutOff where the storage is in trouble and patience, after `waited` seconds of it, does not end yet.
        """
        chunk = _Chunk(self, spec, source, target, ledger, len(tasks), self.limits.patience - waited)
        suspects, others = [task for task in tasks if task.attempts], [task for task in tasks if not task.attempts]
        try:
            if not self.overlaps and not is_bucket(source.url) and not is_bucket(target.url):
                chunk.do([*suspects, *others], alone=True)
            else:
                for task in suspects:
                    chunk.do([task], alone=True)
                with ThreadPoolExecutor(self.hands, "hand") as hands:
                    begun = [hands.submit(chunk.do, [task], alone=False) for task in others]
                for each in begun:
                    each.result()
        finally:
            chunk.end()
        return not chunk.over()


class _Chunk:
    """The pictures of one job that are done with the studio's means."""

    def __init__(
        self,
        studio: Studio,
        spec: JobSpec,
        source: Place,
        target: Place,
        ledger: Ledger,
        pending: int,
        patience: float,
    ) -> None:
        self.studio, self.spec, self.source, self.target, self.ledger = studio, spec, source, target, ledger
        self._patience = patience  # what is left of it since a result was last written
        self.left = threading.Event()  # the ledger said to leave the rest, or failed
        self._pending = pending
        self._written: dict[str, str] = {}  # keys by the names of results that may not be on the disk yet
        self._unflushed = 0  # their bytes
        self._spoilt: set[str] = set()  # keys of those that cannot be brought there
        self._changing = threading.Lock()

    def over(self) -> bool:
        """Whether no more pictures are to be begun."""
        return self.studio.stop.is_set() or self.left.is_set()

    def do(self, tasks: Sequence[Task], alone: bool) -> None:
        """Pictures one after another, each from its claim to its result in the ledger, whose errors are raised; `alone`
        in the process, and in the device's thread."""
        with self.studio.turns.take(alone):
            try:
                if alone:
                    self.studio.device.run(lambda: self._in_turn(tasks))
                else:
                    self._in_turn(tasks)
            except BaseException:
                self.left.set()
                raise

    def end(self) -> None:
        """Flush what is written when nobody writes any more; what did not get to the disk is not done."""
        self.studio.flusher.submit(self._flush).result()
        if self._spoilt:
            self.ledger.take_back(sorted(self._spoilt))

    def _flush_all(self) -> None:
        """Wait until all that is written is on the disk. StorageTrouble where some did not get there."""
        self.studio.flusher.submit(self._flush).result()
        if self._spoilt:
            raise StorageTrouble(f"{len(self._spoilt)} results did not get to the disk, {min(self._spoilt)} for one")

    def _flush(self) -> None:
        with self._changing:
            written, self._written, self._unflushed = self._written, {}, 0
        try:
            self.target.flush(written)
        except StorageError as error:
            _log.warning("flushing: %s", error)
            self._spoilt.update(written.values())

    def _in_turn(self, tasks: Sequence[Task]) -> None:
        """Each is begun in the same step that writes down the one before it."""
        begun = False
        for task, following in zip_longest(tasks, tasks[1:]):
            if not begun and self.over():
                return
            if not begun and not self.ledger.begin(task.key):
                self.left.set()
                return
            begun = self._begun(task, following)

    def _begun(self, task: Task, following: Task | None) -> bool:
        """Make a picture's result and write it down; whether what follows is begun."""
        output = output_key(task.key, self.spec.options.format)
        record = {"source": task.key, "output": output, "state": "failed", "source_bytes": task.source_bytes}
        state = PictureState.FAILED
        try:
            state = self._made(task, output, record)
        except Stopped:
            self.ledger.give_back(task.key)
            return False
        except PutOff:
            self.ledger.give_back(task.key)
            raise
        except (InvalidPicture, StorageError, GivenUp) as error:
            record["error"] = str(error)
        except Exception as error:  # a decoder's or the model's own failure is this picture's, not the job's
            _log.exception("%s", task.key)
            record["error"] = f"{type(error).__name__}: {error}"[:500]
        with self._changing:
            self._pending -= 1
            last = self._pending == 0
        if last:
            self._flush_all()
        return self.ledger.record(task.key, state, record, following.key if following and not self.over() else None)

    def _made(self, task: Task, output: str, record: dict[str, Any]) -> PictureState:
        """Make the result; `record` gets what is known of it, as far as it goes."""
        if task.attempts >= MAX_ATTEMPTS:
            raise GivenUp(f"given up: {task.attempts} attempts ended the worker that made them")
        if task.verify and not task.attempts and (size := self._kept(task, output)):
            record |= kept_record(self.spec, task.key, task.source_bytes, size)
            return PictureState.KEPT
        self._check_bytes(task)
        data = self._patiently(lambda: self.source.read(task.key))
        record["sha256"] = hashlib.sha256(data).hexdigest()
        with ExitStack() as held:
            result = self.studio.compute(lambda: self._enlarged(task, data, record, held))
            record["output_bytes"] = self._patiently(lambda: self.target.write(output, result, flush=False))
        self._patience = self.studio.limits.patience
        with self._changing:
            self._written[output] = task.key
            self._unflushed += record["output_bytes"]
            due = len(self._written) >= _FLUSHED[0] or self._unflushed >= _FLUSHED[1]
        if due:
            self.studio.flusher.submit(self._flush)
        record["state"] = "done"
        return PictureState.DONE

    def _enlarged(self, task: Task, data: bytes, record: dict[str, Any], held: ExitStack) -> bytes:
        """The result's file; `held` keeps the room in memory that it takes."""
        factor, device = self.spec.options.factor, self.studio.device
        held.enter_context(self.studio.budget.take(self._room(data)))
        picture = decode_picture(data, self.studio.limits.max_pixels // factor**2)
        height, width = picture.pixels.shape[:2]
        record["size"] = [width, height]
        self._check(task, picture)
        options, seed = self.spec.options.for_picture(picture), picture_seed(self.spec.seed, task.key)
        attempts = task.attempts + 1
        while True:
            try:
                result, seconds = device.enlarge(picture, seed, options, alone=attempts > 1)
                break
            except Exception as error:
                if attempts >= MAX_ATTEMPTS:
                    raise
                _log.warning("enlarging %s: %s: %s", task.key, type(error).__name__, error)
            attempts += 1
            if not self.ledger.begin(task.key):
                self.left.set()
                raise Stopped
        large = result.pixels.shape
        if large[:2] != (factor * height, factor * width):
            raise RuntimeError(f"promised ×{factor} of {width}x{height}, made {large[1]}x{large[0]}")
        record |= {"output_size": [large[1], large[0]], "settings": asdict(self.spec.options), "seed": seed}
        record |= {"seconds": round(seconds, 4), "attempts": attempts}
        metadata = device.upscaler.metadata(picture, seed, options)
        return encode_picture(result, output_format(task.key, options.format), options.quality, metadata)

    def _check_bytes(self, task: Task) -> None:
        """InvalidPicture where a file is too large to be a picture that is taken: it is not read into memory."""
        pixels = self.studio.limits.max_pixels
        most = _FILE_BYTES[0] + _FILE_BYTES[1] * (pixels // self.spec.options.factor**2)
        if task.source_bytes > most:
            raise InvalidPicture(
                f"the file has {task.source_bytes / 1e6:.1f} MB; at most {most / 1e6:.1f} MB are read where "
                f"SERVICE_MAX_PIXELS={pixels}",
                too_large=True,
            )

    def _room(self, data: bytes) -> int:
        """The bytes of a picture's pixels and its result's. InvalidPicture where those would be too many."""
        factor, most = self.spec.options.factor, self.studio.limits.max_pixels
        width, height, small = announced(data)
        if (large := width * height * factor**2) > most:
            raise InvalidPicture(
                f"the picture is {width}x{height}; at most {most / factor**2 / 1e6:g} megapixels are accepted at "
                f"×{factor}, and SERVICE_MAX_PIXELS={large}, the pixels of its result, would let it pass",
                too_large=True,
            )
        return small * (1 + factor**2)

    def _check(self, task: Task, picture: Picture) -> None:
        """InvalidPicture where the file is not what its name says, or the result's format cannot hold it."""
        options = self.spec.options
        named, found = named_format(task.key), picture.format
        if options.format is None and named is not None and found is not None and named != found:
            raise InvalidPicture(
                f"wrong suffix: the file is {found}, its name says {named}; rename it, or ask for a format"
            )
        check_format(picture, output_format(task.key, options.format), options.factor)

    def _kept(self, task: Task, output: str) -> int | None:
        """The bytes of a whole result that is there already: readable to its last line and of the right size."""
        try:
            if not self.target.size(output):
                return None
            data = self.target.read(output)
            *found, room = announced(data)
            *small, _ = announced(self.source.read(task.key))
            if sorted(found) != sorted(self.spec.options.factor * side for side in small):  # one may be turned
                return None
            with self.studio.budget.take(room):
                decode_picture(data, self.studio.limits.max_pixels)
        except Exception:  # whatever it is that cannot be read, it is not whole
            return None
        return len(data)

    def _patiently(self, work: Callable[[], Any]) -> Any:
        """`work()`, again while the storage is in trouble, until patience ends, for all that come after too; PutOff
        where it lasts, Stopped where the work is to end."""
        pause, began, told = 0.2, time.monotonic(), False
        while True:
            try:
                result = work()
            except StorageTrouble as error:
                waited = time.monotonic() - began
                if self._patience <= _IN_PLACE and waited >= self._patience:
                    self._patience = 0.0
                    raise
                if waited >= _IN_PLACE:
                    raise PutOff(str(error), self.studio.limits.patience - self._patience + waited) from error
                _log.warning("waiting for the storage: %s", error)
                if not self.ledger.waiting(str(error)) or self.studio.stop.wait(pause):
                    raise Stopped from error
                told = True
                pause = min(2 * pause, 10.0)
            else:
                if told:
                    self.ledger.waiting(None)
                return result
