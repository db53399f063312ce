"""The line that requests wait in and the workers that take them from it, for one event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from service.fair import FairQueue, QueueFull
from service.logs import request_id
from service.messages import BatchDone, Failure, Finished, Item, Made, Stepped, Timed
from service.metrics import Metrics
from service.process import State, WorkerProcess
from service.requests import InvalidRequest, ModelInfo, Request
from service.settings import Settings
from service.worker import CascadeFactory

__all__ = ["Cancelled", "Crashed", "Expired", "Job", "NotReady", "Pool", "QueueFull", "State", "TooMany"]
_log = logging.getLogger("service")
CHECK_SECONDS = 0.5
LONGEST_WAITS = 3  # how often a request waits anew for equals because one came


class NotReady(Exception):
    """No requests are taken; `state` says why."""

    def __init__(self, state: State) -> None:
        super().__init__(f"the worker is {state}")
        self.state = state


class TooMany(Exception):
    """This client has as many pictures waiting and running as it may."""


class Cancelled(Exception):
    """The request was cancelled."""


class Expired(Exception):
    """The request was not done in the time that it had."""


class Crashed(Exception):
    """The worker ended while it ran the request, or had no memory for it."""


class WorkFailed(Exception):
    """The models raised an error; its text is for the log."""


class Job:
    """One picture on its way. `done` resolves to `Made`, or raises what this module and InvalidRequest name."""

    def __init__(self, request: Request, client: Hashable, on_event: Callable[[Job], None], watched: bool) -> None:
        self.id = secrets.token_hex(8)
        self.request = request
        self.client = client
        self.watched = watched
        self.trace = request_id.get()
        self.done: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        self.submitted = time.monotonic()
        self.waited: float | None = None
        self.step: Stepped | None = None
        self.preview: Any = None
        self.worker: WorkerProcess | None = None
        self._on_event = on_event

    def tell(self) -> None:
        """Say that something about it changed."""
        self._on_event(self)


class Pool:
    """Workers, one a device, and the queue before them. Every method is called in the event loop."""

    def __init__(self, settings: Settings, factory: CascadeFactory, metrics: Metrics) -> None:
        self.metrics = metrics
        self.loaded: asyncio.Future[ModelInfo] | None = None
        self._settings = settings
        self._queue: FairQueue[Job] = FairQueue(settings.queue_size)
        self._jobs: dict[str, Job] = {}
        self._per_client: dict[Hashable, int] = {}
        self._closed = False
        self._picture_seconds = 1.0
        self._wake: asyncio.TimerHandle | None = None
        self._checks: asyncio.Task[None] | None = None
        self.workers = [
            WorkerProcess(factory, settings.model_copy(update={"device": device}), self._heard, self._changed)
            for device in settings.device.split(",")
        ]
        self.on_loaded: Callable[[str | None], None] = lambda failure: None
        metrics.watch(self)

    @property
    def state(self) -> State:
        """Of all workers together: READY once one has been, until closing."""
        if self._closed:
            return State.CLOSED
        if all(worker.state is State.FAILED for worker in self.workers):
            return State.FAILED
        return State.READY if any(worker.info for worker in self.workers) else State.LOADING

    @property
    def ready(self) -> bool:
        """Whether requests are taken and some worker gave a sign of life a moment ago."""
        return self.state is State.READY and any(worker.alive for worker in self.workers)

    @property
    def info(self) -> ModelInfo:
        """Of the models; NotReady before they are loaded."""
        for worker in self.workers:
            if worker.info:
                return worker.info
        raise NotReady(self.state)

    @property
    def waiting(self) -> int:
        """How many pictures wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """How many pictures are being worked on."""
        return sum(len(worker.batch) for worker in self.workers)

    def start(self) -> None:
        """Start every worker."""
        for worker in self.workers:
            worker.start()
        self._checks = asyncio.create_task(self._check())

    def submit(
        self, requests: Sequence[Request], client: Hashable, on_event: Callable[[Job], None], watched: bool = False
    ) -> list[Job]:
        """Queue pictures of one client, all or none. Raises NotReady, QueueFull or TooMany."""
        if self.state is not State.READY:
            raise NotReady(self.state)
        mine = self._per_client.get(client, 0)
        if mine + len(requests) > self._settings.max_per_client:
            raise TooMany(f"you have {mine} pictures on the way; at most {self._settings.max_per_client} are taken")
        jobs = [Job(request, client, on_event, watched) for request in requests]
        self._queue.add(client, [(job, job.request.key(), 1.0) for job in jobs])
        for job in jobs:
            self._jobs[job.id] = job
            self._per_client[client] = self._per_client.get(client, 0) + 1
            job.done.add_done_callback(lambda done, job=job: self._forget(job))  # type: ignore[misc]
        self._dispatch()
        return jobs

    def cancel(self, job: Job, error: Exception | None = None) -> None:
        """End this job alone: at once where it waits, at the next block of a network where it runs."""
        if job.done.done():
            return
        if not self._queue.remove(job) and job.worker is not None:
            job.worker.cancel(job.id)
        self.metrics.cancelled()
        _fail(job, error or Cancelled("the request was cancelled"))
        self._moved()

    def place(self, job: Job) -> int | None:
        """How many pictures leave the queue before this one; None where it does not wait."""
        return next((place for place, each in enumerate(self._queue) if each is job), None)

    def retry_after(self) -> int:
        """Whole seconds after which a place should be free, by the rate of late."""
        return max(1, math.ceil(self._picture_seconds / len(self.workers)))

    def drain(self) -> None:
        """Take no more, refuse what waits, let what runs finish."""
        self._closed = True
        for job in self._queue.clear():
            _fail(job, NotReady(State.CLOSED))

    async def close(self) -> None:
        """Refuse what waits, stop what runs, end the workers."""
        self.drain()
        for job in list(self._jobs.values()):
            self.cancel(job, NotReady(State.CLOSED))
        if self._checks is not None:
            self._checks.cancel()
        await asyncio.gather(*(worker.close() for worker in self.workers))

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for worker in self.workers:
                worker.check()

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        left = self._per_client.get(job.client, 1) - 1
        if left > 0:
            self._per_client[job.client] = left
        else:
            self._per_client.pop(job.client, None)
        if not job.done.cancelled():
            job.done.exception()  # heard, whoever waits for it

    def _moved(self) -> None:
        for job in self._queue:
            job.tell()

    def _dispatch(self) -> None:
        """Give every idle worker what is next, once the batch is full or nobody joined it for `batch_wait_ms`."""
        if self._closed:
            return
        patience = self._settings.batch_wait_ms / 1000

        def ready(batch: list[Job]) -> bool:
            newest = max(job.submitted for job in batch)
            left = min(newest, batch[0].submitted + LONGEST_WAITS * patience) + patience - time.monotonic()
            if left > 0 and self._wake is None:
                self._wake = asyncio.get_running_loop().call_later(left, self._woken)
            return left <= 0

        for worker in self.workers:
            if worker.state is not State.READY or worker.busy:
                continue
            batch = self._queue.take(self._settings.max_batch, ready)
            if not batch:
                return
            now = time.monotonic()
            for job in batch:
                job.worker, job.waited = worker, now - job.submitted
                job.tell()
            self.metrics.batch([job.waited or 0.0 for job in batch])
            worker.run([Item(job.id, job.request, job.watched, job.trace) for job in batch])
            self._moved()

    def _woken(self) -> None:
        self._wake = None
        self._dispatch()

    def _heard(self, worker: WorkerProcess, message: object) -> None:
        match message:
            case Stepped(ids=ids, previews=previews):
                self.metrics.steps.labels(message.stage).inc(message.new)
                for job in (self._jobs[id] for id in ids if id in self._jobs):
                    job.step = message
                    job.preview = previews.get(job.id, job.preview)
                    job.tell()
            case Timed(seconds):
                self.metrics.timed(seconds)
            case Finished(id, outcome):
                if id in self._jobs:
                    self._finish(self._jobs[id], outcome)
            case BatchDone(size, seconds, stopped):
                if stopped:
                    self.metrics.stopping.observe(asyncio.get_running_loop().time() - worker.cancelled)
                else:
                    self._picture_seconds += 0.3 * (seconds / size - self._picture_seconds)
                self._dispatch()

    def _finish(self, job: Job, outcome: Made | Failure) -> None:
        if isinstance(outcome, Made):
            self.metrics.made()
            if not job.done.done():
                job.done.set_result(outcome)
        elif outcome.kind == "invalid":
            _fail(job, InvalidRequest(outcome.field, outcome.got, outcome.message))
        elif outcome.kind == "cancelled":
            _fail(job, Cancelled(outcome.message))
        elif outcome.kind == "memory":
            _fail(job, Crashed("the device has too little memory for it; ask for a smaller picture"))
        else:
            _fail(job, WorkFailed(outcome.message))
        job.tell()

    def _changed(self, worker: WorkerProcess) -> None:
        """A worker became ready, was lost, or failed for good."""
        for id in list(worker.batch):
            if id in self._jobs:
                _fail(self._jobs[id], Crashed("the worker process ended while it ran this request; another one starts"))
        if worker.state is State.LOADING:
            self.metrics.restarts.inc()
        if worker.state is State.READY:
            self.on_loaded(None)
        elif self.state is State.FAILED:
            self.on_loaded(worker.failure)
        self._dispatch()


def _fail(job: Job, error: Exception) -> None:
    if not job.done.done():
        job.done.set_exception(error)
    job.tell()
