"""What batch jobs cost: `python -m tests.bench_jobs enqueue|overhead|throughput|memory [--postgres]`.

Run by hand, on a quiet machine. Each prints one Markdown line. All but `throughput` use a fake upscaler.
"""

import argparse
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from service.crew import COMMAND, Crew
from service.database import database_url, open_database
from service.device import Upscaler
from service.jobs import ACTIVE, Jobs, JobSpec, JobStatus
from service.pictures import decode_picture, encode_picture
from service.plan import output_format, picture_seed, plan
from service.settings import Settings
from service.upscale import UpscaleOptions, load_upscaler
from tests.jobs_fakes import FakeUpscaler, fill
from tests.jobs_http import FAKE
from tests.jobs_servers import Postgres

OPTIONS = UpscaleOptions(steps=0)


class Bench:
    """A database, a crew of workers on it, and a log of what they enlarged."""

    def __init__(
        self,
        folder: Path,
        postgres: Postgres | None = None,
        workers: int = 1,
        seconds: float = 0.0,
        command: tuple[str, ...] = tuple(FAKE),
    ) -> None:
        url = postgres.url if postgres else None
        self.folder = folder
        self.log = Path(tempfile.mkstemp(prefix="bench-jobs-log-")[1])  # not where a campaign fills the disk
        roots = [str(folder), "s3://library"]
        self.settings = Settings(data_dir=folder / "data", database_url=url, storage_roots=roots, log_level="error")
        self.jobs = Jobs(open_database(database_url(folder / "data", url)))
        environment = {"JOBS_LOG": str(self.log), "JOBS_SECONDS": str(seconds)}
        self.crew = Crew(self.settings, ["cpu"] * workers, command=command, environment=environment)

    def run(self, name: str, options: UpscaleOptions = OPTIONS, source: str = "in") -> str:
        """Queue a job from `source` into `name`: folders of the bench, or whole addresses."""
        places = [place if "://" in place else str(self.folder / place) for place in (source, name)]
        return self.jobs.create(JobSpec(places[0], places[1], options))

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
        self.log.unlink()


def steady(bench: Bench, id: str, count: int) -> float:
    """Seconds a picture, from the first one's end to the last one's."""
    with bench.jobs.engine.connect() as connection:
        ends = connection.exec_driver_sql(f"SELECT min(finished), max(finished) FROM sr3_pictures WHERE job = '{id}'")
        first, last = ends.one()
    return float(last - first) / (count - 1)


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
    for _ in range(100):
        began = time.perf_counter()
        status = bench.jobs.status(id)
        asked.append(time.perf_counter() - began)
    worst, median = 1000 * max(asked), 1000 * statistics.median(asked)
    return f"{status.total} queued in {queued:.1f} s; state in {median:.1f} ms (median), {worst:.1f} ms (worst of 100)"


def overhead(bench: Bench, count: int) -> str:
    """What the queue costs a picture: a fake upscaler on tiny pictures, against the same in a bare loop, in turns."""
    fill(bench.folder / "in", count)
    bench.crew.start()
    bench.wait(bench.run("warm"))
    costs = []
    for turn in range(3):
        bare = bare_loop(bench.folder / "in", bench.folder / f"bare{turn}", FakeUpscaler())
        id = bench.run(f"out{turn}")
        bench.wait(id)
        costs.append((1000 * steady(bench, id, count), 1000 * bare / count))
    best = min(costs, key=lambda cost: cost[0] - cost[1])
    turns = ", ".join(f"{job - bare:.2f}" for job, bare in costs)
    return f"{best[0]:.2f} ms a picture, bare {best[1]:.2f} ms; the queue's share in three turns: {turns} ms"


def throughput(bench: Bench, count: int) -> str:
    """The real model on mixed pictures, against a bare loop, in turns."""
    mixed(bench.folder / "in", count)
    mixed(bench.folder / "warm-in", 8)
    upscaler = load_upscaler(Settings(device="cpu"))
    bare_loop(bench.folder / "warm-in", bench.folder / "bare-warm", upscaler)
    bench.crew.start()
    bench.wait(bench.run("warm", source="warm-in"))
    lines = []
    for turn in range(3):
        bare = bare_loop(bench.folder / "in", bench.folder / f"bare{turn}", upscaler)
        began = time.perf_counter()
        id = bench.run(f"out{turn}")
        assert bench.wait(id).done == count
        whole = time.perf_counter() - began
        ratio = bare / count / steady(bench, id, count)
        lines.append(f"{100 * ratio:.0f} % ({100 * bare / whole:.0f} %, {whole:.1f} s against {bare:.1f} s)")
    return "pictures a second, of a bare loop's (from asking to the manifest): " + "; ".join(lines)


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
    return "RSS " + "; ".join(f"{share:.0%}: {rss:.0f} MiB" for share, rss in at.items())


def mixed(folder: Path, count: int) -> None:
    """Pictures of four sizes, upright and wide, as PNG, JPEG and WebP, in colour, grey and with transparency."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(count):
        side = (48, 64, 96, 128)[index % 4]
        small = draw.integers(0, 256, (side // 8, side // 6 if index % 8 < 4 else side // 8, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((8 * small.shape[1], 8 * small.shape[0]), Image.Resampling.BICUBIC)
        mode, format = (("RGB", "png"), ("RGB", "jpg"), ("L", "png"), ("RGB", "webp"), ("RGBA", "png"))[index % 5]
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, {"jpg": "JPEG"}.get(format, format.upper()))
        (folder / f"{index:04}.{format}").write_bytes(buffer.getvalue())


def bare_loop(source: Path, target: Path, upscaler: Upscaler) -> float:
    """Seconds for reading, enlarging and writing one picture after another, with nothing around it."""
    target.mkdir()
    began = time.perf_counter()
    for path in sorted(source.iterdir()):
        picture = decode_picture(path.read_bytes(), 2**24)
        (large,) = upscaler.upscale([picture], [picture_seed(0, path.name)], OPTIONS)
        (target / path.name).write_bytes(encode_picture(large, output_format(path.name, None)))
    return time.perf_counter() - began


CAMPAIGNS: dict[str, tuple[Callable[[Bench, int], str], int]] = {
    "enqueue": (enqueue, 100_000),
    "overhead": (overhead, 1000),
    "throughput": (throughput, 200),
    "memory": (memory, 5000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--count", type=int)
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = os.getcwd()
    run, count = CAMPAIGNS[asked.campaign]
    count = asked.count or count
    folder = Path(tempfile.mkdtemp(prefix="bench-jobs-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = Postgres(sync=True) if asked.postgres else None
        if postgres:
            stack.callback(postgres.close)
        bench = Bench(folder, postgres, command=COMMAND if run is throughput else tuple(FAKE))
        stack.callback(bench.close)
        line = run(bench, count)
        print(f"| `{' '.join(sys.argv[1:])}` | {count} pictures | {line} |", flush=True)


if __name__ == "__main__":
    main()
