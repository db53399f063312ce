"""Enlarging pictures with SR3: what `POST /upscale`, the batch jobs and the second stage of `/generate` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sr3.images import Picture

if TYPE_CHECKING:
    from service.requests import UpscaleRequest, UsedSettings
    from service.settings import Settings

# The enlargements that each `upscale` takes, by the name of what they give.
STAGES: dict[int, tuple[str, ...]] = {1: (), 4: ("x4",), 16: ("x4", "x16")}


@dataclass(frozen=True)
class Progress:
    """`step` of `steps` of a stage ("base", "x4", "x16") is done; 0 when the stage begins."""

    stage: str
    step: int
    steps: int
    preview: Callable[[], list[np.ndarray]] | None = field(default=None, compare=False)
    """What makes a small picture of each item as far as it is, uint8 RGB (H, W, 3)."""
    of: tuple[int, ...] | None = field(default=None, compare=False)
    """Which items of the batch are still worked on; None for all."""


OnStep = Callable[[Progress], None]


@dataclass(frozen=True)
class UpscaleOptions:
    """How to enlarge. None takes the server's default, or the model's own."""

    factor: int = 4
    """4 or 16."""
    steps: int | None = None
    """0 gives the faithful picture; more add texture."""
    scheduler: str | None = None
    """One of `sr3.schedulers.SCHEDULERS`."""
    aug_level: float | None = None
    """At least 0 and less than 1; None is 0, what suits a picture that is not generated."""
    consistency: int | None = None
    """How many times the result is made to reduce to the picture again; None never for a lossy file."""
    views: int = 1
    """1 to 8: of how many views of the picture the estimate is the mean (test-time augmentation)."""
    format: str | None = None
    """PNG, JPEG, WEBP or TIFF; None keeps the file's own where it can be written, else PNG."""
    quality: int = 95
    """Of JPEG and WebP."""

    def for_picture(self, picture: Picture) -> UpscaleOptions:
        """With the consistency that suits the picture's file where none was asked for."""
        return replace(self, consistency=picture.consistency(self.consistency))


class Upscaler:
    """An SR3 pipeline, ×4 at a time. Used by one thread."""

    def __init__(self, pipeline: Any, settings: Settings) -> None:
        self.pipeline = pipeline
        self._settings = settings
        pipeline.set_progress_bar_config(disable=True)

    def upscale(
        self,
        pictures: Sequence[Picture],
        seeds: Sequence[int],
        options: UpscaleOptions,
        on_step: OnStep | None = None,
    ) -> list[Picture]:
        """Pictures of one size, number of channels and depth, enlarged together; each is what its seed gives alone, on
        a CPU to the last bit, elsewhere within about two levels of 255.

        `on_step` is told of each evaluation of a network, again before each block of one and after each
        back-projection, and may raise, which ends the work there. Raises ValueError for unequal pictures and what the
        model does not take, OutOfMemory where there is no room for so many.
        """
        from service.steps import interruptible
        from sr3.enlarge import enlarge_batch, evaluations

        steps = self._settings.sr_steps if options.steps is None else options.steps
        pipeline = self.with_scheduler(options.scheduler)
        totals = evaluations(pipeline, pictures[0], options.factor, steps)
        with memory_errors(), interruptible(on_step, [pipeline, *pipeline.components.values()]) as tell:
            check_room(pipeline, pictures[0].pixels.shape[:2], options.factor, len(pictures))
            return enlarge_batch(
                pipeline,
                pictures,
                seeds,
                options.factor,
                steps,
                options.aug_level or 0.0,
                options.consistency,
                on_tile=tile_callback(tell, STAGES[options.factor], totals),
                views=options.views,
            )

    @property
    def on_cpu(self) -> bool:
        """Whether it computes on the processor."""
        return bool(self.pipeline.device.type == "cpu")

    def metadata(self, picture: Picture, seed: int, options: UpscaleOptions) -> dict[str, str]:
        """What the file of a result says of how it was made, the same as `POST /upscale` writes."""
        from service.metadata import metadata_of
        from service.requests import UpscaleRequest

        request = UpscaleRequest(picture, seed, options)
        return metadata_of(request, self.used(request), self._versions)

    def used(self, request: UpscaleRequest) -> UsedSettings:
        """What `upscale` does for this request."""
        from service.describe import model_name, sampler_name
        from service.requests import UsedSettings

        options = request.options
        height, width = request.picture.pixels.shape[:2]
        return UsedSettings(
            base_model=None,
            sampler=None,
            steps=None,
            guidance_scale=None,
            base_size=(width, height),
            upscale=options.factor,
            sr_model=model_name(self._settings.sr_model),
            sr_hash=self._hash,
            sr_sampler=options.scheduler or sampler_name(self.pipeline),
            sr_steps=self._settings.sr_steps if options.steps is None else options.steps,
            aug_level=options.aug_level or 0.0,
            consistency=options.consistency,
            views=options.views if options.views > 1 else None,
        )

    @cached_property
    def _hash(self) -> str | None:
        from service.describe import sr_hash

        return sr_hash(self._settings)

    @cached_property
    def _versions(self) -> dict[str, str]:
        from service.describe import versions

        return versions()

    def with_scheduler(self, name: str | None) -> Any:
        """The pipeline with this scheduler; its own for None."""
        from sr3.schedulers import with_scheduler

        return self.pipeline if name is None else with_scheduler(self.pipeline, name)


def check_room(pipeline: Any, size: tuple[int, ...], factor: int, count: int) -> None:
    """OutOfMemory where so many pictures of this (height, width) would be cut into smaller pieces than one of them
    alone: that would show in their last bits."""
    from service.requests import OutOfMemory

    height, width = size
    for scale in (1, 4)[: len(STAGES[factor])]:
        sides = height * scale, width * scale
        if count > 1 and pipeline.plan(*sides, count) != pipeline.plan(*sides):
            raise OutOfMemory(f"{count} pictures of {sides[1]}x{sides[0]} have no room for the pieces of one alone")


@contextmanager
def memory_errors() -> Iterator[None]:
    """OutOfMemory for what torch and SR3 say where memory ran out or would; CUDA's cache is given back first."""
    import torch

    from service.requests import OutOfMemory
    from sr3.memory import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError, ValueError) as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise OutOfMemory((str(error) or "out of memory").splitlines()[0]) from None


def load_upscaler(settings: Settings) -> Upscaler:
    """Load the SR3 model alone onto its device. Raises what `sr3.load` raises."""
    from diffusers.utils.logging import disable_progress_bar

    import sr3
    from service.steady import make_steady

    disable_progress_bar()  # one for each part of the model says nothing in a log
    pipeline = sr3.load(settings.sr_model, device=settings.device, dtype=settings.dtype)
    make_steady(pipeline.encoder, pipeline.unet)
    return Upscaler(pipeline, settings)


def tile_callback(on_step: OnStep, stages: Sequence[str], totals: Sequence[int]) -> Callable[[], None]:
    """Announce the first stage, and return the callback that tells `on_step` of each evaluation in turn: there are more
    than `totals` where memory is short and a picture is cut."""
    at, done = 0, 0
    on_step(Progress(stages[0], 0, totals[0]))

    def tell() -> None:
        nonlocal at, done
        done += 1
        on_step(Progress(stages[at], min(done, totals[at]), totals[at]))
        if done == totals[at] and at + 1 < len(stages):
            at, done = at + 1, 0
            on_step(Progress(stages[at], 0, totals[at]))

    return tell
