"""The pictures of a chunk, one after another: read ahead and decoded, enlarged, encoded and written behind.

Reading, the network and writing overlap; pictures of equal size share a batch; what is in memory at once stays under
a budget, whatever the sizes.
"""

import hashlib
import io
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from PIL import Image

from service.jobs import MAX_ATTEMPTS, JobSpec, PictureState
from service.pictures import InvalidPicture, Picture, check_format, decode_picture, encode_picture
from service.plan import kept_record, named_format, output_format, output_key, picture_seed
from service.storage import Place, StorageError, StorageTrouble
from service.upscale import UpscaleOptions

_log = logging.getLogger("service.jobs")
_WRITERS = 4  # they mostly wait for the disk


class Upscaler(Protocol):
    """What enlarges pictures of equal size, channels and depth; used by one thread at a time."""

    def upscale(self, pictures: Sequence[Picture], seeds: Sequence[int], options: UpscaleOptions) -> list[Picture]:
        """Each picture, `options.factor` times as large."""
        ...

    def metadata(self, picture: Picture, seed: int, options: UpscaleOptions) -> dict[str, str]:
        """What the file of a result says of how it was made; called by any thread."""
        ...


class Ledger(Protocol):
    """Where a chunk's pictures are claimed and their results written down."""

    def begin(self, key: str) -> bool:
        """Count an attempt, before what might end the process; False where the chunk is to be left from now on."""
        ...

    def give_back(self, key: str) -> None:
        """Take an attempt back that the process outlived, and that came to no result yet."""
        ...

    def record(self, key: str, state: PictureState, record: dict[str, Any]) -> None:
        """Write down how it went."""
        ...

    def waiting(self, reason: str | None) -> bool:
        """Say what the work waits for; None: nothing any more. False where it need not wait: the job is cancelled."""
        ...


class Stopped(Exception):
    """The work was told to stop while it waited for the storage."""


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


@dataclass(frozen=True)
class _Loaded:
    task: Task
    picture: Picture
    record: dict[str, Any]
    cost: int
    began: float


class Budget:
    """Bytes that may be in hand at once; one picture may always be, however large."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    def take(self, cost: int) -> None:
        """Wait until there is room."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + cost <= self._limit)
            self._used += cost

    def free(self, cost: int) -> None:
        """Make the room free again."""
        with self._changed:
            self._used -= cost
            self._changed.notify_all()


class Studio:
    """One upscaler with the threads around it, shared by the chunks that a worker has in hand.

    `stop` set: pictures in hand are finished, no more are begun.
    """

    def __init__(self, upscaler: Upscaler, limits: Limits, stop: threading.Event) -> None:
        self.limits = limits
        self.stop = stop
        self.budget = Budget(limits.bytes_in_hand)
        self.writers = ThreadPoolExecutor(_WRITERS, "writer")
        self.upscaler = upscaler
        self.device = threading.Lock()

    def run(self, spec: JobSpec, source: Place, target: Place, tasks: Sequence[Task], ledger: Ledger) -> bool:
        """Do these pictures; False where it ended before the last, by `stop` or by the ledger's word.

        Those at which an attempt was begun before may have ended their process: each is done first and alone.
        """
        chunk = _Chunk(self, spec, source, target, ledger)
        suspects = [task for task in tasks if task.attempts]
        fresh = [task for task in tasks if not task.attempts]
        return all(chunk.run([task]) for task in suspects) and chunk.run(fresh)


