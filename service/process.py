"""One worker process and its replacement: started, watched, and started again with back-off when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Any

from service.messages import BatchDone, Beat, Cancel, Finished, Item, Loaded, LoadFailed, Run
from service.requests import ModelInfo
from service.settings import Settings
from service.worker import CascadeFactory, run_worker

_log = logging.getLogger("service")
FIRST_DELAY, LONGEST_DELAY = 0.1, 30.0
LOAD_SECONDS = 900.0  # unless a model may come from the hub, which takes as long as it takes
# Where the platform has it, a server that has imported torch once and forks a worker from that state.
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def warm_up() -> None:
    """Have the fork server import what loading the models will, so that a worker that died is soon replaced."""
    if METHOD == "forkserver":
        multiprocessing.get_context(METHOD).set_forkserver_preload(["service.preload"])


class State(StrEnum):
    """Where a worker process stands."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"


class WorkerProcess:
    """The process for one device, seen from the server's event loop; every method is called there.

    `on_message` gets what the process says about its batch, `on_change` is called when it becomes ready, is lost or
    fails for good. `batch` is what it is doing, `cancelled` when it was last told to stop with something.
    """

    def __init__(
        self,
        factory: CascadeFactory,
        settings: Settings,
        on_message: Callable[[WorkerProcess, object], None],
        on_change: Callable[[WorkerProcess], None],
    ) -> None:
        self.state = State.LOADING
        self.info: ModelInfo | None = None
        self.failure = ""
        self.batch: dict[str, Item] = {}
        self.busy = False
        self.memory = self.device_memory = 0
        self.cancelled = 0.0
        self._factory, self._settings = factory, settings
        self._on_message, self._on_change = on_message, on_change
        self._process: Any = None
        self._pipe: Connection | None = None
        self._sender = ThreadPoolExecutor(1, "to-worker")
        self._last_beat = self._last_step = self._started = 0.0
        self._killed = ""  # why
        self._delay = FIRST_DELAY
        self._generation = 0

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def alive(self) -> bool:
        """Ready, and heard of a moment ago."""
        return self.state is State.READY and self._now() - self._last_beat < self._settings.heartbeat_seconds

    def start(self) -> None:
        """Start the process; it loads in its own time. One that cannot be started is lost like one that died."""
        self._loop = asyncio.get_running_loop()
        self.state, self._generation = State.LOADING, self._generation + 1
        self._started, self._last_beat, self._killed = self._now(), self._now(), ""
        try:
            self._begin(self._generation)
        except Exception as error:  # no descriptor or no thread is free
            self._loop.call_soon(self._lost, self._generation, _not_started(error))

    def _begin(self, generation: int) -> None:
        context: Any = multiprocessing.get_context(METHOD)
        theirs, ours = context.Pipe()
        process = context.Process(
            target=run_worker, args=(theirs, self._factory, self._settings), name="cascade", daemon=True
        )

        def live() -> None:
            try:
                with theirs:
                    process.start()  # may wait for the fork server to import torch
            except Exception as error:
                ours.close()
                self._tell(self._lost, generation, _not_started(error))
            else:
                self._read(ours, process, generation)

        threading.Thread(target=live, name="from-worker", daemon=True).start()
        self._process, self._pipe = process, ours

    def run(self, items: list[Item]) -> None:
        """Give the idle process a batch."""
        self.batch = {item.id: item for item in items}
        self.busy, self._last_step = True, self._now()
        self._send(Run(tuple(items)))

    def cancel(self, id: str) -> None:
        """Have the process stop with this item."""
        self.cancelled = self._now()
        self._send(Cancel(id))

    def check(self) -> None:
        """Kill the process where it is silent, stuck or takes too long to load; called now and then."""
        now, settings = self._now(), self._settings
        reason = ""
        longest = math.inf if settings.allow_download else LOAD_SECONDS
        if self.state is State.LOADING and self._pipe is not None and now - self._started > longest:
            reason = f"had been loading for {longest:.0f} s"
        elif self.state is State.READY and now - self._last_beat > 3 * settings.heartbeat_seconds:
            reason = f"gave no sign of life for {now - self._last_beat:.0f} s"
        elif self.state is State.READY and self.busy and now - self._last_step > settings.stall_seconds:
            reason = f"made no step for {now - self._last_step:.0f} s"
        if reason:
            _log.error("worker %s %s; killing it", self.pid, reason)
            self._killed = f"was killed, since it {reason}"
            self.kill()

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None and self._process.pid is not None:
            self._process.kill()

    async def close(self) -> None:
        """End the process for good."""
        if self.state is not State.FAILED:
            self.state = State.CLOSED
        self._generation += 1
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            await asyncio.to_thread(self._end, pipe)
        self._sender.shutdown(wait=False)

    def _end(self, pipe: Connection) -> None:
        """Close the pipe, at which the process ends; kill it where it does not."""
        self.kill()
        if self._process.pid is not None:
            self._process.join(5)

    def _now(self) -> float:
        return self._loop.time()

    def _send(self, message: object) -> None:
        pipe = self._pipe

        def send() -> None:  # in a thread: a large picture may fill the pipe
            try:
                if pipe is not None:
                    pipe.send(message)
            except OSError:
                pass  # the reader sees the end of the pipe

        self._sender.submit(send)

    def _read(self, pipe: Connection, process: Any, generation: int) -> None:
        """In a thread: pass on what the process says until its end."""
        with pipe:
            try:
                while True:
                    self._tell(self._heard, generation, pipe.recv())
            except (EOFError, OSError):
                pass
        process.join(10)
        self._tell(self._lost, generation, f"ended with {process.exitcode}")

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(call, *arguments)

    def _heard(self, generation: int, message: object) -> None:
        if generation != self._generation:
            return
        self._last_beat = self._now()
        match message:
            case Beat(memory, device_memory):
                self.memory, self.device_memory = memory, device_memory
            case Loaded(info):
                self.info, self.state = info, State.READY
                self._delay = FIRST_DELAY
                self._on_change(self)
            case LoadFailed(reason):
                self.failure = reason
                if self.info is None:  # it never worked: no use in trying again
                    self.state = State.FAILED
                    self._generation += 1
                    self._on_change(self)
            case _:
                self._last_step = self._now()
                if isinstance(message, Finished):
                    self.batch.pop(message.id, None)
                elif isinstance(message, BatchDone):
                    self.batch.clear()
                    self.busy = False
                self._on_message(self, message)

    def _lost(self, generation: int, how: str) -> None:
        if generation != self._generation:
            return
        if self.info is None:
            self.failure = f"the process {self._killed or how}"
            self.state, self._pipe = State.FAILED, None
            self._on_change(self)
            return
        _log.error("worker %s; starting another in %.1f s", how, self._delay)
        self.state, self._pipe = State.LOADING, None
        self._started = self._now()
        self._loop.call_later(self._delay, self._start_again, generation)
        self._delay = min(2 * self._delay, LONGEST_DELAY)
        self._on_change(self)
        self.batch, self.busy = {}, False

    def _start_again(self, generation: int) -> None:
        if generation == self._generation and self.state is State.LOADING:
            self.start()


def _not_started(error: Exception) -> str:
    return f"could not be started ({type(error).__name__}: {error})"
