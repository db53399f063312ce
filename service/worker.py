"""The process that owns a device: it loads a cascade, runs one batch after another, and answers over a pipe.

It talks in the plain data of `messages.py`, and ends when the pipe does, so it never outlives the server.
`service/process.py` is the other end.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import numpy as np

from service.logs import set_up_logging
from service.messages import (
    BatchDone,
    Beat,
    Cancel,
    Failure,
    Finished,
    Item,
    Loaded,
    LoadFailed,
    Made,
    Run,
    Stepped,
    Timed,
)
from service.requests import (
    Cascade,
    GenerateRequest,
    GenerateResult,
    InvalidRequest,
    NotWanted,
    OutOfMemory,
    UpscaleRequest,
)
from service.settings import Settings
from service.upscale import Progress
from sr3.images import Picture

CascadeFactory = Callable[[Settings], Cascade]
BEAT_SECONDS = 0.5
PREVIEW_SECONDS = 0.4
STEP_SECONDS = 0.25  # how often steps are told of that nobody watches
STILL_SECONDS = 2.0  # how often the same step is told of again while it is worked on, so that no stall is seen in it
FITS_SECONDS = 600.0  # then a batch that had no room is tried again: others may have had the device's memory
_log = logging.getLogger("service.worker")


class Stop(Exception):
    """Every item of the running batch was cancelled."""


def run_worker(pipe: Connection, factory: CascadeFactory, settings: Settings) -> None:
    """The process's life: load, then do what comes through the pipe until it ends."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)  # who stops the server stops us by closing the pipe
    set_up_logging(settings)
    inbox = _Inbox(pipe)
    threading.Thread(target=inbox.read, name="inbox", daemon=True).start()
    threading.Thread(target=_beat, args=(inbox,), name="heartbeat", daemon=True).start()
    try:
        cascade = factory(settings)
        info = cascade.info()
    except BaseException as error:  # whatever it is, it must be told
        _log.debug("loading failed", exc_info=error)
        reason = " ".join(str(error).split()) or "no reason given"
        inbox.send(LoadFailed(f"{type(error).__name__}: {reason}"))
        return
    inbox.send(Loaded(info))
    runner = _Runner(cascade, inbox)
    while True:
        runner.run(inbox.batches.get().items)


