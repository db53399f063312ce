"""`python -m service worker`: a process that owns a device and does the work of the jobs in the database."""

import argparse
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from service.claims import Claims
from service.crew import COMMAND, Crew
from service.database import database_url, open_database, persistently
from service.device import Device, Upscaler
from service.jobs import CHUNKS, MANIFESTS, PLANS, VERSION, Jobs, JobSpec, PictureState
from service.liveness import BEAT_EVERY, DEAD_AFTER, Identity, Watch
from service.manifest import manifest_due, write_manifest
from service.plan import output_key, plan
from service.settings import BadSettings, Settings, load_settings
from service.storage import NotAllowed, Place, StorageError, StorageTrouble, check_places, is_bucket, open_place
from service.upscale import load_upscaler
from service.work import Limits, PutOff, Studio, Task

_log = logging.getLogger("service.jobs")
FENCED = 3
_LONGEST_PAUSE = 30.0
_M_ARENA_MAX = -8  # of malloc.h


def main(
    argv: Sequence[str],
    load: Callable[[Settings], Upscaler] = load_upscaler,
    command: Sequence[str] = COMMAND,
    place: Callable[[str], Place] = open_place,
) -> int:
    """Work until told to stop. Status 2, after one line on stderr, for what keeps it from starting.

    Of several devices each gets a process of its own, which `command` starts, and which is replaced when it dies.
    `--idle SECONDS` ends it, with status 0, once there was nothing to do for so long; `--parent PID` when that ends.
    `--dead-after SECONDS` without a beat it takes another worker for dead; much less than the 20 of the default makes
    busy machines lose work in hand.
    """
    _share_one_heap()
    own = argparse.ArgumentParser(prog="python -m service worker", add_help=False, allow_abbrev=False)
    own.add_argument("--idle", type=float)
    own.add_argument("--parent", type=int)
    own.add_argument("--dead-after", type=float, default=DEAD_AFTER)
    flags, rest = own.parse_known_args(argv)
    try:
        settings = load_settings(["--host", "127.0.0.1", *rest])  # a worker listens nowhere, whatever the server does
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        if len(devices := settings.device.split(",")) > 1:
            return _several(
                Crew(settings, devices, flags.idle, [*command, "--dead-after", str(flags.dead_after)]), flags.parent
            )
        data_dir = settings.data_dir.expanduser()
        url = database_url(data_dir, settings.database_url)
        jobs = Jobs(open_database(url, ping=False))  # it tries again by itself
    except BadSettings as error:
        return _fail(str(error))
    except (OSError, SQLAlchemyError) as error:
        return _fail(f"the database cannot be opened: {' '.join(str(error).split())[:300]}")
    try:
        device = Device(lambda: load(settings), settings.job_batch)
    except Exception as error:
        return _fail(f"cannot load the model: {type(error).__name__}: {' '.join(str(error).split())}")
    Image.MAX_IMAGE_PIXELS = None  # SERVICE_MAX_PIXELS is looked at before anything is decoded
    worker = JobWorker(settings, data_dir, url, jobs, device, place)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, frame: worker.stop.set())
    worker.launch()
    worker.watch(flags.idle, flags.parent, flags.dead_after)
    worker.leave()
    sys.stdout.flush()
    os._exit(0)  # a chunk's thread holds its workflow open, so that DBOS does not take it for done


