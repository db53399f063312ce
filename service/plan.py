"""What a job is to do: its input listed, what is done already left out; and where each picture goes."""

import fnmatch
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import sqlalchemy as sa

from service.database import pictures
from service.jobs import Jobs, JobSpec, PictureState
from service.storage import Place, open_place
from service.upscale import UpscaleOptions
from sr3.images import SUFFIXES as WRITTEN

MANIFEST = "manifest.jsonl"
FORMATS = {**WRITTEN, ".bmp": "BMP"}
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif"}


def named_format(key: str) -> str | None:
    """The format that a file's name says it has; None where it says none that is known."""
    return FORMATS.get(PurePosixPath(key).suffix.lower())


def output_format(key: str, wanted: str | None) -> str:
    """The format of a picture's result: the one asked for, else its own where that can be written, else PNG."""
    named = named_format(key)
    return wanted or (named if named in SUFFIXES else "PNG")


def output_key(key: str, wanted: str | None) -> str:
    """Where a picture's result goes: its own name, with a suffix added where the format is another.

    Added rather than replaced: a.jpg and a.png have two results. Where a picture is called a.jpg.png, `plan` tells.
    """
    format = output_format(key, wanted)
    return key if named_format(key) == format else key + SUFFIXES[format]


def picture_seed(seed: int, key: str) -> int:
    """A picture's seed, 32 bits, from the job's and the picture's key: whoever does it, and in whatever order."""
    words = np.frombuffer(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest(), np.uint32)
    return int(np.random.SeedSequence([seed, *map(int, words)]).generate_state(1, np.uint32)[0])


def chosen(place: Place, spec: JobSpec, refused: dict[str, str]) -> Iterator[tuple[str, int]]:
    """The keys and sizes that a job takes: those that match `glob`, or else have a picture's suffix; none hidden.
    `refused` gets the folders that cannot be read, as `Place.list` has it."""
    for key, size in place.list(spec.recursive, refused):
        path = PurePosixPath(key)
        if any(part.startswith(".") for part in path.parts):
            continue
        if spec.glob is None:
            fits = path.suffix.lower() in FORMATS
        else:
            fits = fnmatch.fnmatchcase(key if "/" in spec.glob else path.name, spec.glob)
        if fits:
            yield key, size


def manifest_sizes(target: Place, spec: JobSpec) -> dict[str, tuple[int | None, int | None]]:
    """By key, the bytes of picture and result that the manifest there knows of; {} without one.

    None, None where it says that no such result came of the picture, or not as `spec` has it made. A picture is left
    out where it does not say how its result was made: it was there before.
    """
    sizes: dict[str, tuple[int | None, int | None]] = {}
    for line in manifest_lines(target):
        key, made = line["source"], line.get("settings")
        if line.get("output") != output_key(key, spec.options.format):
            continue
        if line.get("state") in ("done", "kept") and not isinstance(made, dict):
            continue
        # A setting that is not named is one that there was not yet.
        alike = isinstance(made, dict) and asdict(UpscaleOptions()) | made == asdict(spec.options)
        if alike and line.get("seed") == picture_seed(spec.seed, key):
            sizes[key] = line.get("source_bytes"), line.get("output_bytes")
        else:
            sizes[key] = None, None
    return sizes


def manifest_lines(target: Place) -> Iterator[dict[str, Any]]:
    """The manifest's lines, one at a time; a line that is no JSON object is left out."""
    if target.size(MANIFEST) is None:
        return
    rest = b""
    for part in target.stream(MANIFEST):
        *whole, rest = (rest + part).split(b"\n")
        yield from filter(None, map(_parsed, whole))
    if last := _parsed(rest):
        yield last


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("source"), str) else None


