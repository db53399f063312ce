"""The claims and results of a job's pictures in the database."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, text

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
        self._engine = engine
        self._waiting: list[_Result] = []
        self._adding, self._writing = threading.Lock(), threading.Lock()

    def begin(self, id: str, number: int, key: str, owner: str) -> bool:
        """Count one more attempt at a picture, before anything is done to it that might end the process.

        False where the chunk is not this worker's any more: the job was cancelled or the worker given up for dead.
        """
        with self._soon() as connection:
            values = {"job": id, "key": key, "chunk": number, "owner": owner}
            return connection.execute(_BEGIN, values).rowcount == 1

    def give_back(self, id: str, key: str, owner: str) -> None:
        """Take an attempt back that the worker outlived, and that came to no result yet."""
        with self._soon() as connection:
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

    @contextmanager
    def _soon(self) -> Iterator[Connection]:
        """A transaction that Postgres need not have on its disk at once: a claim lost in its crash is made again."""
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL synchronous_commit TO OFF"))
            yield connection


_BEGIN = text(
    """UPDATE sr3_pictures SET attempts = attempts + 1, owner = :owner
    WHERE job = :job AND key = :key AND chunk = :chunk AND state = 0
    AND EXISTS (SELECT 1 FROM sr3_jobs WHERE id = :job AND state = 'running')
    AND EXISTS (SELECT 1 FROM sr3_workers WHERE id = :owner AND adopter IS NULL)"""
)
_GIVE_BACK = text(
    "UPDATE sr3_pictures SET attempts = attempts - 1 WHERE job = :job AND key = :key AND owner = :owner AND state = 0"
)
_RECORD = text(
    """UPDATE sr3_pictures SET state = :state, finished = :now, output_bytes = :bytes, record = :record
    WHERE job = :job AND key = :key AND owner = :owner AND state = 0"""
)
