"""The plans file: which part of which picture was degraded, and how; enough to do it again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from degradation.images import read_image
from degradation.plan import Plan, Step, step_from_dict, step_to_dict


@dataclass(frozen=True)
class Source:
    """A part of a picture: the file and its SHA-256, the longest side to which the whole is shrunk
    first (0: it is not), and the box (top, left, height, width) that is cut from that."""

    path: str
    sha256: str
    max_side: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Record:
    """A source with the plans drawn for it, or with the operations given by hand (then no plans)."""

    source: Source
    plans: tuple[Plan, ...] = ()
    by_hand: tuple[Step, ...] = ()


def choose_source(path: Path, box_size: tuple[int, int], max_side: int, multiple: int = 1) -> tuple[Source, np.ndarray]:
    """The part of a picture to show, and the whole at the size from which it is cut.

    The whole is shrunk until no side is over ``max_side`` (0: never). The box is the one with the
    most detail among those of ``box_size`` (height, width; 0: everything there is), cut to what there
    is and to multiples of ``multiple``. Raises ValueError for a picture that cannot be read or is
    smaller than that.
    """
    image = read_image(path)
    longest = max(image.shape[:2])
    if max_side and longest > max_side:
        image = _shrink(image, max_side / longest)
    height, width = (
        min(have, wanted or have) // multiple * multiple for have, wanted in zip(image.shape[:2], box_size, strict=True)
    )
    if not (height and width):
        raise ValueError(f"{path}: {image.shape[1]} × {image.shape[0]} pixels cannot be made {multiple} times smaller")
    top, left = _most_detailed(image, height, width)
    return Source(str(path), file_hash(path), max_side, (top, left, height, width)), image


def reopen(source: Source, beside: Path) -> np.ndarray:
    """The whole picture of a recorded source, at the size from which its box is cut.

    A relative path is looked up here, then in the folder ``beside``. Raises ValueError if the
    picture is missing or has changed.
    """
    path = Path(source.path)
    if not path.exists() and (beside / path).exists():
        path = beside / path
    image = read_image(path)
    if file_hash(path) != source.sha256:
        raise ValueError(f"{path}: it has changed since the plans were drawn; name it to use it all the same")
    longest = max(image.shape[:2])
    if source.max_side and longest > source.max_side:
        image = _shrink(image, source.max_side / longest)
    top, left, height, width = source.box
    if top + height > image.shape[0] or left + width > image.shape[1]:
        raise ValueError(f"{path}: the recorded box {source.box} lies outside of it")
    return image


def cut(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The box (top, left, height, width) of the image, as an array of its own."""
    top, left, height, width = box
    return image[top : top + height, left : left + width].copy()


def write_records(path: Path, records: list[Record]) -> None:
    """The plans file, as JSON, written at once or not at all."""
    images = []
    for record in records:
        entry: dict[str, Any] = {"source": dataclasses.asdict(record.source)}
        if record.by_hand:
            entry["by_hand"] = [step_to_dict(step) for step in record.by_hand]
        else:
            entry["plans"] = [plan.to_dict() for plan in record.plans]
        images.append(entry)
    text = json.dumps({"made_by": "degradation.preview", "version": 1, "images": images}, indent=1)
    write_bytes(path, text.encode() + b"\n")


def read_records(path: Path) -> list[Record]:
    """What ``write_records`` wrote. Raises ValueError, naming the file, for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("version") != 1 or not data.get("images"):
            raise ValueError("not a plans file of version 1")
        return [_record(entry) for entry in data["images"]]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a plans file: {error}") from error


def _record(entry: dict[str, Any]) -> Record:
    source = Source(**{**entry["source"], "box": tuple(entry["source"]["box"])})
    numbers = (source.max_side, *source.box)
    if len(numbers) != 5 or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"the size or box of {source.path} is not made of whole numbers")
    plans = tuple(Plan.from_dict(plan) for plan in entry.get("plans", []))
    return Record(source, plans, tuple(step_from_dict(step) for step in entry.get("by_hand", [])))


def write_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary name beside the file, then rename. Raises ValueError where that fails."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # a name of its own may be as long as names get
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from error


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _shrink(image: np.ndarray, ratio: float) -> np.ndarray:
    height, width = (max(1, round(side * ratio)) for side in image.shape[:2])
    shrunk = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.clip(shrunk, 0, 1, out=shrunk)


def _most_detailed(image: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """Top and left of the height × width box with the largest mean gradient, the middle favoured."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1.5)
    gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    sums = cv2.integral(np.minimum(gradient, 0.5))  # one hard edge is not detail
    rows, columns = image.shape[0] - height + 1, image.shape[1] - width + 1
    inside = sums[height:, width:] - sums[:rows, width:] - sums[height:, :columns] + sums[:rows, :columns]
    off_y = np.abs(np.linspace(-1, 1, rows)) if rows > 1 else np.zeros(1)
    off_x = np.abs(np.linspace(-1, 1, columns)) if columns > 1 else np.zeros(1)
    score = inside * (1 - 0.15 * (off_y[:, None] ** 2 + off_x[None, :] ** 2))
    top, left = np.unravel_index(int(score.argmax()), score.shape)
    return int(top), int(left)
