"""The server's side of jobs: the database opened when first needed, and workers of its own where it is to have some."""

import itertools
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import sqlalchemy as sa

from service.crew import COMMAND, Crew
from service.database import database_url, open_database, workers
from service.jobs import Jobs, JobSpec
from service.liveness import BEAT_EVERY, LEAN
from service.plan import MANIFEST
from service.settings import Settings
from service.storage import NotAllowed, Place, StorageError, StorageTrouble, check_places, is_below, open_place

_IDLE = 60.0
_EVERY, _ENDS = 0.1, 1.0  # what is in hand is looked at so often, and not called work before it has lasted so long
_SILENT = 4 * BEAT_EVERY


class Desk:
    """Takes jobs, and has `settings.job_workers` processes do them. Every method may be called from any thread."""

    def __init__(self, settings: Settings, command: Sequence[str] = COMMAND) -> None:
        self.settings = settings
        self.data_dir: Path = settings.data_dir.expanduser()
        self._command = command
        self._lock = threading.Lock()
        self._jobs: Jobs | None = None
        self._crew: Crew | None = None

    @property
    def jobs(self) -> Jobs:
        """The jobs; raises SQLAlchemy's errors where the database cannot be opened."""
        with self._lock:
            if self._jobs is None:
                self._jobs = Jobs(open_database(database_url(self.data_dir, self.settings.database_url)))
            return self._jobs

    def begun(self) -> bool:
        """Whether there can be jobs: a SQLite database is made with the first."""
        return self.settings.database_url is not None or (self.data_dir / "jobs.sqlite").exists()

    def resume(self) -> None:
        """Have workers for what an earlier server left unfinished."""
        if self.begun() and self._workers() and self.jobs.unfinished():
            self.wake()

    def wake(self) -> None:
        """Have workers, if this server is to have some. They end when they have been idle for a minute."""
        number = self._workers()
        if not number:
            return
        with self._lock:
            if self._crew is None:
                devices = self._devices()
                dealt = [devices[index % len(devices)] for index in range(number)]
                self._crew = Crew(self.settings, dealt, _IDLE, self._command)
        self._crew.start()

    def close(self) -> None:
        """Stop the workers after the pictures in hand; what is left is done when a server or worker starts again."""
        if self._crew is not None:
            self._crew.stop(self.settings.shutdown_seconds)
        with self._lock:
            if self._jobs is not None:
                self._jobs.close()

    def upload_place(self, id: str, name: str = "") -> Place:
        """Where an uploaded job keeps its `in` and `out`, and that of both."""
        return open_place(f"{self.settings.uploads_place()}/{id}/{name}".rstrip("/"))

    def results(self, id: str) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The names and contents of what a job has made, and of its manifest, which says what is missing: moved or
        deleted since. Raises StorageTrouble where the storage cannot be used."""
        jobs = self.jobs
        target = open_place(jobs.spec(id).output)
        lines: list[bytes] = []
        for record in jobs.records(id):
            if record["state"] in ("done", "kept"):
                content = _opened(target, record["output"])
                if content is None:
                    record["missing"] = True
                else:
                    yield record["output"], content
            lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        yield MANIFEST, iter(lines)

    def at_rest(self, id: str) -> bool:
        """Whether no worker that lives has anything of a job that is over in hand; what ends at once is waited for.

        As in `liveness.py` no clocks are compared: a worker lives whose beat moves while we look.
        """
        first, began = self._in_hand(id), time.monotonic()
        while beats := self._in_hand(id):
            waited = time.monotonic() - began
            if waited > _ENDS and any(first.get(worker) != beat for worker, beat in beats.items()):
                return False
            if waited > _SILENT:
                break
            time.sleep(_EVERY)
        return True

    def _in_hand(self, id: str) -> dict[str, int]:
        """The beats of the workers that, as the database has it, do something for this job."""
        begun = self.jobs.client.list_workflows(workflow_id_prefix=f"{id}:", status="PENDING", **LEAN)
        query = sa.select(workers.c.id, workers.c.beat).where(workers.c.id.in_({each.executor_id for each in begun}))
        with self.jobs.engine.connect() as connection:
            return {row.id: row.beat for row in connection.execute(query)}

    def spec_allowed(self, spec: JobSpec) -> None:
        """NotAllowed where it would read or write what the settings do not allow, or what others have uploaded."""
        check_places(spec.input, spec.output, self.settings.storage_roots)
        uploads = self.settings.uploads_place()
        for name, url in (("input", spec.input), ("output", spec.output)):
            if is_below(url, uploads):
                raise NotAllowed(f"{name} {url} is where uploaded archives are unpacked", name)
        if spec.recursive and is_below(uploads, spec.input):
            raise NotAllowed(f"below input {spec.input} uploaded archives are unpacked; name a folder in it", "input")

    def _devices(self) -> list[str]:
        return [each.strip() for each in self.settings.device.split(",")]

    def _workers(self) -> int:
        given = self.settings.job_workers
        return (0 if self.settings.database_url else len(self._devices())) if given is None else given


def _opened(place: Place, key: str) -> Iterator[bytes] | None:
    """The file in parts, the first of them read; None where there is none that can be."""
    parts = place.stream(key)
    try:
        first = next(parts, b"")
    except StorageTrouble:
        raise
    except StorageError:
        return None
    return itertools.chain([first], parts)
