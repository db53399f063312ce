"""Campaigns over batch jobs: `python -m tests.bench_jobs kills|enqueue|overhead|throughput|memory [--postgres]`.

Run by hand. Each prints one Markdown line. All but `throughput` use a fake upscaler.
"""

import argparse
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from service.crew import Crew
from service.database import database_url, open_database
from service.jobs import ACTIVE, Jobs, JobSpec, JobStatus
from service.pictures import decode_picture, encode_picture
from service.plan import output_format, picture_seed, plan
from service.settings import Settings
from service.storage import Folder
from service.upscale import UpscaleOptions, load_upscaler
from tests.jobs_fakes import FakeUpscaler, digests, fill
from tests.jobs_servers import Postgres

FAKE = [sys.executable, "-m", "tests.jobs_fakes"]
OPTIONS = UpscaleOptions(steps=0)


class Bench:
    """A database, a crew of workers on it, and a log of what they enlarged."""

    def __init__(
        self, folder: Path, postgres: Postgres | None, workers: int, command: list[str], seconds: float
    ) -> None:
        url = postgres.url if postgres else None
        self.folder, self.log = folder, folder / "log"
        self.log.touch()
        settings = Settings(data_dir=folder / "data", database_url=url, storage_roots=[str(folder)], log_level="error")
        self.jobs = Jobs(open_database(database_url(folder / "data", url)))
        environment = {"JOBS_LOG": str(self.log), "JOBS_SECONDS": str(seconds), "OMP_NUM_THREADS": "1"}
        self.crew = Crew(settings, ["cpu"] * workers, command=command, environment=environment)

    def run(self, name: str, options: UpscaleOptions = OPTIONS, source: str = "in") -> str:
        """Queue a job from `source` into the folder `name`."""
        return self.jobs.create(JobSpec(str(self.folder / source), str(self.folder / name), options))

    def wait(self, id: str, patience: float = 1200) -> JobStatus:
        """The job once it is over."""
        deadline = time.monotonic() + patience
        while (status := self.jobs.status(id, 0)).state in ACTIVE:
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        return status

    def close(self) -> None:
        """Stop the workers."""
        self.crew.stop(30)
        self.jobs.close()


def span(bench: Bench, id: str) -> float:
    """Seconds from the first picture's end to the last's."""
    ends = bench.jobs.engine.connect().exec_driver_sql(
        f"SELECT min(finished), max(finished) FROM sr3_pictures WHERE job = '{id}'"
    )
    first, last = ends.one()
    return float(last - first)


def kills(bench: Bench, count: int, number: int) -> str:
    """Kill a random worker `number` times during a job; compare with an undisturbed one."""
    fill(bench.folder / "in", count)
    bench.crew.start()
    bench.wait(bench.run("calm"))
    calm = len(bench.log.read_text().splitlines())
    id = bench.run("stormy")
    done = 0
    draw = random.Random(0)
    while done < number and bench.jobs.status(id, 0).state in ACTIVE:
        status = bench.jobs.status(id, 0)
        if status.done * (number + 1) >= done * count and (pids := bench.crew.pids()):
            with suppress(ProcessLookupError):
                os.kill(draw.choice(pids), signal.SIGKILL)
                done += 1
        time.sleep(draw.uniform(0.05, 0.5))
    status = bench.wait(id)
    lines = Counter(line.split()[0] for line in bench.log.read_text().splitlines()[calm:])
    same = digests(bench.folder / "calm") == digests(bench.folder / "stormy")
    again = sum(lines.values()) - len(lines)
    return (
        f"{done} kills: {status.done} done, {status.failed} failed of {count}; outputs equal: {same}; "
        f"enlarged again: {again}; most often one: {max(lines.values())}"
    )


def enqueue(bench: Bench, count: int) -> str:
    """Time the listing and queueing of `count` files, and asking for the state."""
    folder = bench.folder / "in"
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:07}.png").touch()
    began = time.perf_counter()
    id = bench.run("out")
    plan(bench.jobs, id)
    queued = time.perf_counter() - began
    asked = []
    for _ in range(20):
        began = time.perf_counter()
        status = bench.jobs.status(id)
        asked.append(time.perf_counter() - began)
    worst, median = 1000 * max(asked), 1000 * statistics.median(asked)
    return f"{status.total} queued in {queued:.1f} s; state in {median:.1f} ms (median), {worst:.1f} ms (worst)"


