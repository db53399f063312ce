"""Worker processes on real databases: killed, stopped, cut off from their database; nothing lost, nothing twice."""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.crew import Crew
from service.database import database_url, open_database, pictures, workers
from service.job_worker import main
from service.jobs import ACTIVE, Jobs, JobSpec, JobStatus
from service.settings import Settings
from service.upscale import UpscaleOptions
from tests.jobs_fakes import POISON, digests, fill, picture_bytes
from tests.jobs_servers import S3, Postgres, failing_proxy
from tests.service_fakes import wait_until

FAKE = [sys.executable, "-m", "tests.jobs_fakes"]
ROOT = Path(__file__).parent.parent


class Bench:
    """A database, a folder, and crews of workers with the fake upscaler."""

    def __init__(self, folder: Path, url: str | None = None, roots: Sequence[str] = ()) -> None:
        self.folder, self.log, self._url = folder, folder / "log", url
        self.roots = [str(folder), *roots]
        self.jobs = Jobs(open_database(database_url(folder / "data", url)))
        self._crews: list[Crew] = []
        self.log.touch()

    def crew(
        self, number: int, machine: str = "data", seconds: float = 0.02, devices: str = "cpu", **environment: str
    ) -> Crew:
        """Start workers, as of another machine where `machine` differs."""
        settings = Settings(
            data_dir=self.folder / machine,
            database_url=self._url,
            storage_roots=self.roots,
            log_level="error",
        )
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        environment = {"JOBS_LOG": str(self.log), "JOBS_SECONDS": str(seconds), **paths, **environment}
        crew = Crew(settings, [devices] * number, command=[*FAKE, "--dead-after", "10"], environment=environment)
        self._crews.append(crew)
        crew.start()
        return crew

    def run(self, output: str, source: str = "in") -> str:
        """Queue a job between folders of this bench, or other places."""
        places = [place if "://" in place else str(self.folder / place) for place in (source, output)]
        return self.jobs.create(JobSpec(places[0], places[1], UpscaleOptions(steps=0)))

    def wait(self, id: str, seconds: float = 120) -> JobStatus:
        """The job once it is over."""
        wait_until(lambda: self.jobs.status(id, 0).state not in ACTIVE, seconds)
        return self.jobs.status(id)

    def enlarged(self) -> Counter[str]:
        """How often each picture was enlarged."""
        return Counter(line.split()[0] for line in self.log.read_text().splitlines())

    def close(self) -> None:
        """Stop everything."""
        for crew in self._crews:
            crew.stop(20)
        self.jobs.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def test_three_workers_killed_at_random_lose_and_spoil_nothing(bench: Bench) -> None:
    fill(bench.folder / "in", 60)
    crew = bench.crew(3, seconds=0.1)
    id = bench.run("stormy")
    for done in (5, 20, 35):
        wait_until(lambda done=done: bench.jobs.status(id, 0).done >= done and crew.pids())  # type: ignore[misc]
        os.kill(crew.pids()[0], signal.SIGKILL)
    status = bench.wait(id)
    assert (status.state, status.done, status.failed) == ("done", 60, 0)
    counts = bench.enlarged()
    assert len(counts) == 60
    assert sum(counts.values()) <= 60 + 3  # a worker has one picture in hand
    calm = bench.run("calm")
    assert bench.wait(calm).done == 60
    assert digests(bench.folder / "calm") == digests(bench.folder / "stormy")
    manifest = [json.loads(line) for line in (bench.folder / "stormy" / "manifest.jsonl").read_text().splitlines()]
    assert [line["source"] for line in manifest] == [f"{index:05}.png" for index in range(60)]


def test_what_a_power_cut_took_of_a_chunk_in_hand_is_done_again(bench: Bench) -> None:
    fill(bench.folder / "in", 8)  # one chunk
    crew = bench.crew(1, seconds=0.3)
    id = bench.run("out")
    wait_until(lambda: bench.jobs.status(id, 0).done >= 3)
    crew._stopping.set()
    os.kill(crew.pids()[0], signal.SIGKILL)
    (bench.folder / "out" / "00000.png").write_bytes(b"")  # so ext4 leaves a file that was not flushed
    (bench.folder / "out" / "00001.png").unlink()
    bench.crew(1)
    assert bench.wait(id).done == 8
    assert all(path.stat().st_size for path in (bench.folder / "out").iterdir())
    assert len(digests(bench.folder / "out")) == 8
    assert 10 <= sum(bench.enlarged().values()) <= 11


