"""What the server and its worker processes say to each other over a pipe: plain frozen data.

To the worker go `Run` and `Cancel`; from it come `Loaded` or `LoadFailed`, then `Beat` at all times, and for each
batch `Stepped`, then `Timed`, a `Finished` for each item, and `BatchDone`; a batch that had no room is done in parts,
each with a `Timed` of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.requests import ModelInfo, Request, UsedSettings
from sr3.images import Picture


@dataclass(frozen=True)
class Item:
    """A request under its id; `watched` where somebody wants previews."""

    id: str
    request: Request
    watched: bool = False
    trace: str = ""
    """The HTTP request's id, for the log."""


@dataclass(frozen=True)
class Run:
    """To the worker: do these together; all of equal keys."""

    items: tuple[Item, ...]


@dataclass(frozen=True)
class Cancel:
    """To the worker: stop working on this item."""

    id: str


@dataclass(frozen=True)
class Loaded:
    """The cascade is ready."""

    info: ModelInfo


@dataclass(frozen=True)
class LoadFailed:
    """The cascade cannot be loaded; the process ends."""

    message: str


@dataclass(frozen=True)
class Beat:
    """The process lives. Bytes of its memory, and of the device's where it has its own."""

    memory: int
    device_memory: int = 0


@dataclass(frozen=True)
class Stepped:
    """All of a batch are so far, `new` steps further than when it was told last; pictures of those that are watched."""

    ids: tuple[str, ...]
    stage: str
    step: int
    steps: int
    new: int = 0
    previews: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """A picture, with seconds per stage and what was done."""

    picture: Picture
    seconds: dict[str, float]
    used: UsedSettings


@dataclass(frozen=True)
class Failure:
    """Why there is none. `kind`: invalid, cancelled, memory, or error (then the message is for the log alone)."""

    kind: str
    message: str
    field: str = ""
    got: Any = None


@dataclass(frozen=True)
class Timed:
    """Pictures made together took so many seconds in each stage."""

    seconds: dict[str, float]


@dataclass(frozen=True)
class Finished:
    """An item's outcome."""

    id: str
    outcome: Made | Failure


@dataclass(frozen=True)
class BatchDone:
    """The worker is idle, after so many seconds; `stopped` where all were cancelled."""

    size: int
    seconds: float
    stopped: bool = False
