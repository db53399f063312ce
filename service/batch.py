"""Enlarge a folder or bucket of pictures: `python -m service.batch INPUT OUTPUT`.

Again goes on where it stopped. OUTPUT/manifest.jsonl says how each picture went.
"""

import fcntl
import hashlib
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from service.crew import COMMAND, Crew
from service.database import database_url, open_database, persistently
from service.device import Upscaler
from service.jobs import ACTIVE, OVER, Jobs, JobSpec, JobStatus
from service.manifest import write_manifest
from service.pictures import Picture
from service.plan import MANIFEST, chosen, plan
from service.settings import BadSettings, Settings, load_settings
from service.storage import Folder, NotAllowed, Place, StorageError, check_places, open_place
from service.upscale import UpscaleOptions, load_upscaler
from sr3.images import VIEWS

INTERRUPTED = 130
MAX_PIXELS = 2**30
"""Of a result, where SERVICE_MAX_PIXELS says nothing: who runs this owns the machine, and has photographs."""
_SAMPLE, _PROBE = 1000, 128


@dataclass(frozen=True)
class Options:
    """What the command line takes."""

    input: tyro.conf.Positional[str]
    """A folder, or an s3://, gs:// or az:// prefix. Credentials and endpoints come from the environment."""
    output: tyro.conf.Positional[str]
    """Another folder or prefix, not inside the input."""
    factor: Literal[4, 16] = 4
    """How many times wider and higher."""
    steps: int | None = None
    """0 gives the faithful picture; more add texture. By default what SERVICE_SR_STEPS says."""
    scheduler: Literal["DDIM", "DDPM", "DPMSolver++", "Euler", "LMS", "UniPC"] | None = None
    """In place of the model's own."""
    aug_level: float | None = None
    """How much of the pictures' own noise to smooth away, 0 to 0.3."""
    consistency: int | None = None
    """How many times a result is made to reduce to its picture again. If not given 0 for JPEG, WebP, with an
    --aug-level and for the second pass of 16 times, else 2."""
    views: int = 1
    """Test-time augmentation: of how many views of a picture (itself, mirrored, turned; up to 8) its estimate is the
    mean. Closer to the picture, a little softer, and slower: each takes an encoder's pass."""
    seed: int = 0
    """Of the job; each picture's follows from it and the picture's name."""
    format: Literal["PNG", "JPEG", "WEBP", "TIFF"] | None = None
    """Of the results; by default each picture's own. Where it is another, its suffix is added to the name."""
    quality: int = 95
    """Of JPEG and WebP."""
    glob: str | None = None
    """Take the files whose names match, "*.jpg", or with a / their paths. By default all with a picture's suffix."""
    recursive: bool = False
    """Go into folders below the input."""
    overwrite: bool = False
    """Do pictures whose result is there already once more. Without, what is there and whole is kept, but for what was
    made with other options, by the manifest."""
    workers: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 1
    """Processes that work at once, each with a model of its own."""
    device: str | None = None
    """auto, cpu, mps, cuda or cuda:N; several with commas between are dealt out to the workers."""
    dry_run: bool = False
    """Count pictures and pixels, estimate the time, and do nothing."""


def main(
    argv: Sequence[str] | None = None,
    command: Sequence[str] = COMMAND,
    load: Callable[[Settings], Upscaler] = load_upscaler,
) -> int:
    """Status 0 where all is done, 1 where some pictures failed, 2 where nothing could start, 130 when interrupted."""
    options = tyro.cli(Options, args=argv, prog="python -m service.batch", description=__doc__)
    try:
        settings = _settings(options.device)
        spec, devices = _spec(options, settings), settings.device.split(",")
        check_places(spec.input, spec.output, None)
        source = open_place(spec.input)
        closed: dict[str, str] = {}
        if next(chosen(source, spec, closed), None) is None:
            deeper = [] if spec.recursive else ["--recursive looks into folders below"]
            reasons = [*deeper, *map(": ".join, closed.items())]
            return _fail("; ".join([f"{spec.input} holds no pictures that match", *reasons]))
        if options.dry_run:
            one = settings.model_copy(update={"device": devices[0]})
            return _dry_run(source, spec, one, options.workers, load)
        _check_output(open_place(spec.output))
        with _State(settings, spec) as state:
            return _run(state, settings, spec, [devices[i % len(devices)] for i in range(options.workers)], command)
    except (BadSettings, NotAllowed, StorageError, ValueError, OSError) as error:
        return _fail(" ".join(str(error).split()))
    except SQLAlchemyError as error:
        return _fail(f"the database of the run cannot be used: {' '.join(str(error).split())[:300]}")


