"""Jobs in the database: made, asked for, cancelled, taken up again, and dealt out in chunks."""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, RowMapping, text

from service.database import begin_writing, jobs, pictures, wait_alone
from service.storage import is_below
from service.upscale import UpscaleOptions

VERSION = "sr3-jobs-1"  # of the workflows' arguments; DBOS would hash their source, and an edit strand what is queued
PLANS, CHUNKS, MANIFESTS = "sr3-plans", "sr3-chunks", "sr3-manifests"
MAX_ATTEMPTS = 3
ACTIVE, OVER = ("planning", "running"), ("done", "failed", "cancelled")
_RATE_SECONDS = 60.0
# A chunk is a thirty-second of a job, within these bytes of files, each counted as so much larger than it is: eight
# small pictures at least, so that a chunk's own cost is little; a large one alone, so that several workers find work.
_CHUNKS, _CHUNK_BYTES, _PICTURE_BYTES = 32, (1 << 20, 1 << 26), 1 << 17


class PictureState(IntEnum):
    """Where a picture stands. KEPT: its output was there already, whole."""

    PENDING = 0
    DONE = 1
    FAILED = 2
    KEPT = 3


class Conflict(ValueError):
    """The job is not in a state for this, or another writes to the same output."""


@dataclass(frozen=True)
class JobSpec:
    """What a job is asked to do, the same over HTTP and on the command line."""

    input: str
    output: str
    options: UpscaleOptions
    glob: str | None = None
    recursive: bool = False
    overwrite: bool = False
    seed: int = 0

    def to_json(self) -> str:
        """As the database keeps it."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def from_json(line: str) -> "JobSpec":
        """The inverse of `to_json`."""
        values = json.loads(line)
        return JobSpec(**{**values, "options": UpscaleOptions(**values["options"])})


@dataclass(frozen=True)
class JobStatus:
    """A job as others see it. `rate` is pictures per second over the last minute, `left` the seconds it may take."""

    id: str
    state: str
    created: float
    finished: float | None
    spec: JobSpec
    upload: bool
    total: int
    done: int
    failed: int
    kept: int
    rate: float | None
    left: float | None
    note: str | None
    client: str | None
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Pictures that are still to be done."""
        return self.total - self.done - self.failed - self.kept


