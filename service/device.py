"""One upscaler and the one thread that uses it, shared by all who have pictures to enlarge."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from service.pictures import Picture
from service.requests import OutOfMemory
from service.upscale import UpscaleOptions

_T = TypeVar("_T")


class Upscaler(Protocol):
    """What enlarges pictures of equal size, channels and depth; used by one thread."""

    @property
    def on_cpu(self) -> bool:
        """Whether it computes on the processor, which decoding and encoding need too."""
        ...

    def upscale(self, pictures: Sequence[Picture], seeds: Sequence[int], options: UpscaleOptions) -> list[Picture]:
        """Each picture, `options.factor` times as large."""
        ...

    def metadata(self, picture: Picture, seed: int, options: UpscaleOptions) -> dict[str, str]:
        """What the file of a result says of how it was made; called by any thread."""
        ...


@dataclass(frozen=True, eq=False)
class _Request:
    picture: Picture
    seed: int
    options: UpscaleOptions
    alone: bool
    answer: "Future[tuple[Picture, float]]" = field(default_factory=Future)

    def fits(self, other: "_Request") -> bool:
        """Whether both may share a batch."""
        mine, its = self.picture.pixels, other.picture.pixels
        same = (mine.shape, mine.dtype, self.options) == (its.shape, its.dtype, other.options)
        return self is other or (same and not self.alone and not other.alone)


class Device:
    """Enlarges in a thread of its own, which also loads: torch keeps processor threads for each thread that calls it,
    and those of a second one would crowd the cores. Of what waits, equal pictures share batches of up to `batch`."""

    def __init__(self, load: Callable[[], Upscaler], batch: int = 1) -> None:
        self._thread = ThreadPoolExecutor(1, "device")
        self._batch = batch
        self._waiting: list[_Request] = []
        self._lock = threading.Lock()
        self._pause = threading.Event()
        self._pause.set()
        self._ident = self._thread.submit(threading.get_ident).result()
        self.upscaler = self.run(load)

    def run(self, work: Callable[[], _T]) -> _T:
        """`work()` in the device's thread, which enlarges nothing else meanwhile. Raises what `work` raises."""
        return work() if self._inside() else self._thread.submit(work).result()

    def enlarge(
        self, picture: Picture, seed: int, options: UpscaleOptions, alone: bool = False
    ) -> tuple[Picture, float]:
        """The picture enlarged, with its share of the batch's seconds. Raises what the upscaler raises.

        `alone` shares no batch.
        """
        request = _Request(picture, seed, options, alone)
        with self._lock:
            self._waiting.append(request)
        self.run(self._next)
        return request.answer.result()

    def wait_for_pause(self, patience: float) -> bool:
        """Wait until nothing is being enlarged, for so many seconds at most; whether nothing is."""
        return self._pause.wait(patience)

    def _inside(self) -> bool:
        return threading.get_ident() == self._ident

    def _next(self) -> None:
        with self._lock:
            batch = [each for each in self._waiting if self._waiting[0].fits(each)][: self._batch]
            self._waiting = [each for each in self._waiting if each not in batch]
        if batch:  # else they were taken with an earlier one
            self._enlarge(batch)

    def _enlarge(self, batch: Sequence[_Request]) -> None:
        began = time.perf_counter()
        try:
            pictures, seeds = [each.picture for each in batch], [each.seed for each in batch]
            self._pause.clear()
            try:
                results = self.upscaler.upscale(pictures, seeds, batch[0].options)
            finally:
                self._pause.set()
            share = (time.perf_counter() - began) / len(batch)
            for each, result in zip(batch, results, strict=True):
                each.answer.set_result((result, share))
        except OutOfMemory as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
            else:
                for each in batch:
                    self._enlarge([each])
        except Exception as error:
            for each in batch:
                if not each.answer.done():
                    each.answer.set_exception(error)