def test_a_picture_that_kills_its_worker_is_given_up_after_three(bench: Bench) -> None:
    fill(bench.folder / "in", 6)
    (bench.folder / "in" / "poison.png").write_bytes(picture_bytes(1, first=POISON))
    bench.crew(2)  # so that nobody waits for the dead one's return
    status = bench.wait(bench.run("out"))
    assert (status.done, status.failed) == (6, 1)
    assert status.failures[0]["source"] == "poison.png"
    assert max(bench.enlarged().values()) == 3


def test_a_picture_that_takes_longer_than_a_stop_waits_is_not_given_up(bench: Bench) -> None:
    fill(bench.folder / "in", 1)
    id = bench.run("out")
    for turn in range(1, 4):
        crew = bench.crew(1, seconds=60)
        wait_until(lambda turn=turn: bench.enlarged().total() == turn)  # type: ignore[misc]
        (pid,) = crew.pids()
        crew.stop(2)
        assert not Path(f"/proc/{pid}").exists()
        with bench.jobs.engine.connect() as connection:
            assert connection.execute(sa.select(pictures.c.attempts, pictures.c.state)).all() == [(0, 0)]
    bench.crew(1)
    status = bench.wait(id)
    assert (status.done, status.failed) == (1, 0)


def test_what_is_not_below_its_roots_fails_what_is_cancelled_is_taken_up_and_what_is_left_at_a_stop_goes_on(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("private")
    fill(elsewhere, 1)
    crew = bench.crew(1, seconds=0.1)
    status = bench.wait(bench.jobs.create(JobSpec(str(elsewhere), str(bench.folder / "private"), UpscaleOptions())))
    assert status.state == "failed"
    assert "not below" in str(status.note)
    fill(bench.folder / "in", 30)
    id = bench.run("out")
    wait_until(lambda: bench.jobs.status(id, 0).done >= 3)
    bench.jobs.cancel(id)
    wait_until(lambda: (bench.folder / "out" / "manifest.jsonl").exists())
    cancelled = bench.jobs.status(id).done
    assert cancelled < 30
    bench.jobs.take_up(id)
    wait_until(lambda: bench.jobs.status(id, 0).done > cancelled)
    crew.stop(20)
    with bench.jobs.engine.connect() as connection:
        assert connection.execute(sa.select(workers)).all() == []
        assert set(connection.execute(sa.select(pictures.c.attempts).where(pictures.c.state == 0)).scalars()) == {0}
    assert not bench.jobs.client.list_workflows(status="PENDING")
    bench.crew(1)
    assert bench.wait(id).done == 30
    assert set(bench.enlarged().values()) == {1}


def test_a_job_whose_manifest_cannot_be_written_fails_with_the_reason_and_holds_nobody_up(bench: Bench) -> None:
    fill(bench.folder / "in", 2)
    (bench.folder / "out" / "manifest.jsonl").mkdir(parents=True)
    bench.crew(1)
    id = bench.run("out")
    wait_until(lambda: bench.jobs.status(id, 0).done == 2)
    other = bench.run("other")
    assert bench.wait(other).state == "done"
    status = bench.wait(id)
    assert (status.state, status.done, status.note) == ("failed", 2, "manifest.jsonl: Is a directory")


def test_a_manifest_for_which_there_is_no_room_is_waited_for_holds_nobody_up_and_can_be_cancelled(bench: Bench) -> None:
    fill(bench.folder / "in", 2)
    bench.crew(1)
    id = bench.run("full")
    wait_until(lambda: bench.jobs.status(id, 0).note == "waiting for the storage: no room")
    assert bench.wait(bench.run("other")).state == "done"
    assert bench.jobs.status(id, 0).state == "running"
    bench.jobs.cancel(id)
    assert bench.wait(bench.run("another")).state == "done"
    waiting = ["ENQUEUED", "DELAYED", "PENDING"]
    wait_until(lambda: not bench.jobs.client.list_workflows(status=waiting))
    assert (bench.jobs.status(id, 0).state, bench.jobs.status(id, 0).note) == ("cancelled", None)


def test_patience_with_a_silent_input_or_a_full_output_ends_and_holds_nobody_up(bench: Bench) -> None:
    fill(bench.folder / "in", 2)
    bench.crew(1, SERVICE_JOB_PATIENCE="8")
    silent, full = bench.run("out", "silent"), bench.run("full")
    wait_until(lambda: bench.jobs.status(silent, 0).note == "waiting for the storage: no answer")
    other = bench.wait(bench.run("other"))
    assert other.state == "done"
    for id, reason in ((silent, "no answer"), (full, "no room")):
        status = bench.wait(id)
        assert (status.state, f"{reason} (waited " in str(status.note)) == ("failed", True)
        assert status.finished and other.finished and other.finished < status.finished
    assert bench.jobs.status(full).done == 2


def test_pictures_for_which_there_is_no_room_hold_nobody_up_and_fail_when_patience_ends(bench: Bench) -> None:
    fill(bench.folder / "in", 5)
    bench.crew(1, SERVICE_JOB_PATIENCE="15")
    id = bench.run("crammed")
    wait_until(lambda: bench.jobs.status(id, 0).note == "waiting for the storage: no room")
    other = bench.wait(bench.run("other"))
    assert (other.state, bench.jobs.status(id, 0).state) == ("done", "running")
    began = time.monotonic()
    status = bench.wait(id, 90)
    assert (status.state, status.failed, {each["error"] for each in status.failures}) == ("done", 5, {"no room"})
    assert time.monotonic() - began < 60, "one picture's patience is that of all that are with it"


SIGNING_OFF = """
import sys, time
from pathlib import Path
folder = Path(sys.argv[1])
with (folder / "begun").open("a") as log:
    log.write("x")
while not (folder / "signs off").exists():
    time.sleep(0.02)
"""


def signing_off(folder: Path, idle: float) -> Crew:
    """A crew of one worker that signs off when a file of that name is there."""
    (folder / "begun").touch()
    return Crew(Settings(data_dir=folder), ["cpu"], idle, [sys.executable, "-c", SIGNING_OFF, str(folder)])


def test_a_start_while_an_idle_worker_signs_off_is_not_lost(tmp_path: Path) -> None:
    crew = signing_off(tmp_path, 60.0)
    crew.start()
    wait_until(lambda: (tmp_path / "begun").read_text() == "x")
    crew.start()
    (tmp_path / "signs off").touch()
    wait_until(lambda: not crew.alive())
    assert (tmp_path / "begun").read_text() == "xx"
    crew.start()
    wait_until(lambda: not crew.alive())
    assert (tmp_path / "begun").read_text() == "xxx"


def test_a_worker_that_was_idle_since_the_last_start_stays_away(tmp_path: Path) -> None:
    crew = signing_off(tmp_path, 0.2)
    crew.start()
    wait_until(lambda: (tmp_path / "begun").read_text() == "x")
    crew.start()
    time.sleep(0.3)
    (tmp_path / "signs off").touch()
    wait_until(lambda: not crew.alive())
    assert (tmp_path / "begun").read_text() == "x"


def test_a_worker_of_several_devices_has_a_process_for_each(bench: Bench) -> None:
    fill(bench.folder / "in", 40)
    with bench.jobs.engine.connect() as connection:
        crew = bench.crew(1, seconds=0.1, devices="cpu,cpu")
        wait_until(lambda: len(connection.execute(sa.select(workers)).all()) == 2)
    assert bench.wait(bench.run("out")).done == 40
    with bench.jobs.engine.connect() as connection:
        assert len(set(connection.execute(sa.select(pictures.c.owner)).scalars())) == 2
    crew.stop(60)
    with bench.jobs.engine.connect() as connection:
        assert connection.execute(sa.select(workers)).all() == []


def test_four_on_postgres_share_and_one_gone_for_good_is_replaced(tmp_path: Path, postgres: Postgres) -> None:
    bench = Bench(tmp_path, postgres.url)
    try:
        fill(tmp_path / "in", 120)
        doomed = bench.crew(1, "machine 1", seconds=0.15)
        for number in (2, 3, 4):
            bench.crew(1, f"machine {number}", seconds=0.15)
        with bench.jobs.engine.connect() as connection:
            wait_until(lambda: len(connection.execute(sa.select(workers)).all()) == 4)
        id = bench.run("out")
        with bench.jobs.engine.connect() as connection:
            owner = sa.select(pictures.c.owner).where(pictures.c.job == id, pictures.c.state == 1)
            wait_until(lambda: len(set(connection.execute(owner).scalars())) == 4)
        doomed._stopping.set()  # so that it is not replaced
        os.kill(doomed.pids()[0], signal.SIGKILL)
        one = bench.run("one")  # by the three others, while nobody misses the fourth yet
        status = bench.wait(id)
        assert (status.state, status.done) == ("done", 120)
        assert bench.wait(one).done == 120
        assert sum(bench.enlarged().values()) <= 2 * 120 + 1
        assert digests(tmp_path / "one") == digests(tmp_path / "out")
    finally:
        bench.close()


def test_a_database_that_crashes_and_returns_is_waited_for_and_takes_nothing_back(
    tmp_path: Path, postgres: Postgres
) -> None:
    bench = Bench(tmp_path, postgres.url)
    try:
        fill(tmp_path / "in", 24)
        bench.crew(2, seconds=0.1)
        id = bench.run("out")
        wait_until(lambda: bench.jobs.status(id, 0).done >= 5)
        postgres.stop()
        known = sum(bench.enlarged().values())
        postgres.start()
        bench.jobs.engine.dispose()
        assert bench.jobs.status(id, 0).done >= known - 2  # each worker has one in hand
        status = bench.wait(id)
        assert (status.state, status.done, status.failed) == ("done", 24, 0)
        assert set(bench.enlarged().values()) == {1}
    finally:
        bench.close()


def test_a_locked_database_is_waited_for_and_a_claim_that_nobody_heard_of_is_made_again(bench: Bench) -> None:
    fill(bench.folder / "in", 40)
    bench.crew(1, seconds=0.1)
    id = bench.run("out")
    wait_until(lambda: bench.jobs.status(id, 0).done >= 2)
    with bench.jobs.engine.begin() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        worker = connection.execute(sa.select(workers.c.id)).scalar_one()
        claim = "UPDATE workflow_status SET status = 'PENDING', executor_id = ? WHERE status = 'ENQUEUED'"
        assert connection.exec_driver_sql(claim, (worker,)).rowcount > 0
        time.sleep(2)
    assert bench.wait(id).done == 40
    assert set(bench.enlarged().values()) == {1}


def test_a_bucket_that_fails_one_request_in_ten(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "in", 12)
    with failing_proxy(s3.url, 10) as url:
        for name, value in s3.environment(url).items():
            monkeypatch.setenv(name, value)
        bench = Bench(tmp_path, roots=["s3://library/data"])
        try:
            bench.crew(1)
            up = bench.wait(bench.run("s3://library/data/large"))
            assert (up.done, up.failed) == (12, 0)
            down = bench.wait(bench.run("down", "s3://library/data/large"))
            assert (down.done, down.failed) == (12, 0)
            assert len(digests(tmp_path / "down")) == 12
        finally:
            bench.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--database-url", "mysql://x"], "a postgresql:// address is needed"),
        (["--database-url", "postgresql://127.0.0.1:9/none"], "the database cannot be opened"),
        (["--data-dir", "/proc/none"], "the database cannot be opened"),
    ],
)
def test_bad_start_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(settings: Settings) -> Any:
        raise AssertionError

    assert main(arguments, never) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_model_that_does_not_load_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(settings: Settings) -> Any:
        raise OSError("weights are missing")

    assert main(["--data-dir", str(tmp_path)], broken) == 2
    assert (
        capsys.readouterr().err
        == "python -m service worker: error: cannot load the model: OSError: weights are missing\n"
    )