def _settings(device: str | None) -> Settings:
    """Those of the environment, where it has nothing to say of a server. Raises BadSettings."""
    flags = [] if device is None else ["--device", device.replace(" ", "")]
    settings = load_settings(["--host", "127.0.0.1", *flags])  # it listens nowhere, whatever the server does
    given = "max_pixels" in settings.model_fields_set
    return settings if given else settings.model_copy(update={"max_pixels": MAX_PIXELS})


def _spec(options: Options, settings: Settings) -> JobSpec:
    """The job; ValueError names an option out of its range."""
    limits = {
        "steps": (0, 999),
        "aug_level": (0, 0.999),
        "consistency": (0, 100),
        "views": (1, VIEWS),
        "quality": (1, 100),
        "seed": (0, 2**63 - 1),
        "workers": (1, 64),
    }
    for name, (least, most) in limits.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be between {least} and {most}")
    upscale = UpscaleOptions(
        factor=options.factor,
        steps=settings.sr_steps if options.steps is None else options.steps,
        scheduler=options.scheduler,
        aug_level=options.aug_level,
        consistency=options.consistency,
        views=options.views,
        format=options.format,
        quality=options.quality,
    )
    places = open_place(options.input).url, open_place(options.output).url
    return JobSpec(*places, upscale, options.glob, options.recursive, options.overwrite, options.seed)


class _State:
    """The run's own database, which lasts until it ends: after a crash the same command finds it, and goes on."""

    def __init__(self, settings: Settings, spec: JobSpec) -> None:
        name = hashlib.sha256(f"{spec.input}\n{spec.output}".encode()).hexdigest()[:16]
        self.folder = settings.data_dir.expanduser() / "batch" / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "_State":
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError("another run of this input and output is under way") from None
        self.jobs = Jobs(open_database(database_url(self.folder, None)))
        return self

    def __exit__(self, *error: object) -> None:
        self.jobs.close()
        self._lock.close()

    def job(self, spec: JobSpec) -> str:
        """The id of a job for `spec`: the one that a crash left behind, taken up, or a new one."""
        for left in self.jobs.all():
            if left.spec == spec:
                self.jobs.take_up(left.id, (*ACTIVE, *OVER))
                return left.id
            if left.state in ACTIVE:
                self.jobs.cancel(left.id)
            self.jobs.delete(left.id)
        return self.jobs.create(spec)

    def forget(self) -> None:
        """The manifest knows all that the database did."""
        self.jobs.close()
        for path in self.folder.glob("jobs.sqlite*"):
            path.unlink()


def _run(state: _State, settings: Settings, spec: JobSpec, devices: Sequence[str], command: Sequence[str]) -> int:
    jobs, id = state.jobs, state.job(spec)
    own = {"data_dir": state.folder, "database_url": None, "storage_roots": [spec.input, spec.output]}
    quiet = {"log_level": "error"} if settings.log_level == "info" else {}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(devices)))} if len(devices) > 1 else {}
    crew = Crew(settings.model_copy(update=own | quiet), devices, command=command, environment=threads)
    interrupted = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, frame: interrupted.set())
    began = time.monotonic()
    try:
        status = _watch(jobs, id, crew, interrupted)
    finally:
        crew.stop()
    if crew.broken.is_set() and status.state in ACTIVE and not interrupted.is_set():
        return _fail("no worker could start; the line above says why")
    if status.state == "failed":
        state.forget()
        return _fail(status.note or "the job could not begin")
    status = jobs.status(id)
    if status.state != "done":
        if status.state in ACTIVE:
            jobs.cancel(id)
        write_manifest(jobs, id)
    state.forget()
    _summary(status, time.monotonic() - began)
    if status.state != "done":
        return INTERRUPTED
    return 1 if status.failed else 0


def _watch(jobs: Jobs, id: str, crew: Crew, interrupted: threading.Event) -> JobStatus:
    """Have the crew do what is left of the job, and show how it goes until it is over, interrupted, or no worker is
    left."""
    last = 0.0
    with tqdm(unit="picture", desc="listing", dynamic_ncols=True, smoothing=0.05, disable=None) as bar:
        if _plan(jobs, id):
            crew.start()
        while True:
            status: JobStatus = persistently(lambda: jobs.status(id, 0))
            for failed, record in persistently(lambda after=last: jobs.failures(id, after)):  # type: ignore[misc]
                last = failed
                tqdm.write(f"failed: {record['source']}: {record['error']}", file=sys.stderr)
            _show(bar, status)
            if status.state not in ACTIVE or not crew.alive():
                return status
            if interrupted.wait(0.3):
                tqdm.write("stopping after the pictures in hand; the same command goes on", file=sys.stderr)
                return status


