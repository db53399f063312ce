"""The claims and results of a job's pictures in the database."""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, text

from service.database import jobs, pictures
from service.jobs import PictureState


@dataclass
class _Result:
    job: str
    state: PictureState
    row: dict[str, Any]
    taken: bool | None = None
    """Whether the picture was still its claimant's; None before it is written down."""


class Claims:
    """What the workers of one process claim and record. Every method may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._begin, self._at_once = engine, text(_BEGIN), engine
        self._postgres = engine.dialect.name == "postgresql"
        if self._postgres:  # each is one statement, and one way there and back
            self._begin = text(f"{_BEGIN} AND set_config('synchronous_commit', 'off', true) = 'off'")
            self._at_once = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._waiting: list[_Result] = []
        self._adding, self._writing = threading.Lock(), threading.Lock()

    def begin(self, id: str, number: int, key: str, owner: str) -> bool:
        """Count one more attempt at a picture, before anything is done to it that might end the process.

        False where the chunk is not this worker's any more: the job was cancelled or the worker given up for dead.
        """
        values = {"job": id, "key": key, "chunk": number, "owner": owner}
        with self._at_once.begin() as connection:
            return connection.execute(self._begin, values).rowcount == 1

    def give_back(self, id: str, key: str, owner: str) -> None:
        """Take an attempt back that the worker outlived, and that came to no result yet."""
        with self._at_once.begin() as connection:
            connection.execute(_GIVE_BACK, {"job": id, "key": key, "owner": owner})

    def record(self, id: str, key: str, owner: str, state: PictureState, record: dict[str, Any]) -> bool:
        """Write down how a picture went. False where it is not this worker's any more.

        What several threads bring while the database is busy goes into one transaction: all of them change the job's
        counts, and would wait for each other's way to the disk. Raises the database's errors, to each its own.
        """
        line = json.dumps(record, ensure_ascii=False)
        more = {"now": time.time(), "bytes": record.get("output_bytes"), "record": line}
        mine = _Result(id, state, {"job": id, "key": key, "owner": owner, "state": int(state), **more})
        with self._adding:
            self._waiting.append(mine)
        with self._writing:
            if mine.taken is None:
                with self._adding:
                    group, self._waiting = self._waiting, []
                try:
                    self._write(group)
                except BaseException:
                    with self._adding:  # the others of the group try it themselves
                        self._waiting = [each for each in group if each is not mine] + self._waiting
                    raise
        return bool(mine.taken)

    def take_back(self, id: str, keys: Sequence[str]) -> None:
        """Have these pictures done again, which were written down as done and whose results did not last."""
        which = (pictures.c.job == id) & pictures.c.key.in_(keys) & (pictures.c.state == PictureState.DONE)
        fresh = {"state": PictureState.PENDING, "attempts": 0, "finished": None, "record": None}
        with self._engine.begin() as connection:
            number = connection.execute(sa.update(pictures).where(which).values(fresh)).rowcount
            connection.execute(sa.update(jobs).where(jobs.c.id == id).values(done=jobs.c.done - number))

    def _write(self, group: list[_Result]) -> None:
        if self._postgres:
            with self._at_once.begin() as connection:
                rows = connection.execute(_RECORD_ALL, {"rows": json.dumps([each.row for each in group])}).all()
            known = {(row.job, row.key) for row in rows}
            for each in group:  # of two results for one picture one is taken
                each.taken = (each.job, each.row["key"]) in known
                known.discard((each.job, each.row["key"]))
            return
        with self._engine.begin() as connection:
            taken = [connection.execute(_RECORD, each.row).rowcount == 1 for each in group]
            counts: dict[tuple[str, str], int] = {}
            for each in (each for each, its in zip(group, taken, strict=True) if its):
                name = (each.job, each.state.name.lower())
                counts[name] = counts.get(name, 0) + 1
            for (id, column), number in sorted(counts.items()):
                more = {column: jobs.c[column] + number}
                connection.execute(sa.update(jobs).where(jobs.c.id == id).values(more))
        for each, its in zip(group, taken, strict=True):
            each.taken = its


# Postgres need not have a claim on its disk at once: one that is lost in its crash is made again.
_BEGIN = """UPDATE sr3_pictures SET attempts = attempts + 1, owner = :owner
    WHERE job = :job AND key = :key AND chunk = :chunk AND state = 0
    AND EXISTS (SELECT 1 FROM sr3_jobs WHERE id = :job AND state = 'running')
    AND EXISTS (SELECT 1 FROM sr3_workers WHERE id = :owner AND adopter IS NULL)"""
_GIVE_BACK = text(
    "UPDATE sr3_pictures SET attempts = attempts - 1 WHERE job = :job AND key = :key AND owner = :owner AND state = 0"
)
_RECORD = text(
    """UPDATE sr3_pictures SET state = :state, finished = :now, output_bytes = :bytes, record = :record
    WHERE job = :job AND key = :key AND owner = :owner AND state = 0"""
)
_RECORD_ALL = text(
    """WITH given AS (SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS row(job text, key text, owner text,
        state smallint, now double precision, bytes bigint, record text)),
    taken AS (UPDATE sr3_pictures AS mine
        SET state = given.state, finished = given.now, output_bytes = given.bytes, record = given.record
        FROM given WHERE mine.job = given.job AND mine.key = given.key AND mine.owner = given.owner AND mine.state = 0
        RETURNING mine.job, mine.key, mine.state),
    counts AS (SELECT job, count(*) FILTER (WHERE state = 1) AS done, count(*) FILTER (WHERE state = 2) AS failed,
        count(*) FILTER (WHERE state = 3) AS kept FROM taken GROUP BY job ORDER BY job),
    added AS (UPDATE sr3_jobs SET done = sr3_jobs.done + counts.done, failed = sr3_jobs.failed + counts.failed,
        kept = sr3_jobs.kept + counts.kept FROM counts WHERE sr3_jobs.id = counts.job)
    SELECT job, key FROM taken"""
)
