"""What HTTP and the worker process say to each other about pictures: plain frozen data, and the `Cascade` protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.upscale import OnStep, UpscaleOptions
from sr3.images import Picture


class InvalidRequest(ValueError):
    """The loaded models cannot do what `field` asks for; the message says why."""

    def __init__(self, field: str, got: object, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.got = got


class OutOfMemory(RuntimeError):
    """The device has no room for this batch; a smaller one may fit."""


class NotWanted(Exception):
    """The picture was cancelled on its way."""


@dataclass(frozen=True)
class GenerateRequest:
    """One picture to make. None takes the server's default; `upscale` is 1, 4 or 16; sizes are the base picture's."""

    prompt: str
    seed: int
    upscale: int = 4
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    width: int | None = None
    height: int | None = None
    sr_steps: int | None = None
    sr_scheduler: str | None = None
    aug_level: float | None = None

    def key(self) -> object:
        """Requests of equal keys can share a batch: all is equal but the words and the seed."""
        return replace(self, prompt="", seed=0, negative_prompt="given" if self.negative_prompt else "")


@dataclass(frozen=True)
class UpscaleRequest:
    """One picture to enlarge."""

    picture: Picture
    seed: int
    options: UpscaleOptions = field(default_factory=UpscaleOptions)

    def key(self) -> object:
        """See `GenerateRequest.key`: equal size, channels, depth and options."""
        pixels = self.picture.pixels
        return pixels.shape, pixels.dtype.str, replace(self.options, format=None, quality=95)


Request = GenerateRequest | UpscaleRequest


@dataclass(frozen=True)
class UsedSettings:
    """What was really done. What does not apply is None: the `sr_…` ones where nothing was enlarged."""

    base_model: str | None
    sampler: str | None
    steps: int | None
    guidance_scale: float | None
    base_size: tuple[int, int]  # width, height
    upscale: int
    sr_model: str | None = None
    sr_sampler: str | None = None
    sr_steps: int | None = None
    aug_level: float | None = None
    consistency: int | None = None
    views: int | None = None
    base_hash: str | None = None
    sr_hash: str | None = None


@dataclass(frozen=True)
class GenerateResult:
    """A picture, uint8 RGB (H, W, 3), with its seed, seconds per stage and the settings really used."""

    image: NDArray[np.uint8]
    seed: int
    seconds: dict[str, float]
    used: UsedSettings


@dataclass(frozen=True)
class ModelInfo:
    """What the loaded models are and take, for the routes, the page and the metadata."""

    base_model: str = "none"
    sr_model: str = "none"
    base_hash: str | None = None
    sr_hash: str | None = None
    width: int = 64
    """Of the base picture unless a request names another."""
    height: int = 64
    size_multiple: int | None = 8
    """What width and height must be multiples of; None where the base model takes no size."""
    sampler: str = ""
    sr_sampler: str = ""
    schedulers: tuple[str, ...] = ()
    sr_schedulers: tuple[str, ...] = ()
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)


class Cascade(Protocol):
    """Anything that makes pictures. Used by one thread of one process; requests of one call have equal keys."""

    def info(self) -> ModelInfo:
        """What the models are."""
        ...

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        on_step: OnStep | None = None,
        wanted: Callable[[int], bool] = lambda index: True,
    ) -> list[GenerateResult | Exception]:
        """Make the pictures together; an exception stands for one that failed alone, InvalidRequest for what these
        models cannot do. `on_step` is told each step, and the last again before each block of a network; it may raise,
        which ends the work there. A picture whose index is no longer `wanted` is left out from the next stage on, and
        NotWanted stands for it.

        Raises OutOfMemory where the device has no room for so many.
        """
        ...

    def upscale(
        self,
        pictures: Sequence[Picture],
        seeds: Sequence[int],
        options: UpscaleOptions,
        on_step: OnStep | None = None,
    ) -> list[Picture]:
        """See `Upscaler.upscale`. Raises OutOfMemory as `generate` does."""
        ...

    def used(self, request: UpscaleRequest) -> UsedSettings:
        """What `upscale` does for this request."""
        ...


def as_any(value: Any, default: Any) -> Any:
    """`value`, or the default where it is None."""
    return default if value is None else value
