"""One thread that owns the cascade, fed by a bounded queue, answering through futures."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum

from service.cascade import Cascade, GenerateRequest, GenerateResult, Progress


class State(StrEnum):
    """Where a worker stands."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"


class NotReady(Exception):
    """The worker takes no requests; `state` says why."""

    def __init__(self, state: State) -> None:
        super().__init__(f"the worker is {state}")
        self.state = state


class QueueFull(Exception):
    """No place is free; one is expected to be in `retry_after` whole seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting already")
        self.waiting = waiting
        self.retry_after = retry_after


class Cancelled(Exception):
    """The request was cancelled while it ran."""


class Job:
    """A request on its way: `future` gets its result, `waited` its seconds in the queue once it runs."""

    def __init__(self, request: GenerateRequest, submitted: float) -> None:
        self.request = request
        self.future: Future[GenerateResult] = Future()
        self.submitted = submitted
        self.waited = 0.0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Stop at the next step, or before the first."""
        self._cancelled.set()
        self.future.cancel()

    def check(self, progress: Progress) -> None:
        """An `on_step` that raises Cancelled once `cancel` was called."""
        if self._cancelled.is_set():
            raise Cancelled


class Worker:
    """Builds a cascade with `load` in a thread of its own and runs one request after another on it.

    `loaded` resolves once requests are taken, or holds the exception that `load` raised. `queue_size`
    requests may wait beside the running one. All methods may be called from any thread.
    """

    def __init__(
        self, load: Callable[[], Cascade], queue_size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.loaded: Future[None] = Future()
        self._load = load
        self._queue_size = queue_size
        self._clock = clock
        self._changed = threading.Condition()
        self._state = State.LOADING
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._job_seconds = 1.0
        # A daemon, so that a load that hangs cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="cascade", daemon=True)

    @property
    def state(self) -> State:
        """Where the worker stands now."""
        return self._state

    def start(self) -> None:
        """Begin to load, in the background."""
        self._thread.start()

    def submit(self, request: GenerateRequest) -> Job:
        """Queue a request. Raises NotReady or QueueFull."""
        with self._changed:
            if self._state is not State.READY:
                raise NotReady(self._state)
            if len(self._waiting) >= self._queue_size:
                raise QueueFull(len(self._waiting), max(1, math.ceil(self._job_seconds)))
            job = Job(request, self._clock())
            self._waiting.append(job)
            self._changed.notify()
            return job

    def cancel(self, job: Job) -> None:
        """Stop this job alone: at once if it waits, at its next step if it runs."""
        with self._changed:
            job.cancel()
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self, timeout: float = 10.0) -> None:
        """Refuse what waits, stop what runs at its next step, and wait for that `timeout` seconds.

        A load that is under way is neither stopped nor waited for.
        """
        with self._changed:
            busy = self._state is State.READY
            if self._state is not State.FAILED:
                self._state = State.CLOSED
            refused = list(self._waiting)
            self._waiting.clear()
            if self._running is not None:
                self._running.cancel()
            self._changed.notify()
        for job in refused:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(NotReady(State.CLOSED))
        if busy:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            cascade = self._load()
        except BaseException as error:  # whoever waits for `loaded` must hear of it, whatever it is
            with self._changed:
                self._state = State.FAILED
            self.loaded.set_exception(error)
            return
        with self._changed:
            if self._state is State.LOADING:
                self._state = State.READY
        self.loaded.set_result(None)
        while (job := self._next()) is not None:
            self._do(cascade, job)

    def _next(self) -> Job | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._waiting or self._state is State.CLOSED)
            if self._state is State.CLOSED:
                return None
            self._running = self._waiting.popleft()
            return self._running

    def _do(self, cascade: Cascade, job: Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        start = self._clock()
        job.waited = start - job.submitted
        try:
            result = cascade.generate(job.request, job.check)
        except BaseException as error:  # an unanswered future would hang its client for ever
            job.future.set_exception(_for_a_future(error))
        else:
            self._job_seconds += 0.3 * (self._clock() - start - self._job_seconds)
            job.future.set_result(result)


def _for_a_future(error: BaseException) -> Exception:
    """The error, or one around it where it would end the event loop that reads it (SystemExit) or is refused."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"the cascade raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped
