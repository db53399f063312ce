"""Batch jobs in trouble: `python -m tests.bench_jobs_trouble kills|full|locked|restart|bucket|gone`.

Run by hand. Each does a job twice with a fake upscaler, in peace and in trouble, compares the results, counts what was
enlarged more than once, and prints one Markdown line. `full` mounts a small file system, and needs root for it.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import sqlalchemy as sa

from service.crew import Crew, variables
from service.database import pictures, workers
from service.jobs import ACTIVE, JobStatus
from service.plan import MANIFEST
from service.storage import open_place
from tests.bench_jobs import Bench
from tests.jobs_fakes import fill
from tests.jobs_http import FAKE
from tests.jobs_servers import S3, Postgres, failing_proxy, free_port

SECONDS = 0.1


def compared(bench: Bench, status: JobStatus, calm: str, stormy: str, before: int) -> str:
    """Whether the results are equal, and what was enlarged again, by the process whose end was the reason."""
    starts: dict[str, list[str]] = {}
    for line in bench.log.read_text().splitlines()[before:]:
        digest, _, pid = line.split()
        starts.setdefault(digest, []).append(pid)
    lost = Counter(pid for pids in starts.values() for pid in pids[:-1])
    same = digests(bench, calm) == digests(bench, stormy)
    return (
        f"{status.done} done, {status.failed} failed; outputs equal: {same}; enlarged again: {sum(lost.values())}, "
        f"at most {max(lost.values(), default=0)} a process; most often one: {max(map(len, starts.values()))}"
    )


def digests(bench: Bench, name: str) -> dict[str, str]:
    """The SHA-256 of each result."""
    place = open_place(name if "://" in name else str(bench.folder / name))
    return {key: hashlib.sha256(place.read(key)).hexdigest() for key, _ in place.list() if key != MANIFEST}


def troubled(bench: Bench, count: int, trouble: Callable[[str], str], stormy: str = "stormy") -> str:
    """The job in peace, then again with `trouble(id)` once a tenth is done."""
    fill(bench.folder / "in", count)
    bench.crew.start()
    assert bench.wait(bench.run("calm")).done == count
    before = len(bench.log.read_text().splitlines())
    id = bench.run(stormy)
    while bench.jobs.status(id, 0).done < count // 10:
        time.sleep(0.05)
    said = trouble(id)
    status = bench.wait(id)
    return f"{said}: {compared(bench, status, 'calm', stormy, before)}"


class Server:
    """A server of jobs with two workers of its own, killed and started again."""

    def __init__(self, bench: Bench) -> None:
        self.port = free_port()
        own = {"JOBS_LOG": str(bench.log), "JOBS_SECONDS": str(SECONDS), "SERVICE_JOB_WORKERS": "2"}
        self._environment = {**os.environ, **variables(bench.settings), **own}
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "tests.jobs_http", str(self.port)]
        self.process = subprocess.Popen(command, env=self._environment)
        self.url = f"http://127.0.0.1:{self.port}/jobs"
        while True:
            with suppress(httpx.TransportError):
                httpx.get(self.url, timeout=30)
                return
            time.sleep(0.1)

    def make(self, bench: Bench, name: str) -> str:
        """Ask for a job."""
        body = {"input": str(bench.folder / "in"), "output": str(bench.folder / name), "steps": 0}
        return str(httpx.post(self.url, json=body, timeout=60).raise_for_status().json()["id"])

    def kill(self) -> None:
        """kill -9 the server; its workers end by themselves."""
        self.process.kill()
        self.process.wait()


def kills(bench: Bench, count: int, number: int = 30) -> str:
    """Kill workers, and every fifth time the server, at random during a job made over HTTP."""
    fill(bench.folder / "in", count)
    server = Server(bench)
    try:
        bench.wait(server.make(bench, "calm"))
        before = len(bench.log.read_text().splitlines())
        id, draw, of_workers, of_servers = server.make(bench, "stormy"), random.Random(0), 0, 0
        while of_workers + of_servers < number and (status := bench.jobs.status(id, 0)).state in ACTIVE:
            time.sleep(draw.uniform(0.0, 0.2))
            if status.done * (number + 1) < (of_workers + of_servers) * count:
                continue
            if (of_workers + of_servers) % 5 == 4:
                server.kill()
                server.start()
                of_servers += 1
                continue
            with bench.jobs.engine.connect() as connection:
                names = connection.execute(sa.select(workers.c.id)).scalars().all()
            pids = [pid for name in names if Path(f"/proc/{(pid := int(name.split('-')[-2]))}").exists()]
            with suppress(ProcessLookupError, IndexError):
                os.kill(draw.choice(pids), signal.SIGKILL)
                of_workers += 1
        status = bench.wait(id)
        said = f"{of_workers} kills of workers, {of_servers} of the server"
        return f"{said}: {compared(bench, status, 'calm', 'stormy', before)}"
    finally:
        server.process.terminate()
        server.process.wait()


def full(bench: Bench, count: int) -> str:
    """The disk that holds results, database and all is full for ten seconds."""

    def trouble(id: str) -> str:
        ballast = bench.folder / "ballast"
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        free = shutil.disk_usage(bench.folder).free
        time.sleep(10)
        said = bench.jobs.status(id, 0).note
        ballast.unlink()
        return f"{free} bytes free for ten seconds (the job said: {said})"

    return troubled(bench, count, trouble)


def locked(bench: Bench, count: int) -> str:
    """Another process writes to the database for longer than SQLite's busy timeout."""

    def trouble(id: str) -> str:
        connection = sqlite3.connect(bench.folder / "data" / "jobs.sqlite", isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(40)
        connection.close()
        return "locked for 40 s"

    return troubled(bench, count, trouble)


def restart(bench: Bench, count: int, postgres: Postgres) -> str:
    """Postgres crashes three times."""

    def trouble(id: str) -> str:
        for _ in range(3):
            postgres.stop()
            time.sleep(2)
            postgres.start()
            bench.jobs.engine.dispose()
            done = bench.jobs.status(id, 0).done
            while bench.jobs.status(id, 0).done < min(done + count // 8, count):
                time.sleep(0.1)
        return "3 crashes of Postgres"

    return troubled(bench, count, trouble)


def bucket(bench: Bench, count: int) -> str:
    """The bucket answers 503 to one request in ten."""
    return troubled(bench, count, lambda id: "one request in ten fails", "s3://library/large")


def gone(bench: Bench, count: int) -> str:
    """Four workers, each of a machine of its own; one is killed for good."""
    fill(bench.folder / "in", count)
    crews = []
    for number in range(4):
        settings = bench.settings.model_copy(update={"data_dir": bench.folder / f"machine{number}"})
        environment = {"JOBS_LOG": str(bench.log), "JOBS_SECONDS": str(SECONDS)}
        crews.append(Crew(settings, ["cpu"], command=FAKE, environment=environment))
    try:
        for crew in crews:
            crew.start()
        bench.wait(bench.run("calm"))
        before = len(bench.log.read_text().splitlines())
        id = bench.run("stormy")
        while bench.jobs.status(id, 0).done < count // 4:
            time.sleep(0.05)
        pid = crews[0].pids()[0]
        threading.Thread(target=crews[0].stop, args=(0.0,)).start()  # so that it is not replaced
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        with bench.jobs.engine.connect() as connection:
            name = connection.execute(sa.select(workers.c.id).where(workers.c.id.like(f"%-{pid}-%"))).scalar_one()
            mine = (pictures.c.job == id) & (pictures.c.owner == name)
            chunks = connection.execute(sa.select(pictures.c.chunk).where(mine).distinct()).scalars().all()
        its = (pictures.c.job == id) & pictures.c.chunk.in_(chunks) & (pictures.c.state == 0)
        while True:
            with bench.jobs.engine.connect() as connection:
                if not connection.execute(sa.select(sa.func.count()).where(its)).scalar_one():
                    break
            time.sleep(0.1)
        after = time.monotonic() - killed
        status = bench.wait(id)
        return f"its share done {after:.0f} s after the kill: {compared(bench, status, 'calm', 'stormy', before)}"
    finally:
        for crew in crews:
            crew.stop(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaign", choices=["kills", "full", "locked", "restart", "bucket", "gone"])
    parser.add_argument("--count", type=int, default=300)
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = os.getcwd()
    folder = Path(tempfile.mkdtemp(prefix="bench-jobs-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = Postgres() if asked.campaign in ("restart", "gone") else None
        if postgres:
            stack.callback(postgres.close)
        if asked.campaign == "bucket":
            s3 = S3()
            stack.callback(s3.close)
            s3.make_bucket("library")
            os.environ.update(s3.environment(stack.enter_context(failing_proxy(s3.url, 10))))
        if asked.campaign == "full":
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)
            stack.callback(subprocess.run, ["umount", "-l", folder])
        bench = Bench(folder, postgres, workers=2, seconds=SECONDS)
        stack.callback(bench.close)
        more = (postgres,) if asked.campaign == "restart" else ()
        line = globals()[asked.campaign](bench, asked.count, *more)
        print(f"| `{' '.join(sys.argv[1:])}` | {asked.count} pictures | {line} |", flush=True)


if __name__ == "__main__":
    main()
