"""Which workers live: a beat in the database, a lock on this machine, and the adoption of what a dead one had in hand.

No clocks are compared. A worker is dead when its lock file on this machine is free, or when its beat has stood still
for `DEAD_AFTER` seconds of an observer that could read the database all the while.
"""

import fcntl
import logging
import os
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from service.database import workers
from service.jobs import Jobs

DEAD_AFTER, BEAT_EVERY, LOOK_EVERY = 20.0, 2.0, 4.0
LEAN: dict[str, Any] = {"load_input": False, "load_output": False}
_log = logging.getLogger("service.jobs")


class Identity:
    """A worker's own name, unique for as long as it lives, with its row in the database and its lock on this machine.

    The name begins with the machine's, which `data_dir` keeps.
    """

    def __init__(self, jobs: Jobs, data_dir: Path, device: str) -> None:
        self.jobs = jobs
        self.folder = data_dir / "workers"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.machine = _machine(data_dir)
        self.id = f"{self.machine}-{os.getpid()}-{secrets.token_hex(3)}"
        self._lock = (self.folder / self.id).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        with jobs.engine.begin() as connection:
            connection.execute(sa.insert(workers), [{"id": self.id, "beat": 0, "device": device}])

    def beat(self) -> bool:
        """Tell that this worker lives; False where others have taken it for dead and its work over."""
        mine = (workers.c.id == self.id) & workers.c.adopter.is_(None)
        with self.jobs.engine.begin() as connection:
            return connection.execute(sa.update(workers).where(mine).values(beat=workers.c.beat + 1)).rowcount == 1

    def leave(self) -> None:
        """Put what this worker has in hand back into the queues, and sign off."""
        _adopt(self.jobs, self.id, self.id, None)
        (self.folder / self.id).unlink(missing_ok=True)


class Watch:
    """One worker's eye on the others, and on what the database takes for its own: `in_hand` says what really is."""

    def __init__(
        self, identity: Identity, in_hand: Callable[[], set[str]] = set, dead_after: float = DEAD_AFTER
    ) -> None:
        self._me, self._in_hand, self._dead_after = identity, in_hand, dead_after
        self._seen: dict[str, tuple[int, float]] = {}
        self._strays: set[str] = set()
        self._looked = time.monotonic()

    def put_back(self) -> None:
        """Queue again what the database says is in hand here and was not at two looks in a row.

        So it is with a claim that the database made while it went down, before it could say so. Raises its errors.
        """
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        in_hand = self._in_hand()
        mine = {
            each.workflow_id: each.queue_name
            for each in self._me.jobs.client.list_workflows(status="PENDING", executor_id=self._me.id, **LEAN)
        }
        strays = mine.keys() - in_hand - self._in_hand()
        for id in strays & self._strays:
            _log.warning("%s was left behind; it is in the queue again", id)
            self._me.jobs.client.resume_workflows([id], queue_name=mine[id])
        self._strays = strays

    def sweep(self) -> list[str]:
        """Adopt the work of the workers found dead; their names. Raises the database's errors, and then begins anew."""
        try:
            with self._me.jobs.engine.connect() as connection:
                rows = connection.execute(sa.select(workers.c.id, workers.c.beat)).all()
            now = time.monotonic()
            self._seen = {
                row.id: self._seen[row.id] if self._seen.get(row.id, (None,))[0] == row.beat else (row.beat, now)
                for row in rows
                if row.id != self._me.id
            }
            dead = [id for id, (_, since) in self._seen.items() if now - since > self._dead_after or self._is_gone(id)]
            adopted = [id for id in dead if _adopt(self._me.jobs, id, self._me.id, self._seen[id][0])]
        except Exception:
            self._seen = {}  # while the database was away no beat could be told
            raise
        for id in adopted:
            _log.warning("worker %s is gone; its work is in the queue again", id)
            (self._me.folder / id).unlink(missing_ok=True)
        return adopted

    def _is_gone(self, id: str) -> bool:
        """Whether a worker of this machine has let go of its lock, as the kernel does when a process ends."""
        if not id.startswith(f"{self._me.machine}-"):
            return False
        try:
            with (self._me.folder / id).open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def _adopt(jobs: Jobs, id: str, adopter: str, beat: int | None) -> bool:
    """Queue again what `id` had in hand and strike it off; False where another is at it already.

    Only the observer whose `beat` is still the present one goes on (None: no other can be meant), and changing the beat
    makes the adoption itself something that can be found dead and done again.
    """
    which = workers.c.id == id
    if beat is not None:
        which &= workers.c.beat == beat
    with jobs.engine.begin() as connection:
        taken = sa.update(workers).where(which).values(adopter=adopter, beat=workers.c.beat + 1)
        if connection.execute(taken).rowcount != 1:
            return False
    queues = defaultdict(list)
    for each in jobs.client.list_workflows(status="PENDING", executor_id=id, **LEAN):
        queues[each.queue_name].append(each.workflow_id)
    for queue, ids in queues.items():
        jobs.client.resume_workflows(ids, queue_name=queue)
    with jobs.engine.begin() as connection:
        connection.execute(sa.delete(workers).where(workers.c.id == id))
    return True


def _machine(data_dir: Path) -> str:
    """This machine's name with a random part that its data folder keeps, so that two of one name stay apart."""
    file = data_dir / "machine"
    try:
        with file.open("x") as new:
            new.write(f"{socket.gethostname()}-{secrets.token_hex(4)}")
            return _read_machine(file, new)
    except FileExistsError:
        return _read_machine(file, None)


def _read_machine(file: Path, new: Any) -> str:
    if new is not None:
        new.flush()
    for _ in range(100):
        if name := file.read_text():
            return name
        time.sleep(0.05)
    raise RuntimeError(f"{file} is empty; remove it")
