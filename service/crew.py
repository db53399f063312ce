"""Worker processes of this machine, kept running: one that dies is replaced."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.settings import PREFIX, Settings

COMMAND = (sys.executable, "-m", "service.job_worker")
_CANNOT_START = 2
_OF_WORKERS = (
    *("sr_model", "dtype", "sr_steps", "max_pixels", "log_level"),
    *("data_dir", "database_url", "storage_roots", "uploads", "job_batch", "job_patience"),
)


class Crew:
    """`len(devices)` workers, each on its device, started by `start` and replaced when they die.

    A worker that ends by itself, because it was told to or was `idle` for so many seconds, stays away until the next
    `start`, which may come while it signs off; and so does one that says that it cannot start, which `broken` then
    tells. Workers end when this process does, after the pictures that they have in hand.
    """

    def __init__(
        self,
        settings: Settings,
        devices: Sequence[str],
        idle: float | None = None,
        command: Sequence[str] = COMMAND,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.broken = threading.Event()
        self._command = [*command, "--parent", str(os.getpid()), *(["--idle", str(idle)] if idle else [])]
        plain = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
        self._environment = {**plain, **variables(settings), **(environment or {})}
        self._devices = list(devices)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._idle = idle or math.inf
        self._asked = [-math.inf] * len(self._devices)  # when `start` was called since each worker's process began
        self._threads: list[threading.Thread | None] = [None] * len(self._devices)
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * len(self._devices)

    def start(self) -> None:
        """Have all workers run."""
        with self._lock:
            for index, thread in enumerate(self._threads):
                self._asked[index] = time.monotonic()
                if thread is None or not thread.is_alive():
                    self._threads[index] = threading.Thread(target=self._keep, args=(index,), daemon=True)
                    self._threads[index].start()  # type: ignore[union-attr]

    def alive(self) -> bool:
        """Whether any worker runs or is being replaced."""
        return any(thread is not None and thread.is_alive() for thread in self._threads)

    def pids(self) -> list[int]:
        """The processes that run now."""
        return [each.pid for each in self._processes if each is not None and each.poll() is None]

    def stop(self, patience: float = 150.0) -> None:
        """Have every worker finish the pictures in hand and end; those that do not in time are killed."""
        self._stopping.set()
        for process in self._processes:
            if process is not None and process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + patience
        for thread, process in zip(self._threads, self._processes, strict=True):
            if thread is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive() and process is not None:
                    process.kill()
                    thread.join(10)

    def _keep(self, index: int) -> None:
        pause = 0.5
        environment = {**self._environment, f"{PREFIX}DEVICE": self._devices[index]}
        while not self._stopping.is_set():
            started = time.monotonic()
            with self._lock:
                self._asked[index] = -math.inf
            self._processes[index] = process = subprocess.Popen(self._command, env=environment)
            if self._stopping.is_set():
                process.terminate()
            status = process.wait()
            if status == _CANNOT_START:
                self.broken.set()
            if status in (0, _CANNOT_START):
                with self._lock:
                    # What it was started for longer ago than it was idle it has seen.
                    if status or time.monotonic() - self._asked[index] >= self._idle:
                        self._threads[index] = None  # under the lock, so that the next `start` begins another
                        return
                continue
            pause = 0.5 if time.monotonic() - started > 30 else min(2 * pause, 30.0)
            self._stopping.wait(pause)


def variables(settings: Settings) -> dict[str, str]:
    """The environment that gives a worker the settings that concern it."""
    values = {name: getattr(settings, name) for name in _OF_WORKERS}
    return {f"{PREFIX}{name.upper()}": _text(value) for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return json.dumps(value)
    return str(value.expanduser() if isinstance(value, Path) else value)
