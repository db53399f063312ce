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
    begun: bool = False
    """Whether what follows it is the claimant's now."""


class Claims:
    """What the workers of one process claim and record. Every method may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._begin, self._at_once = engine, text(_BEGIN), engine
        self._postgres = engine.dialect.name == "postgresql"
        if self._postgres:  # each is one statement, and one way there and back
            self._begin = text(f"{_BEGIN} AND set_config('synchronous_commit', 'off', true) = 'off'")
            self._at_once = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._waiting: list[_Result] = []
        self._adding, self._writing, self._giving = threading.Lock(), threading.Lock(), threading.Lock()
        self._in_hand: set[tuple[str, str]] = set()  # jobs and keys of what was begun and came to no end yet

    def begin(self, id: str, number: int, key: str, owner: str) -> bool:
        """Count one more attempt at a picture, before anything is done to it that might end the process.

        False where the chunk is not this worker's any more: the job was cancelled or the worker given up for dead.
        """
        values = {"job": id, "key": key, "chunk": number, "owner": owner}
        with self._at_once.begin() as connection:
            begun = connection.execute(self._begin, values).rowcount == 1
        if begun:
            self._in_hand.add((id, key))
        return begun

    def give_back(self, id: str, key: str, owner: str) -> None:
        """Take an attempt back that the worker outlived, and that came to no result yet; once for each."""
        with self._giving:
            if (id, key) in self._in_hand:
                with self._at_once.begin() as connection:
                    connection.execute(_GIVE_BACK, {"job": id, "key": key, "owner": owner})
                self._in_hand.discard((id, key))

    def give_all_back(self, owner: str) -> None:
        """Take back the attempts at all that is in hand, which may go on; for a worker that is told to stop."""
        for id, key in self._in_hand.copy():
            self.give_back(id, key, owner)

    def record(
        self,
        id: str,
        key: str,
        owner: str,
        state: PictureState,
        record: dict[str, Any],
        number: int = 0,
        following: str | None = None,
    ) -> tuple[bool, bool]:
        """Write down how a picture went, and `begin` what is `following` it; whether each could be done.

        What several threads bring while the database is busy goes into one transaction: all of them change the job's
        counts, and would wait for each other's way to the disk. Raises the database's errors, to each its own.
        """
        line = json.dumps(record, ensure_ascii=False)
        more = {"now": time.time(), "bytes": record.get("output_bytes"), "record": line}
        more |= {"chunk": number, "following": following}
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
        return bool(mine.taken), mine.begun

    def take_back(self, id: str, keys: Sequence[str]) -> None:
        """Have these pictures done again, which were written down as done and whose results did not last."""
        which = (pictures.c.job == id) & pictures.c.key.in_(keys) & (pictures.c.state == PictureState.DONE)
        fresh = {"state": PictureState.PENDING, "attempts": 0, "finished": None, "record": None}
        with self._engine.begin() as connection:
            number = connection.execute(sa.update(pictures).where(which).values(fresh)).rowcount
            connection.execute(sa.update(jobs).where(jobs.c.id == id).values(done=jobs.c.done - number))

    def _write(self, group: list[_Result]) -> None:
        with (self._at_once if len(group) == 1 and self._postgres else self._engine).begin() as connection:
            found = [self._write_one(connection, each) for each in group]
        for each, (taken, begun) in zip(group, found, strict=True):
            each.taken, each.begun = taken, begun
            self._in_hand.discard((each.job, each.row["key"]))
            if begun:
                self._in_hand.add((each.job, each.row["following"]))

    def _write_one(self, connection: sa.Connection, result: _Result) -> tuple[bool, bool]:
        if self._postgres:
            taken, begun = connection.execute(_RECORD_AND_BEGIN, result.row).one()
            return taken, begun
        taken = connection.execute(_RECORD_ALONE, result.row).rowcount == 1
        if taken:
            connection.execute(_COUNT[result.state], {"job": result.job})
        following = result.row["following"]
        begun = following is not None and connection.execute(self._begin, result.row | {"key": following}).rowcount == 1
        return taken, begun


# Postgres need not have a claim on its disk at once: one that is lost in its crash is made again.
_BEGIN = """UPDATE sr3_pictures SET attempts = attempts + 1, owner = :owner
    WHERE job = :job AND key = :key AND chunk = :chunk AND state = 0
    AND EXISTS (SELECT 1 FROM sr3_jobs WHERE id = :job AND state = 'running')
    AND EXISTS (SELECT 1 FROM sr3_workers WHERE id = :owner AND adopter IS NULL)"""
_GIVE_BACK = text(
    "UPDATE sr3_pictures SET attempts = attempts - 1 WHERE job = :job AND key = :key AND owner = :owner AND state = 0"
    " AND attempts > 0"
)
_RECORD = """UPDATE sr3_pictures SET state = :state, finished = :now, output_bytes = :bytes, record = :record
    WHERE job = :job AND key = :key AND owner = :owner AND state = 0"""
_RECORD_ALONE = text(_RECORD)
_COUNT = {
    state: text(f"UPDATE sr3_jobs SET {state.name.lower()} = {state.name.lower()} + 1 WHERE id = :job")
    for state in (PictureState.DONE, PictureState.FAILED, PictureState.KEPT)
}
_RECORD_AND_BEGIN = text(
    f"""WITH taken AS ({_RECORD} RETURNING state),
    counted AS (UPDATE sr3_jobs SET done = done + CAST(taken.state = 1 AS int),
        failed = failed + CAST(taken.state = 2 AS int), kept = kept + CAST(taken.state = 3 AS int)
        FROM taken WHERE id = :job),
    begun AS ({_BEGIN.replace(":key", ":following")} RETURNING 1)
    SELECT EXISTS (SELECT 1 FROM taken), EXISTS (SELECT 1 FROM begun)"""
)