def _plan(jobs: Jobs, id: str) -> bool:
    """Whether workers are needed, whose start takes seconds; else the job is over. A worker waits for a storage in
    trouble, and fails the job where that does not help."""
    try:
        plan(jobs, id)
        if jobs.status(id, 0).pending:
            return True
        write_manifest(jobs, id)
    except (StorageError, OSError, ValueError):
        return True
    return False


def _show(bar: "tqdm[None]", status: JobStatus) -> None:
    finished = status.done + status.failed + status.kept
    if status.state != "planning" and bar.total is None:
        bar.total = status.total
        bar.initial = bar.n = status.kept  # so that the rate is of pictures that were really done
        bar.start_t = time.time()
        bar.set_description("enlarging")
    if bar.total is not None:
        bar.update(finished - bar.n)
    bar.set_postfix_str(f"{status.failed} failed" if status.failed else "", refresh=False)
    if status.note:
        bar.set_postfix_str(status.note[:60], refresh=False)
    bar.refresh()


def _summary(status: JobStatus, seconds: float) -> None:
    kept = f", {status.kept} there already" if status.kept else ""
    left = f", {status.pending} left" if status.pending else ""
    rate = status.done / seconds if seconds else 0.0
    print(
        f"{status.done} done, {status.failed} failed{kept}{left} of {status.total} in {_clock(seconds)}"
        f" ({rate:.2f} a second); see {status.spec.output.rstrip('/')}/{MANIFEST}"
    )


def _check_output(target: Place) -> None:
    """StorageError where nothing can be written there; a folder is made."""
    if isinstance(target, Folder):
        target.path.mkdir(parents=True, exist_ok=True)
        if not os.access(target.path, os.W_OK | os.X_OK):
            raise StorageError(f"{target.path} cannot be written to")
    target.size(MANIFEST)


def _dry_run(
    source: Place, spec: JobSpec, settings: Settings, workers: int, load: Callable[[Settings], Upscaler]
) -> int:
    """Print the count, the pixels, from a sample where there are many, and the time that a trial piece suggests."""
    closed: dict[str, str] = {}
    keys = [key for key, _ in sorted(chosen(source, spec, closed))]
    for folder, reason in closed.items():
        print(f"left out: {folder}: {reason}", file=sys.stderr)
    sample = keys[:: max(1, len(keys) // _SAMPLE)]
    sizes = [_pixels(source, key) for key in sample]
    most = settings.max_pixels // spec.options.factor**2
    readable = [size for size in sizes if size is not None]
    taken = [size for size in readable if size <= most]
    unreadable, too_large = (
        len(keys) * number // len(sample) for number in (len(sizes) - len(readable), len(readable) - len(taken))
    )
    pixels = sum(taken) * len(keys) / len(sample)
    picture = Picture(np.random.default_rng(0).integers(0, 256, (_PROBE, _PROBE, 3), dtype=np.uint8))
    upscaler = load(settings)
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        upscaler.upscale([picture], [0], spec.options)
    seconds = (time.perf_counter() - began) / _PROBE**2 * pixels / workers
    about = "about " if len(sample) < len(keys) else ""
    limit = f"the {most / 1e6:.3g} megapixels that SERVICE_MAX_PIXELS={settings.max_pixels} takes"
    print(
        f"{len(keys)} pictures, {about}{unreadable} of them unreadable"
        f"{f', {about}{too_large} larger than {limit}' if too_large else ''}; "
        f"{about}{pixels / 1e6:.1f} megapixels, {pixels * spec.options.factor**2 / 1e6:.1f} when enlarged; "
        f"about {_clock(seconds)} with {workers} worker{'s' if workers > 1 else ''}"
    )
    return 0


def _pixels(source: Place, key: str) -> int | None:
    try:
        head = b"".join(islice(source.stream(key), 1))
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(head)) as image:
            return image.width * image.height
    except Image.DecompressionBombError:
        return sys.maxsize
    except Exception:  # whatever is wrong with it, it has no pixels to count
        return None


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _fail(message: str) -> int:
    print(f"python -m service.batch: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