def overhead(bench: Bench, count: int) -> str:
    """What the queue costs a picture: a fake upscaler on tiny pictures, against the same in a bare loop."""
    fill(bench.folder / "in", count)
    bare = bare_loop(bench.folder / "in", bench.folder / "bare", FakeUpscaler())
    bench.crew.start()
    bench.wait(bench.run("warm"))
    id = bench.run("out")
    bench.wait(id)
    return f"{1000 * span(bench, id) / count:.2f} ms a picture, bare {1000 * bare / count:.2f} ms"


def throughput(bench: Bench, count: int) -> str:
    """The real model on mixed sizes, against a bare loop, in turns."""
    for index, side in enumerate((48, 64, 96, 128)):
        fill(bench.folder / f"set{index}", count // 4, side)
        (bench.folder / "in").mkdir(exist_ok=True)
        for path in (bench.folder / f"set{index}").iterdir():
            path.rename(bench.folder / "in" / f"{index}-{path.name}")
    upscaler = load_upscaler(Settings(device="cpu"))
    warm = bench.folder / "warm-in"
    fill(warm, 8, 48)
    bare_loop(warm, bench.folder / "bare-warm", upscaler)
    bench.crew.start()
    bench.wait(bench.run("warm", source="warm-in"))
    ratios = []
    for turn in range(3):
        bare = bare_loop(bench.folder / "in", bench.folder / f"bare{turn}", upscaler)
        id = bench.run(f"out{turn}")
        bench.wait(id)
        ratios.append(bare / (span(bench, id) * count / (count - 1)))
    return "pictures a second, of a bare loop's: " + ", ".join(f"{100 * ratio:.0f} %" for ratio in ratios)


def memory(bench: Bench, count: int) -> str:
    """The worker's memory over many pictures."""
    fill(bench.folder / "in", count)
    bench.crew.start()
    id = bench.run("out")
    samples: list[tuple[int, float]] = []
    while bench.jobs.status(id, 0).state in ACTIVE:
        if pids := bench.crew.pids():
            samples.append((bench.jobs.status(id, 0).done, psutil.Process(pids[0]).memory_info().rss / 2**20))
        time.sleep(0.5)
    at = {share: next(rss for done, rss in samples if done >= share * count) for share in (0.1, 0.25, 0.5, 0.75, 0.95)}
    return "; ".join(f"{share:.0%}: {rss:.0f} MiB" for share, rss in at.items())


def bare_loop(source: Path, target: Path, upscaler: object) -> float:
    """Seconds for reading, enlarging and writing one picture after another, with nothing around it."""
    out = Folder(target)
    began = time.perf_counter()
    for path in sorted(source.iterdir()):
        picture = decode_picture(path.read_bytes(), 2**24)
        (large,) = upscaler.upscale([picture], [picture_seed(0, path.name)], OPTIONS)  # type: ignore[attr-defined]
        out.write(path.name, encode_picture(large, output_format(path.name, None)))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaign", choices=["kills", "enqueue", "overhead", "throughput", "memory"])
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--count", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seconds", type=float)
    asked = parser.parse_args()
    counts = {"kills": 300, "enqueue": 100_000, "overhead": 1000, "throughput": 200, "memory": 5000}
    count = asked.count or counts[asked.campaign]
    seconds = asked.seconds if asked.seconds is not None else (0.2 if asked.campaign == "kills" else 0.0)
    workers = asked.workers or (3 if asked.campaign == "kills" else 1)
    folder = Path(tempfile.mkdtemp(prefix="bench-jobs-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = Postgres(sync=True) if asked.postgres else None
        if postgres:
            stack.callback(postgres.close)
        command = [sys.executable, "-m", "service.job_worker"] if asked.campaign == "throughput" else FAKE
        bench = Bench(folder, postgres, workers, command, seconds)
        stack.callback(bench.close)
        arguments = (asked.kills,) if asked.campaign == "kills" else ()
        line = globals()[asked.campaign](bench, count, *arguments)
        where = "Postgres" if postgres else "SQLite"
        print(f"| {asked.campaign} | {where}, {workers} workers, {count} pictures | {line} |", flush=True)


if __name__ == "__main__":
    main()