class JobWorker:
    """DBOS's runtime with the workflows of jobs around one device."""

    def __init__(
        self,
        settings: Settings,
        data_dir: Path,
        url: str,
        jobs: Jobs,
        device: Device,
        place: Callable[[str], Place] = open_place,
    ) -> None:
        self.stop = threading.Event()
        self._place = place
        self._settings, self._url, self._jobs = settings, url, Jobs(unhurried(jobs.engine, device))
        self._roots = [*settings.storage_roots, settings.uploads_place()]
        self._identity = Identity(jobs, data_dir, settings.device)
        self._claims = Claims(jobs.engine)
        limits = Limits(settings.max_pixels, settings.job_batch, patience=settings.job_patience)
        self._studio = Studio(device, limits, self.stop)
        self._in_hand: set[str] = set()  # the names of workflows
        self._idle_since = time.monotonic()
        self._changed = threading.Condition()

    def launch(self) -> None:
        """Take work from the queues from now on."""
        from dbos import DBOS

        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        DBOS(
            config={
                "name": "sr3-jobs",
                "system_database_url": self._url,
                "system_database_engine": self._jobs.engine,
                "application_version": VERSION,
                "executor_id": self._identity.id,
                "run_migrations": False,
                "log_level": "ERROR",  # it warns of every poll while a database is away; what waits for it says so
            }
        )
        for name, work in (("plan_job", self._plan), ("upscale_chunk", self._chunk), ("write_manifest", self._write)):
            # Attempts are counted by picture: one that ends its process is given up, and its chunk always goes on.
            DBOS.workflow(name=name, max_recovery_attempts=None)(self._held(work))
        DBOS.launch()
        DBOS.register_queue(PLANS, worker_concurrency=1, polling_interval_sec=0.5, on_conflict="always_update")
        DBOS.register_queue(MANIFESTS, global_concurrency=1, polling_interval_sec=1.0, on_conflict="always_update")
        # Two at a time, so that the device never waits for the next. Each look into a queue takes up to 3 ms of CPU.
        DBOS.register_queue(CHUNKS, worker_concurrency=2, polling_interval_sec=0.15, on_conflict="always_update")
        _log.info("worker %s takes jobs on %s", self._identity.id, self._settings.device)

    def watch(self, idle: float | None, parent: int | None, dead_after: float = DEAD_AFTER) -> None:
        """Look after the dead until it is time to stop."""
        watch = Watch(self._identity, self._in_hand.copy, dead_after)
        while not self.stop.wait(1.0):
            try:
                watch.sweep()
                watch.put_back()
                if self._in_hand or self._jobs.unfinished():
                    self._idle_since = time.monotonic()
            except SQLAlchemyError as error:
                _log.warning("cannot look after the others: %s", str(error).split("\n")[0])
            if parent is not None and os.getppid() != parent:
                _log.warning("the process that started this worker is gone")
                self.stop.set()
            if idle is not None and time.monotonic() - self._idle_since > idle:
                self.stop.set()

    def leave(self, patience: float = 120.0) -> None:
        """Wait for the pictures in hand, put the rest back into the queues, and sign off.

        Who waits for this worker may lose patience and kill it, which is no fault of a picture's: so their attempts are
        given back before the wait, and in it, since a hand may just be beginning another.
        """
        from dbos import DBOS

        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            self._give_all_back()
            with self._changed:
                if self._changed.wait_for(lambda: not self._in_hand, min(left, 1.0)):
                    break
        try:
            DBOS.destroy()  # takes nothing any more, or it would take what is put back
            self._identity.leave()
        except SQLAlchemyError as error:  # others find the lock free, or the beat still
            _log.warning("could not sign off: %s", str(error).split("\n")[0])

    def _give_all_back(self) -> None:
        try:
            self._claims.give_all_back(self._identity.id)
        except SQLAlchemyError as error:
            _log.warning("could not give attempts back: %s", str(error).split("\n")[0])

    def _beat(self) -> None:
        while True:
            try:
                if not self._identity.beat() and not self.stop.is_set():
                    _log.error("others took this worker for dead and its work over; it ends")
                    os._exit(FENCED)
            except SQLAlchemyError:
                pass  # told again as soon as the database is there
            time.sleep(BEAT_EVERY)

    def _held(self, work: Callable[..., None]) -> Callable[..., None]:
        """`work`, tried again until it ends; and never ending once this worker stops, so that it stays in hand."""

        from dbos import DBOS

        def run(*arguments: Any) -> None:
            name = DBOS.workflow_id
            assert name is not None
            with self._changed:
                self._in_hand.add(name)
            pause = 0.5
            while not self.stop.is_set():
                try:
                    work(*arguments)
                    break
                except Exception:
                    _log.exception("%s failed, trying again in %.0f s", arguments, pause)
                    self.stop.wait(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
            with self._changed:
                self._in_hand.remove(name)
                self._changed.notify_all()
            if self.stop.is_set():
                threading.Event().wait()

        return run

    @contextmanager
    def _patience(self, id: str, waited: float, queue: str, workflow: str, *arguments: Any) -> Iterator[None]:
        """Where the storage fails within, have the workflow begin anew later, so that other jobs have its place in the
        queue meanwhile; or fail the job, where that would not help or it `waited` for so many seconds already."""
        began = time.monotonic()
        try:
            yield
        except (StorageError, OSError) as error:
            waited += time.monotonic() - began
            passing = isinstance(error, StorageTrouble) or not isinstance(error, StorageError)
            left = self._settings.job_patience - waited
            if passing and left > 0:
                self._put_off(id, error, waited, queue, workflow, *arguments)
            else:
                self._jobs.fail(id, str(error) + (f" (waited {waited:.0f} s for it)" if passing else ""))
        else:
            if waited:
                self._jobs.note(id, None)

    def _put_off(self, id: str, error: Exception, waited: float, queue: str, workflow: str, *arguments: Any) -> None:
        pause = min(max(waited, 0.5), self._settings.job_patience - waited, _LONGEST_PAUSE)
        _log.warning("job %s waits for the storage: %s", id, error)
        note = f"waiting for the storage: {error}"
        self._jobs.put_off(id, note, pause, queue, workflow, _next_name(), *arguments, waited + pause)

    def _plan(self, id: str, waited: float = 0.0) -> None:
        if self._jobs.state(id) == "planning":
            spec = self._jobs.spec(id)
            try:
                with self._patience(id, waited, PLANS, "plan_job"):
                    check_places(spec.input, spec.output, self._roots)
                    plan(self._jobs, id, self._place)
            except (NotAllowed, ValueError) as error:
                self._jobs.fail(id, str(error))
        if self._jobs.state(id) == "running":  # planned now, or before a crash that came between
            manifest_due(self._jobs, id)

    def _chunk(self, id: str, number: int, waited: float = 0.0) -> None:
        jobs = self._jobs
        if jobs.state(id) != "running":
            return
        spec = jobs.spec(id)
        ledger = _Ledger(jobs, self._claims, id, number, self._identity)
        places, whole = self._taken_up(id, number, spec, waited), True
        if places is None:
            return
        try:
            while whole and (rows := jobs.chunk(id, number)):  # asked again: what the database lost is not done
                whole = self._studio.run(spec, *places, [Task(**row) for row in rows], ledger, waited)
                waited = 0.0  # what was waited for came, or was given up
        except PutOff as trouble:
            self._put_off(id, trouble, trouble.waited, CHUNKS, "upscale_chunk", number)
            return
        if not self.stop.is_set():
            manifest_due(jobs, id, stopped=not whole)

    def _taken_up(self, id: str, number: int, spec: JobSpec, waited: float) -> tuple[Place, Place] | None:
        """A chunk's input and output, whose pictures can be done now; None where they are put off or the job fails."""
        try:
            with self._patience(id, waited, CHUNKS, "upscale_chunk", number):
                check_places(spec.input, spec.output, self._roots)
                source, target = self._place(spec.input), self._place(spec.output)
                self._take_back_lost(id, number, spec, target)
                return source, target
        except NotAllowed as error:
            self._jobs.fail(id, f"on {self._identity.machine}: {error}")
        return None

    def _take_back_lost(self, id: str, number: int, spec: JobSpec, target: Place) -> None:
        """Find what a power cut took of what was done of a chunk before its end; it leaves a file empty, or none."""
        if is_bucket(target.url):
            return
        done = [(key, output_key(key, spec.options.format), size) for key, size in self._jobs.written(id, number)]
        if lost := [key for key, output, size in done if target.size(output) != size]:
            _log.warning("%d results of job %s are not on the disk; they are done again", len(lost), id)
            self._claims.take_back(id, lost)

    def _write(self, id: str, waited: float = 0.0) -> None:
        if self._jobs.state(id) is None:
            return
        with self._patience(id, waited, MANIFESTS, "write_manifest"):
            write_manifest(self._jobs, id, self._place)


def _next_name() -> str:
    """Of the workflow that takes up this one later: the same when this one runs again, so that there is one."""
    from dbos import DBOS

    name, _, number = str(DBOS.workflow_id).partition("~")
    return f"{name}~{int(number or 0) + 1}"


class _Ledger:
    """A chunk's claims and results in the database, which is waited for whenever it is away."""

    def __init__(self, jobs: Jobs, claims: Claims, id: str, number: int, identity: Identity) -> None:
        self._jobs, self._claims, self._id, self._number, self._identity = jobs, claims, id, number, identity

    def begin(self, key: str) -> bool:
        """See `work.Ledger`. Ends the process where others took it for dead: the chunk is theirs, and unfinished."""
        if persistently(lambda: self._claims.begin(self._id, self._number, key, self._identity.id)):
            return True
        if not persistently(self._identity.beat):
            os._exit(FENCED)
        return False

    def give_back(self, key: str) -> None:
        """See `work.Ledger`."""
        persistently(lambda: self._claims.give_back(self._id, key, self._identity.id))

    def record(self, key: str, state: PictureState, record: dict[str, Any], following: str | None = None) -> bool:
        """See `work.Ledger`. Where a crash of the database took the claim, it is made once more."""

        def write(following: str | None) -> tuple[bool, bool]:
            owner = self._identity.id
            return self._claims.record(self._id, key, owner, state, record, self._number, following)

        taken, begun = persistently(lambda: write(following))
        if not taken and self.begin(key):
            begun = persistently(lambda: write(None if begun else following))[1] or begun
        return begun

    def take_back(self, keys: Sequence[str]) -> None:
        """See `work.Ledger`."""
        persistently(lambda: self._claims.take_back(self._id, keys))

    def waiting(self, reason: str | None) -> bool:
        """See `work.Ledger`."""
        note = None if reason is None else f"waiting for the storage: {reason}"
        persistently(lambda: self._jobs.note(self._id, note))
        return bool(persistently(lambda: self._jobs.state(self._id)) == "running")


def unhurried(engine: sa.Engine, device: Device, patience: float = 0.5) -> sa.Engine:
    """The engine for what can wait until a network on the processor pauses, and does for up to `patience` seconds.

    A network needs every core: its threads wait for the one that loses its own to somebody's look into a queue.
    """
    own = engine.execution_options()
    if device.upscaler.on_cpu:
        sa.event.listen(own, "engine_connect", lambda connection: device.wait_for_pause(patience))
    return own


def _several(crew: Crew, parent: int | None) -> int:
    """Keep the crew at work until told to stop."""
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, frame: stop.set())
    crew.start()
    while crew.alive() and not stop.wait(0.5) and parent in (None, os.getppid()):
        pass
    crew.stop()
    return 2 if crew.broken.is_set() else 0


def _share_one_heap() -> None:
    """Have glibc give all threads one heap: what many keep of what they freed grows over thousands of pictures."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)


def _fail(message: str) -> int:
    print(f"python -m service worker: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