class _Chunk:
    """The pictures of one job that a thread does with the studio's means."""

    def __init__(self, studio: Studio, spec: JobSpec, source: Place, target: Place, ledger: Ledger) -> None:
        self.studio, self.spec, self.source, self.target, self.ledger = studio, spec, source, target, ledger
        self.left = threading.Event()  # the ledger said to leave the rest

    def run(self, tasks: Sequence[Task]) -> bool:
        """Do the tasks; False where they were left before the last."""
        if not tasks:
            return True
        loaded: queue.Queue[_Loaded | None] = queue.Queue(2 * self.studio.limits.batch)
        reader = threading.Thread(target=self._read_all, args=(tasks, loaded), name="reader", daemon=True)
        reader.start()
        writing: list[Future[None]] = []
        for batch in _batches(loaded, self.studio.limits.batch):
            if self.studio.stop.is_set() or self.left.is_set():
                self._drop(batch)
                continue
            writing += self._enlarge(batch)
            while len(writing) >= _WRITERS * self.studio.limits.batch:
                writing.pop(0).result()
        for each in writing:
            each.result()
        reader.join()
        return not self.studio.stop.is_set() and not self.left.is_set()

    def _read_all(self, tasks: Sequence[Task], loaded: "queue.Queue[_Loaded | None]") -> None:
        try:
            for task in tasks:
                if self.studio.stop.is_set() or self.left.is_set():
                    break
                if (item := self._load(task)) is not None:
                    self.studio.budget.take(item.cost)
                    loaded.put(item)
        except Exception:  # the ledger failed: whoever runs the chunk tries it again
            _log.exception("reading ahead ended early")
            self.left.set()
        finally:
            loaded.put(None)

    def _load(self, task: Task) -> _Loaded | None:
        """The decoded picture; None where there is nothing to enlarge, which the ledger then knows."""
        if not self.ledger.begin(task.key):
            self.left.set()
            return None
        if task.attempts >= MAX_ATTEMPTS:
            self._fail(task, {}, f"given up: {task.attempts} attempts ended the worker that made them")
            return None
        began = time.perf_counter()
        if task.verify and not task.attempts and self._kept(task):
            return None
        record: dict[str, Any] = {}
        try:
            data = self._patiently(lambda: self.source.read(task.key))
            record = {"sha256": hashlib.sha256(data).hexdigest()}
            factor = self.spec.options.factor
            picture = decode_picture(data, self.studio.limits.max_pixels // factor**2)
            height, width = picture.pixels.shape[:2]
            record |= {"size": [width, height]}
            self._check(task, picture)
            self.ledger.give_back(task.key)  # while it waits for the device, a death is not its doing
        except Stopped:
            self.ledger.give_back(task.key)
            return None
        except (InvalidPicture, StorageError) as error:
            self._fail(task, record, str(error))
            return None
        except Exception as error:  # a decoder's own failure is this picture's, not the job's
            _log.exception("%s", task.key)
            self._fail(task, record, f"{type(error).__name__}: {error}")
            return None
        return _Loaded(task, picture, record, picture.pixels.nbytes * (1 + factor**2), began)

    def _check(self, task: Task, picture: Picture) -> None:
        """InvalidPicture where the file is not what its name says, or the result's format cannot hold it."""
        options = self.spec.options
        named, found = named_format(task.key), picture.format
        if options.format is None and named is not None and found is not None and named != found:
            raise InvalidPicture(
                f"wrong suffix: the file is {found}, its name says {named}; rename it, or ask for a format"
            )
        check_format(picture, output_format(task.key, options.format), options.factor)

    def _kept(self, task: Task) -> bool:
        """Whether a whole result is there already: readable to its last line and of the right size."""
        output = output_key(task.key, self.spec.options.format)
        try:
            if not self.target.size(output):
                return False
            data = self.target.read(output)
            found = decode_picture(data, self.studio.limits.max_pixels).pixels.shape[:2]
            with Image.open(io.BytesIO(self.source.read(task.key))) as small:
                if sorted(found) != sorted(self.spec.options.factor * side for side in small.size):
                    return False
        except Exception:  # whatever it is that cannot be read, it is not whole
            return False
        self.ledger.record(task.key, PictureState.KEPT, kept_record(self.spec, task.key, task.source_bytes, len(data)))
        return True

    def _enlarge(self, batch: list[_Loaded]) -> list[Future[None]]:
        """Enlarge a batch and hand its results to the writers. Where that fails, each of it is tried alone."""
        studio, options = self.studio, self.spec.options.for_picture(batch[0].picture)
        seeds = [picture_seed(self.spec.seed, item.task.key) for item in batch]
        with studio.device:
            begun = [item for item in batch if self.ledger.begin(item.task.key)]
            if len(begun) < len(batch):
                self.left.set()
                self._drop(batch, begun)
                return []
            began = time.perf_counter()
            problem: Exception | None = None
            try:
                results = studio.upscaler.upscale([item.picture for item in batch], seeds, options)
            except Exception as error:
                _log.warning("enlarging %s: %s: %s", batch[0].task.key, type(error).__name__, error)
                problem = error
        if problem is not None:
            return [future for item in batch for future in self._again(item, problem)]
        share = (time.perf_counter() - began) / len(batch)
        return [
            self.studio.writers.submit(self._write, item, result, seed, share)
            for item, result, seed in zip(batch, results, seeds, strict=True)
        ]

    def _again(self, item: _Loaded, error: Exception) -> list[Future[None]]:
        """One more attempt at a picture that failed, or its failure written down after the last."""
        attempts = item.task.attempts + 1
        if attempts >= MAX_ATTEMPTS:
            self._fail(item.task, item.record, f"{type(error).__name__}: {error}"[:500])
            self.studio.budget.free(item.cost)
            return []
        return self._enlarge([replace(item, task=replace(item.task, attempts=attempts))])

    def _write(self, item: _Loaded, result: Picture, seed: int, seconds: float) -> None:
        """Encode and write a result, then write down that it is there."""
        task, options = item.task, self.spec.options
        output = output_key(task.key, options.format)
        try:
            height, width = result.pixels.shape[:2]
            small = item.picture.pixels.shape
            if (height, width) != (options.factor * small[0], options.factor * small[1]):
                raise RuntimeError(f"promised ×{options.factor} of {small[1]}x{small[0]}, made {width}x{height}")
            metadata = self.studio.upscaler.metadata(item.picture, seed, options.for_picture(item.picture))
            data = encode_picture(result, output_format(task.key, options.format), options.quality, metadata)
            self._patiently(lambda: self.target.write(output, data))
        except Stopped:
            self.ledger.give_back(task.key)
        except Exception as error:
            if not isinstance(error, StorageError | InvalidPicture):
                _log.exception("%s", task.key)
            self._fail(task, item.record, str(error))
        else:
            record = {
                "source": task.key,
                "output": output,
                "state": "done",
                "source_bytes": task.source_bytes,
                "output_bytes": len(data),
                **item.record,
                "output_size": [width, height],
                "settings": asdict(options),
                "seed": seed,
                "seconds": round(seconds, 4),
                "attempts": task.attempts + 1,
            }
            self.ledger.record(task.key, PictureState.DONE, record)
        finally:
            self.studio.budget.free(item.cost)

    def _patiently(self, work: Callable[[], Any]) -> Any:
        """`work()`, again while the storage is in trouble, until patience ends; Stopped where the work is to end."""
        pause, deadline, told = 0.2, time.monotonic() + self.studio.limits.patience, False
        while True:
            try:
                result = work()
            except StorageTrouble as error:
                if time.monotonic() > deadline:
                    raise
                _log.warning("waiting for the storage: %s", error)
                if not self.ledger.waiting(str(error)) or self.studio.stop.wait(pause):
                    raise Stopped from error
                told = True
                pause = min(2 * pause, 10.0)
            else:
                if told:
                    self.ledger.waiting(None)
                return result

    def _fail(self, task: Task, record: dict[str, Any], error: str) -> None:
        output = output_key(task.key, self.spec.options.format)
        known = {"source": task.key, "output": output, "state": "failed", "source_bytes": task.source_bytes}
        self.ledger.record(task.key, PictureState.FAILED, {**known, **record, "error": error})

    def _drop(self, batch: list[_Loaded], begun: Sequence[_Loaded] = ()) -> None:
        for item in begun:
            self.ledger.give_back(item.task.key)
        for item in batch:
            self.studio.budget.free(item.cost)


def _batches(loaded: "queue.Queue[_Loaded | None]", size: int) -> Iterator[list[_Loaded]]:
    """What is loaded, in batches of equal shape, depth and consistency of up to `size`; none waits for another to be
    loaded."""
    waiting: list[_Loaded] = []
    more = True
    while more or waiting:
        while more and (not waiting or len(waiting) < size):
            try:
                item = loaded.get(block=not waiting)
            except queue.Empty:
                break
            if item is None:
                more = False
            else:
                waiting.append(item)
        if not waiting:
            continue
        kind = _kind(waiting[0])
        batch = [item for item in waiting if _kind(item) == kind][:size]
        waiting = [item for item in waiting if not any(item is each for each in batch)]
        yield batch


def _kind(item: _Loaded) -> tuple[Any, ...]:
    return (*item.picture.pixels.shape, item.picture.pixels.dtype, item.picture.consistency(None))