class Jobs:
    """The jobs of one database. Every method may be called from any thread and process."""

    def __init__(self, engine: Engine) -> None:
        from dbos import DBOSClient

        self.engine = engine
        self.client = DBOSClient(system_database_engine=engine, retry_connection_errors=False)

    def close(self) -> None:
        """Let the connections go."""
        self.client.destroy()
        self.engine.dispose()

    def create(self, spec: JobSpec, upload: bool = False, id: str | None = None, client: str | None = None) -> str:
        """Queue a job of this client, or of none; a worker lists its pictures.

        Conflict where one that runs writes to the same output; it tells nothing of another client's.
        """
        id = id or uuid.uuid4().hex[:12]
        with self.engine.begin() as connection:
            wait_alone(connection)
            _check_alone(connection, id, spec.output, client)
            row = {"id": id, "created": time.time(), "state": "planning", "spec": spec.to_json()}
            connection.execute(sa.insert(jobs), [row | {"upload": upload, "client": client}])
            self.enqueue(connection, PLANS, "plan_job", f"{id}:plan:1", id)
        return id

    def enqueue(
        self, connection: Connection, queue: str, workflow: str, id: str, *arguments: Any, delay: float | None = None
    ) -> None:
        """Queue a workflow in the caller's transaction, for after `delay` seconds if given; one of the same id is left
        as it is."""
        options: Any = {"queue_name": queue, "workflow_name": workflow, "workflow_id": id, "app_version": VERSION}
        if delay is not None:
            options["delay_seconds"] = delay
        self.client.enqueue_in_transaction(connection, options, *arguments)

    def spec(self, id: str) -> JobSpec:
        """What the job was asked to do. KeyError where there is none."""
        with self.engine.connect() as connection:
            line = connection.execute(sa.select(jobs.c.spec).where(jobs.c.id == id)).scalar()
        if line is None:
            raise KeyError(id)
        return JobSpec.from_json(line)

    def state(self, id: str) -> str | None:
        """planning, running, done, cancelled or failed; None where there is no such job."""
        with self.engine.connect() as connection:
            return connection.execute(sa.select(jobs.c.state).where(jobs.c.id == id)).scalar()

    def status(self, id: str, failures: int = 20) -> JobStatus:
        """The job with its counts, rate and latest failures. KeyError where there is none."""
        with self.engine.connect() as connection:
            row = connection.execute(sa.select(jobs).where(jobs.c.id == id)).mappings().first()
            if row is None:
                raise KeyError(id)
            return _status(connection, row, failures)

    def all(self, limit: int = 100, client: str | None = None) -> list[JobStatus]:
        """The latest jobs, of this client or of all, the newest first, without their failures."""
        query = sa.select(jobs) if client is None else sa.select(jobs).where(jobs.c.client == client)
        with self.engine.connect() as connection:
            rows = connection.execute(query.order_by(jobs.c.created.desc()).limit(limit)).mappings().all()
            return [_status(connection, row, 0) for row in rows]

    def failures(self, id: str, after: float = 0.0) -> list[tuple[float, dict[str, Any]]]:
        """When and how pictures failed since `after`, the oldest first, a hundred at most."""
        which = (pictures.c.job == id) & (pictures.c.state == PictureState.FAILED) & (pictures.c.finished > after)
        query = sa.select(pictures.c.finished, pictures.c.record).where(which).order_by(pictures.c.finished).limit(100)
        with self.engine.connect() as connection:
            return [(row.finished, json.loads(row.record)) for row in connection.execute(query)]

    def records(self, id: str) -> Iterator[dict[str, Any]]:
        """How each picture that is finished went, in the order of their keys, a few hundred in memory at a time."""
        which = (pictures.c.job == id) & (pictures.c.state != PictureState.PENDING)
        last = ""
        while True:
            query = sa.select(pictures.c.key, pictures.c.record).where(which, pictures.c.key > last)
            with self.engine.connect() as connection:
                rows = connection.execute(query.order_by(pictures.c.key).limit(500)).all()
            if not rows:
                return
            yield from (json.loads(row.record) for row in rows)
            last = rows[-1].key

    def unfinished(self) -> int:
        """How many jobs wait or run."""
        with self.engine.connect() as connection:
            query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state.in_(ACTIVE))
            return connection.execute(query).scalar_one()

    def cancel(self, id: str) -> None:
        """Stop after the pictures in hand. KeyError where there is none, Conflict where it is over."""
        with self.engine.begin() as connection:
            begin_writing(connection)
            self._lock(connection, id, ACTIVE)
            values = {"state": "cancelled", "finished": time.time(), "note": None}
            connection.execute(sa.update(jobs).where(jobs.c.id == id).values(values))
            self.enqueue(connection, MANIFESTS, "write_manifest", f"{id}:manifest:{uuid.uuid4().hex[:8]}", id)

    def take_up(self, id: str, states: Sequence[str] = OVER) -> None:
        """Look into the input anew, try again what failed, and go on with what was left.

        KeyError where there is no such job, Conflict where it is in none of `states`, or as `create` has it.
        """
        with self.engine.begin() as connection:
            wait_alone(connection)
            row = self._lock(connection, id, states)
            _check_alone(connection, id, JobSpec.from_json(row["spec"]).output, row["client"])
            undone = (PictureState.PENDING, PictureState.FAILED)
            which = (pictures.c.job == id) & pictures.c.state.in_(undone)
            fresh = {"state": PictureState.PENDING, "chunk": 0, "attempts": 0, "finished": None, "record": None}
            connection.execute(sa.update(pictures).where(which).values(fresh))
            number = row["next_chunk"] + 1  # that of no chunk, so that each plan has a name of its own
            values = {"state": "planning", "finished": None, "note": None, "next_chunk": number}
            connection.execute(sa.update(jobs).where(jobs.c.id == id).values(values))
            self.enqueue(connection, PLANS, "plan_job", f"{id}:plan:{number}", id)

    def delete(self, id: str) -> None:
        """Forget the job; its pictures stay. KeyError where there is none, Conflict where it still runs."""
        with self.engine.begin() as connection:
            begin_writing(connection)
            self._lock(connection, id, OVER)
            connection.execute(sa.delete(pictures).where(pictures.c.job == id))
            connection.execute(sa.delete(jobs).where(jobs.c.id == id))
        self.forget_workflows(id)

    def forget_workflows(self, id: str) -> None:
        """Delete what DBOS keeps of this job's workflows that are over; it has no retention of its own."""
        over = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
        lean: dict[str, Any] = {"load_input": False, "load_output": False}
        while found := self.client.list_workflows(workflow_id_prefix=f"{id}:", status=over, limit=500, **lean):
            self.client.delete_workflows([each.workflow_id for each in found])

    def enqueue_chunks(self, id: str) -> None:
        """Put the pending pictures that are in no chunk into chunks, queue those, and let the job run."""
        with self.engine.begin() as connection:
            begin_writing(connection)
            row = self._lock(connection, id, ACTIVE)
            first, more = row["next_chunk"], {"job": id, "more": _PICTURE_BYTES}
            waiting = connection.execute(_WAITING, more).scalar_one()
            size = max(_CHUNK_BYTES[0], min(_CHUNK_BYTES[1], int(waiting) // _CHUNKS))
            connection.execute(_ASSIGN, {**more, "first": first, "size": size})
            chunks = connection.execute(_ASSIGNED, {"job": id, "first": first}).scalars().all()
            for chunk in chunks:
                self.enqueue(connection, CHUNKS, "upscale_chunk", f"{id}:{chunk}", id, chunk)
            counts = {state.name.lower(): 0 for state in PictureState} | {
                PictureState(state).name.lower(): count for state, count in connection.execute(_COUNTS, {"job": id})
            }
            total = sum(counts.values())
            counts.pop("pending")
            values = {"state": "running", "total": total, "next_chunk": max(chunks, default=first - 1) + 1, **counts}
            connection.execute(sa.update(jobs).where(jobs.c.id == id).values(values))

    def fail(self, id: str, reason: str) -> None:
        """End a job that cannot begin or go on: its input is not there, say. One that is over is left as it is."""
        values = {"state": "failed", "finished": time.time(), "note": reason}
        with self.engine.begin() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.id == id, jobs.c.state.in_(ACTIVE)).values(values))

    def note(self, id: str, note: str | None) -> None:
        """Say what the job waits for, or that it no longer does. One that is over keeps its last word."""
        with self.engine.begin() as connection:
            _note(connection, id, note)

    def put_off(self, id: str, note: str, delay: float, queue: str, workflow: str, name: str, *arguments: Any) -> None:
        """Queue a workflow of the job anew, for after so many seconds, and say why; not where the job is over."""
        with self.engine.begin() as connection:
            if _note(connection, id, note):
                self.enqueue(connection, queue, workflow, name, id, *arguments, delay=delay)

    def chunk(self, id: str, number: int) -> Sequence[RowMapping]:
        """The pictures of a chunk that are still to be done, in the order of their keys."""
        which = (pictures.c.job == id) & (pictures.c.chunk == number) & (pictures.c.state == PictureState.PENDING)
        query = sa.select(pictures.c.key, pictures.c.source_bytes, pictures.c.attempts, pictures.c.verify).where(which)
        with self.engine.connect() as connection:
            return connection.execute(query.order_by(pictures.c.key)).mappings().all()

    def written(self, id: str, number: int) -> Sequence[tuple[str, int]]:
        """The keys of the pictures that are done of a chunk that is not over, with the bytes of their results."""
        mine = (pictures.c.job == id) & (pictures.c.chunk == number)
        which = mine & (pictures.c.state == PictureState.DONE)
        which &= sa.exists().where(mine & (pictures.c.state == PictureState.PENDING)).correlate(None)
        with self.engine.connect() as connection:
            query = sa.select(pictures.c.key, pictures.c.output_bytes).where(which)
            return [(row.key, row.output_bytes) for row in connection.execute(query)]

    def _lock(self, connection: Connection, id: str, states: Sequence[str]) -> RowMapping:
        """The job's row, which nobody else changes until the end of a transaction that `begin_writing` began."""
        row = connection.execute(sa.select(jobs).where(jobs.c.id == id).with_for_update()).mappings().first()
        if row is None:
            raise KeyError(id)
        if row["state"] not in states:
            raise Conflict(f"job {id} is {row['state']}; this takes a job that is {' or '.join(states)}")
        return row


