"""The server's side of jobs: results that are no longer all there, and what workers still have in hand."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.archive import packed
from service.claims import Claims
from service.database import workers
from service.desk import Desk
from service.jobs import JobSpec, PictureState
from service.plan import plan
from service.settings import Settings
from service.upscale import UpscaleOptions

NAMES = ("a.png", "b.png", "c.png", "deep/d.png")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """One without workers of its own."""
    desk = Desk(Settings(data_dir=tmp_path, job_workers=0))
    yield desk
    desk.close()


def uploaded(desk: Desk) -> str:
    """A job of an archive, listed as by a worker that is named like it and begins nothing yet."""
    id = "1a2b3c"
    source = desk.upload_place(id, "in")
    for name in NAMES:
        source.write(name, b"a picture")
    spec = JobSpec(source.url, desk.upload_place(id, "out").url, UpscaleOptions(), recursive=True)
    desk.jobs.create(spec, True, id)
    plan(desk.jobs, id)
    with desk.jobs.engine.begin() as connection:
        connection.execute(sa.insert(workers), [{"id": id, "beat": 0}])
    return id


def done(desk: Desk, id: str) -> None:
    """Have every picture of the job made by that worker."""
    for name in NAMES:
        desk.upload_place(id, "out").write(name, f"large {name}".encode())
        assert Claims(desk.jobs.engine).begin(id, 1, name, id)
        record = {"source": name, "output": name, "state": "done"}
        Claims(desk.jobs.engine).record(id, name, id, PictureState.DONE, record)


@pytest.mark.parametrize("lost", ["moved", "a link that leads out"])
def test_results_that_are_gone_are_said_to_be_missing_and_the_rest_is_delivered(
    desk: Desk, tmp_path: Path, lost: str
) -> None:
    id = uploaded(desk)
    done(desk, id)
    gone = Path(desk.upload_place(id, "out").url) / "b.png"
    gone.rename(tmp_path / "elsewhere.png")
    if lost != "moved":
        gone.symlink_to(tmp_path / "elsewhere.png")
    with zipfile.ZipFile(io.BytesIO(b"".join(packed(desk.results(id))))) as result:
        assert result.testzip() is None
        assert result.namelist() == ["a.png", "c.png", "deep/d.png", "manifest.jsonl"]
        assert result.read("deep/d.png") == b"large deep/d.png"
        lines = [json.loads(line) for line in result.read("manifest.jsonl").splitlines()]
    assert [line["source"] for line in lines if line.get("missing") is True] == ["b.png"]
    assert [line["source"] for line in lines if "missing" not in line] == ["a.png", "c.png", "deep/d.png"]


def test_a_job_is_in_hand_while_the_worker_that_has_it_lives(desk: Desk) -> None:
    id, over = uploaded(desk), threading.Event()
    assert desk.at_rest(id)  # its chunk is in the queue

    def each(statement: str) -> None:
        with desk.jobs.engine.begin() as connection:
            connection.execute(sa.text(statement), {"id": id})

    def beat() -> None:
        while not over.wait(0.2):
            each("UPDATE sr3_workers SET beat = beat + 1 WHERE id = :id")

    each("UPDATE workflow_status SET status = 'PENDING', executor_id = :id WHERE workflow_uuid LIKE :id || ':%'")
    beating = threading.Thread(target=beat)
    beating.start()
    try:
        assert not desk.at_rest(id)
    finally:
        over.set()
        beating.join()
    assert desk.at_rest(id)  # it was killed