class _Inbox:
    """The worker's end of the pipe: batches as they come, and which ids were cancelled."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self.batches: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self.cancelled: set[str] = set()

    def read(self) -> None:
        """Read until the server is gone; then end this process, whatever it is doing."""
        try:
            while True:
                message = self._pipe.recv()
                if isinstance(message, Cancel):
                    self.cancelled.add(message.id)
                else:
                    self.batches.put(message)
        except (EOFError, OSError):
            os._exit(0)

    def send(self, message: object) -> None:
        """Tell the server, from any thread."""
        try:
            with self._lock:
                self._pipe.send(message)
        except OSError:
            os._exit(0)


def _beat(inbox: _Inbox) -> None:
    while True:
        inbox.send(Beat(_resident(), _device_memory()))
        time.sleep(BEAT_SECONDS)


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _device_memory() -> int:
    torch = sys.modules.get("torch")  # never the first to import it
    cuda = getattr(torch, "cuda", None)
    return int(cuda.memory_reserved()) if cuda and cuda.is_available() and cuda.is_initialized() else 0


class _Runner:
    """Runs batches on a cascade, and halves those that do not fit the device."""

    def __init__(self, cascade: Cascade, inbox: _Inbox, now: Callable[[], float] = time.monotonic) -> None:
        self._cascade, self._inbox, self._now = cascade, inbox, now
        self._fits: dict[object, tuple[int, float]] = {}  # how many of a key, and until when that holds
        self._shown = 0.0
        self._previewing = self._preview_failed = False

    def run(self, items: Sequence[Item]) -> None:
        """Do the batch and answer for each of its items."""
        start = time.monotonic()
        key = items[0].request.key()
        self._fits = {each: fit for each, fit in self._fits.items() if fit[1] > self._now()}
        size, _ = self._fits.get(key, (len(items), 0.0))
        for first in range(0, len(items), size):
            self._run_part(key, items[first : first + size])
        stopped = all(item.id in self._inbox.cancelled for item in items)
        self._inbox.cancelled.clear()  # also of those that were done before their cancellation came
        self._inbox.send(BatchDone(len(items), time.monotonic() - start, stopped))

    def _run_part(self, key: object, items: Sequence[Item]) -> None:
        try:
            outcomes = self._outcomes(items)
        except OutOfMemory as error:
            if len(items) > 1:
                half = (len(items) + 1) // 2
                self._fits[key] = half, self._now() + FITS_SECONDS
                _log.warning("out of memory with %d pictures; trying %d", len(items), half)
                self._run_part(key, items[:half])
                self._run_part(key, items[half:])
                return
            outcomes = [Failure("memory", str(error))]
        except Stop:
            outcomes = [Failure("cancelled", "cancelled") for _ in items]
        except BaseException as error:  # an item without an answer would hang its client
            _log.exception("requests %s failed", ", ".join(item.trace for item in items))
            outcomes = [_failure(error) for _ in items]
        made = next((each for each in outcomes if isinstance(each, Made)), None)
        if made is not None:
            self._inbox.send(Timed(made.seconds))
        for item, outcome in zip(items, outcomes, strict=True):
            self._inbox.send(Finished(item.id, outcome))

    def _outcomes(self, items: Sequence[Item]) -> list[Made | Failure]:
        on_step = self._on_step(items)
        first = items[0].request
        if isinstance(first, GenerateRequest):
            wanted = [item.request for item in items if isinstance(item.request, GenerateRequest)]
            made = self._cascade.generate(wanted, on_step, lambda index: items[index].id not in self._inbox.cancelled)
            return [_made(item, each) for item, each in zip(items, made, strict=True)]
        enlarge = [item.request for item in items if isinstance(item.request, UpscaleRequest)]
        start = time.perf_counter()
        pictures = self._cascade.upscale(
            [each.picture for each in enlarge], [each.seed for each in enlarge], enlarge[0].options, on_step
        )
        seconds = {f"x{first.options.factor}": time.perf_counter() - start}
        used = self._cascade.used(first)
        return [Made(picture, seconds, used) for picture in pictures]

    def _on_step(self, items: Sequence[Item]) -> Callable[[Progress], None]:
        ids = tuple(item.id for item in items)
        watched = any(item.watched for item in items)
        stage, step, told = "", 0, 0.0

        def tell(progress: Progress) -> None:
            nonlocal stage, step, told
            if all(each in self._inbox.cancelled for each in ids):
                raise Stop
            before, now = step if progress.stage == stage else -1, self._now()
            at_once = watched or progress.step == progress.steps
            wait = STILL_SECONDS if progress.step == before else 0.0 if at_once else STEP_SECONDS
            if now - told < wait:
                return
            stage, step, told = progress.stage, progress.step, now
            previews = self._previews(items, progress)
            new = step - max(before, 0)
            self._inbox.send(Stepped(ids, stage, step, progress.steps, new, previews))

        return tell

    def _previews(self, items: Sequence[Item], progress: Progress) -> dict[str, np.ndarray]:
        """Small pictures for those who look, a few times a second; none, and a line in the log, where they fail."""
        watched = [item.watched for item in items]
        if self._previewing or progress.preview is None or not any(watched):
            return {}
        if self._now() - self._shown < PREVIEW_SECONDS:
            return {}
        shown = items if progress.of is None else [items[index] for index in progress.of]
        self._previewing = True  # it may run a network, at whose blocks this is come to again, and the work can end
        try:
            pictures = list(zip(shown, progress.preview(), strict=True))
        except Stop:
            raise
        except Exception as error:
            if not self._preview_failed:
                _log.warning("this model's previews fail", exc_info=error)
            self._preview_failed = True
            return {}
        finally:
            self._previewing, self._shown = False, self._now()
        return {item.id: picture for item, picture in pictures if item.watched}


def _made(item: Item, outcome: GenerateResult | Exception) -> Made | Failure:
    if isinstance(outcome, NotWanted):
        return Failure("cancelled", "cancelled")
    if isinstance(outcome, Exception):
        if not isinstance(outcome, InvalidRequest):
            _log.error("request %s failed: %s", item.trace, outcome)
        return _failure(outcome)
    return Made(Picture(outcome.image), outcome.seconds, outcome.used)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, InvalidRequest):
        return Failure("invalid", str(error), error.field, error.got)
    return Failure("error", f"{type(error).__name__}: {error}")