_WAITING = text(
    "SELECT coalesce(sum(source_bytes + :more), 0) FROM sr3_pictures WHERE job = :job AND state = 0 AND chunk = 0"
)
_ASSIGN = text(
    """UPDATE sr3_pictures SET chunk = :first + CAST(listed.before AS bigint) / :size
    FROM (SELECT key, sum(source_bytes + :more) OVER (ORDER BY key) - source_bytes - :more AS before FROM sr3_pictures
          WHERE job = :job AND state = 0 AND chunk = 0) AS listed
    WHERE sr3_pictures.job = :job AND sr3_pictures.key = listed.key"""
)
_ASSIGNED = text(
    "SELECT DISTINCT chunk FROM sr3_pictures WHERE job = :job AND state = 0 AND chunk >= :first ORDER BY chunk"
)
_COUNTS = text("SELECT state, count(*) FROM sr3_pictures WHERE job = :job GROUP BY state")


def _note(connection: Connection, id: str, note: str | None) -> bool:
    which = (jobs.c.id == id) & jobs.c.state.in_(ACTIVE)
    return connection.execute(sa.update(jobs).where(which).values(note=note)).rowcount == 1


def _check_alone(connection: Connection, id: str, mine: str, client: str | None) -> None:
    """Conflict where another job than this, which runs, writes to the output or below or above it."""
    active = sa.select(jobs.c.id, jobs.c.spec, jobs.c.client).where(jobs.c.state.in_(ACTIVE), jobs.c.id != id)
    for other, line, owner in connection.execute(active).all():
        output = JobSpec.from_json(line).output
        if is_below(output, mine) or is_below(mine, output):
            if client not in (None, owner):
                raise Conflict(f"another's job is writing to {mine}, below or above it; take another")
            raise Conflict(f"job {other} is writing to {output}; wait for it, or cancel it")


def _status(connection: Connection, row: RowMapping, failures: int) -> JobStatus:
    now = time.time()
    mine = pictures.c.job == row["id"]
    recent = mine & (pictures.c.state == PictureState.DONE) & (pictures.c.finished > now - _RATE_SECONDS)
    number, first = connection.execute(sa.select(sa.func.count(), sa.func.min(pictures.c.finished)).where(recent)).one()
    rate = number / max(now - first, 1.0) if number > 1 and row["state"] in ACTIVE else None
    pending = row["total"] - row["done"] - row["failed"] - row["kept"]
    failed = sa.select(pictures.c.record).where(mine & (pictures.c.state == PictureState.FAILED))
    lines = (
        connection.execute(failed.order_by(pictures.c.finished.desc()).limit(failures)).scalars() if failures else ()
    )
    return JobStatus(
        id=row["id"],
        state=row["state"],
        created=row["created"],
        finished=row["finished"],
        spec=JobSpec.from_json(row["spec"]),
        upload=bool(row["upload"]),
        total=row["total"],
        done=row["done"],
        failed=row["failed"],
        kept=row["kept"],
        rate=rate,
        left=pending / rate if rate else None,
        note=row["note"],
        client=row["client"],
        failures=[json.loads(line) for line in lines],
    )
