"""`manifest.jsonl`, one line a picture, sorted: written whole from the database, so that no two writers meet in it."""

import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import sqlalchemy as sa

from service.database import begin_writing, pictures
from service.database import jobs as jobs_table
from service.jobs import MANIFESTS, Jobs, PictureState
from service.plan import MANIFEST, manifest_lines
from service.storage import Place, open_place

_PART = 1 << 16


def write_manifest(jobs: Jobs, id: str, place: Callable[[str], Place] = open_place) -> None:
    """Write the manifest as things stand, then end the job if nothing is left to do. May be run again at any time.

    Lines of earlier jobs into the same output stay, and a picture that was kept keeps the line that says how it was
    made. Raises the storage's errors; the job is as it was then.
    """
    status = jobs.status(id, 0)
    finished = status.total - status.pending
    target = place(status.spec.output)
    target.write(MANIFEST, _parts(_merged(jobs.records(id), _sorted_lines(target))))
    idle = ~sa.exists().where((pictures.c.job == id) & (pictures.c.state == PictureState.PENDING))
    mine = sa.update(jobs_table).where(jobs_table.c.id == id)
    with jobs.engine.begin() as connection:
        connection.execute(mine.values(manifested=finished))
        note = None if status.total else "no pictures were found"
        done = {"state": "done", "finished": time.time(), "note": note}
        over = connection.execute(mine.where(jobs_table.c.state == "running", idle).values(done)).rowcount == 1
    if over:
        target.tidy()
    jobs.forget_workflows(id)


def manifest_due(jobs: Jobs, id: str, stopped: bool = False) -> None:
    """Queue the writing of the manifest where the job is over, was `stopped`, or has grown by a quarter since the last.

    One at a time is written, and each state of a job once. By quarters, what is written in all stays a small multiple
    of the manifest's final size.
    """
    with jobs.engine.begin() as connection:
        begin_writing(connection)
        row = connection.execute(sa.select(jobs_table).where(jobs_table.c.id == id).with_for_update()).first()
        if row is None:
            return
        finished = row.done + row.failed + row.kept
        pending = row.total - finished
        grown = finished >= 100 and finished >= 1.25 * row.manifested
        if pending == 0 or stopped or grown:
            if grown:
                mine = sa.update(jobs_table).where(jobs_table.c.id == id)
                connection.execute(mine.values(manifested=finished))
            name = f"{id}:manifest:{row.next_chunk}:{finished}"
            jobs.enqueue(connection, MANIFESTS, "write_manifest", name, id)


def _sorted_lines(target: Place) -> Iterator[dict[str, Any]]:
    """The lines that are there already, sorted; in memory only where somebody else has put them out of order."""
    if all(_order(first) <= _order(second) for first, second in pairwise(manifest_lines(target))):
        return manifest_lines(target)
    return iter(sorted(manifest_lines(target), key=_order))


def _order(line: dict[str, Any]) -> tuple[str, str]:
    return line["source"], line.get("output", "")


def _merged(new: Iterator[dict[str, Any]], old: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Both, sorted; of two lines for one result the new one, unless it says only that the result was kept."""
    ours, theirs = next(new, None), next(old, None)
    while ours is not None or theirs is not None:
        if theirs is None or (ours is not None and _order(ours) < _order(theirs)):
            assert ours is not None
            yield ours
            ours = next(new, None)
        elif ours is None or _order(theirs) < _order(ours):
            yield theirs
            theirs = next(old, None)
        else:
            yield theirs if ours["state"] == "kept" and theirs.get("state") == "done" else ours
            ours, theirs = next(new, None), next(old, None)


def _parts(lines: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    part = bytearray()
    for line in lines:
        part += json.dumps(line, ensure_ascii=False).encode() + b"\n"
        if len(part) >= _PART:
            yield bytes(part)
            part.clear()
    yield bytes(part)