def plan(jobs: Jobs, id: str, place: Callable[[str], Place] = open_place) -> None:
    """List a job's input, write its pictures down and queue what is to be done. May be run again at any time.

    A result that is there is kept, unless `overwrite`: at once where the manifest vouches for its size and settings,
    after a look into it where the manifest says nothing of how it was made or of its size. One that was made otherwise,
    or of a picture of another size in bytes, is made anew. What this job did itself and is still there is not done
    again. Of two pictures with one result the second fails, as does a folder that cannot be read.
    """
    spec = jobs.spec(id)
    source, target = place(spec.input), place(spec.output)
    there = _there(target)
    told = manifest_sizes(target, spec) if there and not spec.overwrite else {}
    with jobs.engine.connect() as connection:
        columns = (pictures.c.key, pictures.c.state, pictures.c.source_bytes, pictures.c.output_bytes)
        rows = connection.execute(sa.select(*columns).where(pictures.c.job == id))
        known = {row.key: (row.state, row.source_bytes, row.output_bytes) for row in rows}
    batch: list[dict[str, Any]] = []
    firsts: dict[str, str] = {}
    closed: dict[str, str] = {}
    for key, size in sorted(chosen(source, spec, closed)):
        if len(batch) == 5000:
            _insert(jobs, batch)
            batch = []
        output = output_key(key, spec.options.format)
        reason = _unusable(key)
        if reason is None and (first := firsts.setdefault(output, key)) != key:
            reason = f"its result would be {output}, and so would that of {first}"
        if reason is not None:
            batch.append(_refused(id, key, size, output, reason))
            continue
        state, verify = PictureState.PENDING, False
        if key in known:
            if known[key][0] == PictureState.PENDING or (known[key][1:] == (size, there.get(output))):
                continue
        elif not spec.overwrite and output in there:
            source_bytes, output_bytes = told.get(key, (size, None))
            verify = source_bytes == size and output_bytes != there[output]
            if (source_bytes, output_bytes) == (size, there[output]):
                state = PictureState.KEPT
        record = None if state is PictureState.PENDING else json.dumps(kept_record(spec, key, size, there[output]))
        kept = there[output] if state is PictureState.KEPT else None
        batch.append(_row(id, key, size, state, verify, kept, record))
    if any(key.endswith("/") for key in known):  # folders that could not be read before
        with jobs.engine.begin() as connection:
            connection.execute(sa.delete(pictures).where(pictures.c.job == id, pictures.c.key.endswith("/")))
    _insert(jobs, batch)
    _insert(jobs, [_refused(id, key, 0, key, reason) for key, reason in closed.items()])
    jobs.enqueue_chunks(id)


def kept_record(spec: JobSpec, key: str, source_bytes: int, output_bytes: int) -> dict[str, Any]:
    """The manifest's line for a picture whose result was there already."""
    output = output_key(key, spec.options.format)
    sizes = {"source_bytes": source_bytes, "output_bytes": output_bytes}
    return {"source": key, "output": output, "state": "kept", **sizes}


def _there(target: Place) -> dict[str, int]:
    try:
        return dict(target.list(refused={}))
    except FileNotFoundError:
        return {}


def _unusable(key: str) -> str | None:
    """Why a file of this name cannot be done; None where it can."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return None


def _refused(id: str, key: str, size: int, output: str, reason: str) -> dict[str, Any]:
    key, output = (each.encode("utf-8", "backslashreplace").decode() for each in (key, output))
    record = {"source": key, "output": output, "state": "failed", "source_bytes": size, "error": reason}
    return _row(id, key, size, PictureState.FAILED, False, None, json.dumps(record))


def _row(
    id: str, key: str, size: int, state: PictureState, verify: bool, output_bytes: int | None, record: str | None
) -> dict[str, Any]:
    values = {"job": id, "key": key, "source_bytes": size, "output_bytes": output_bytes, "state": int(state)}
    return {**values, "verify": verify, "record": record, "finished": time.time() if record else None}


def _insert(jobs: Jobs, batch: list[dict[str, Any]]) -> None:
    """Write rows down, in place of those of the same keys; all in one parameter, as JSON, whatever their number."""
    if batch:
        with jobs.engine.begin() as connection:
            connection.execute(_INSERT[jobs.engine.dialect.name], {"rows": json.dumps(batch)})


_COLUMNS = ("job", "key", "source_bytes", "output_bytes", "state", "verify", "record", "finished")
_TYPES = ("text", "text", "bigint", "bigint", "smallint", "boolean", "text", "double precision")
_ROWS = {
    "sqlite": f"SELECT {', '.join(f'value ->> {name!r}' for name in _COLUMNS)}, 0, 0 FROM json_each(:rows) WHERE true",
    "postgresql": f"SELECT {', '.join(_COLUMNS)}, 0, 0 FROM json_to_recordset(CAST(:rows AS json)) "
    f"AS given({', '.join(map(' '.join, zip(_COLUMNS, _TYPES, strict=True)))})",
}
_INSERT = {
    dialect: sa.text(
        f"INSERT INTO sr3_pictures ({', '.join(_COLUMNS)}, chunk, attempts) {rows} "
        "ON CONFLICT (job, key) DO UPDATE SET "
        + ", ".join(f"{name} = excluded.{name}" for name in (*_COLUMNS[2:], "chunk", "attempts"))
    )
    for dialect, rows in _ROWS.items()
}
