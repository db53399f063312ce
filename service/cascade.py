"""From a prompt to a picture: the base model, then SR3 ×4 once or twice.

A worker process calls `load_cascade` where the device is; everyone else sees the `Cascade` protocol and plain frozen
data (`requests.py`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.describe import model_info, model_name, sampler_name
from service.draw import Painter, check_scheduler
from service.requests import (
    Cascade,
    GenerateRequest,
    GenerateResult,
    InvalidRequest,
    ModelInfo,
    NotWanted,
    UpscaleRequest,
    UsedSettings,
    as_any,
)
from service.settings import Settings
from service.steps import StepCallback, interruptible
from service.upscale import STAGES, OnStep, UpscaleOptions, Upscaler, check_room, load_upscaler, memory_errors
from sr3.images import Picture

if TYPE_CHECKING:
    import torch


def load_cascade(settings: Settings) -> Cascade:
    """Load both models onto their device. Raises what `ldm.load` and `sr3.load` raise."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's that a killed process leaves behind
    from diffusers.utils import logging as diffusers_log
    from torch import nn
    from transformers.utils import logging as transformers_log

    import ldm
    from service.steady import make_steady

    for log in (diffusers_log, transformers_log):
        log.disable_progress_bar()  # a bar for each part of each model says nothing in a log
    base = ldm.load(
        settings.base_model,
        settings.device,
        settings.dtype,
        settings.allow_download,
        settings.offload,
        settings.attention_slicing,
        settings.vae_tiling,
    )
    if settings.offload == "none":  # else it waits on the CPU, but runs elsewhere
        make_steady(*(part for part in base.components.values() if isinstance(part, nn.Module)))
    if not settings.log_prompts:
        for log in (diffusers_log, transformers_log):
            log.set_verbosity_error()  # their warnings quote what of a prompt a tokenizer cuts off
    return DiffusersCascade(base, load_upscaler(settings).pipeline, settings)


class DiffusersCascade:
    """A diffusers text-to-image pipeline `base` and an SR3 pipeline `enlarger`, ×4 at a time."""

    def __init__(self, base: Any, enlarger: Any, settings: Settings) -> None:
        self._base = base
        self._settings = settings
        self._upscaler = Upscaler(enlarger, settings)
        self._info = model_info(base, enlarger, settings)
        self._painter = Painter(base, self._info, settings)

    def info(self) -> ModelInfo:
        """See `Cascade`."""
        return self._info

    def upscale(
        self,
        pictures: Sequence[Picture],
        seeds: Sequence[int],
        options: UpscaleOptions,
        on_step: OnStep | None = None,
    ) -> list[Picture]:
        """See `Upscaler.upscale`."""
        return self._upscaler.upscale(pictures, seeds, options, on_step)

    def used(self, request: UpscaleRequest) -> UsedSettings:
        """See `Cascade`."""
        return self._upscaler.used(request)

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        on_step: OnStep | None = None,
        wanted: Callable[[int], bool] = lambda index: True,
    ) -> list[GenerateResult | Exception]:
        """See `Cascade`. The stages take child seeds 0, 1, 2 of each request's, so each has its own noise."""
        outcomes: dict[int, GenerateResult | Exception] = {}
        for index, request in enumerate(requests):
            try:
                self._painter.options([request])
                check_scheduler("sr_scheduler", request.sr_scheduler, self._info.sr_schedulers)
            except InvalidRequest as error:
                outcomes[index] = error
        alive = [index for index in range(len(requests)) if index not in outcomes]
        parts = [*self._base.components.values(), *self._upscaler.pipeline.components.values()]
        if alive:
            with memory_errors(), interruptible(on_step, parts) as tell:
                self._make(requests, alive, outcomes, lambda progress: tell(replace(progress, of=tuple(alive))), wanted)
        return [outcomes[index] for index in range(len(requests))]

    def _make(
        self,
        requests: Sequence[GenerateRequest],
        alive: list[int],
        outcomes: dict[int, GenerateResult | Exception],
        on_step: OnStep,
        wanted: Callable[[int], bool],
    ) -> None:
        """Fill `outcomes` for those at the indexes `alive`, which loses what fails or is no longer wanted."""
        chosen = [requests[index] for index in alive]
        options = self._painter.options(chosen)
        seconds: dict[str, float] = {}
        seeds = {index: np.random.SeedSequence(requests[index].seed).spawn(3) for index in alive}
        with _timed(seconds, "base"):
            drawn = self._painter.draw(options, chosen, [_generator(seeds[index][0]) for index in alive], on_step)
        pictures: dict[int, NDArray[np.uint8]] = {}
        for index, each in zip(tuple(alive), drawn, strict=True):
            if isinstance(each, Exception):
                outcomes[index] = each
                alive.remove(index)
            else:
                pictures[index] = each
        if not alive:
            return
        first, upscale = chosen[0], chosen[0].upscale
        height, width = pictures[alive[0]].shape[:2]
        for side, drawn_side in (("width", width), ("height", height)):
            if getattr(first, side) not in (None, drawn_side):
                raise InvalidRequest(side, getattr(first, side), f"the base model drew {drawn_side} in its place")
        self._check_pixels(upscale, width * upscale, height * upscale)
        used = self._used(first, options, (width, height))
        enlarger = self._upscaler.with_scheduler(first.sr_scheduler)
        check_room(enlarger, (height, width), upscale, len(alive))
        for stage, child in zip(STAGES[upscale], (1, 2), strict=False):
            for index in [index for index in alive if not wanted(index)]:
                outcomes[index] = NotWanted()
                alive.remove(index)
            if not alive:
                return
            with _timed(seconds, stage):
                generators = [_generator(seeds[index][child]) for index in alive]
                small = [pictures[index] for index in alive]
                large = self._enlarge(enlarger, small, stage, used, generators, on_step)
            pictures = dict(zip(alive, large, strict=True))
        promised = (height * upscale, width * upscale, 3)
        for index in alive:
            picture = pictures[index]
            if picture.shape != promised or picture.dtype != np.uint8:
                raise RuntimeError(f"promised uint8 {promised}, made {picture.dtype} {picture.shape}")
            outcomes[index] = GenerateResult(picture, requests[index].seed, dict(seconds), used)

    def _check_pixels(self, upscale: int, width: int, height: int) -> None:
        limit = self._settings.max_pixels
        if width * height > limit:
            raise InvalidRequest("upscale", upscale, f"{width}×{height} is over this server's {limit} pixels")

    def _enlarge(
        self,
        enlarger: Any,
        pictures: Sequence[NDArray[np.uint8]],
        stage: str,
        used: UsedSettings,
        generators: list[torch.Generator],
        on_step: OnStep,
    ) -> list[NDArray[np.uint8]]:
        """`pictures`, uint8 RGB (H, W, 3) of one size, as (4H, 4W, 3)."""
        assert used.sr_steps is not None
        output = enlarger(
            image=list(pictures),
            num_inference_steps=used.sr_steps,
            generator=generators,
            aug_level=used.aug_level,
            callback_on_step_end=StepCallback(on_step, stage, used.sr_steps, lambda: list(pictures)),
            output_type="uint8",
        )
        return [np.asarray(each) for each in output.images]

    def _used(self, request: GenerateRequest, options: dict[str, Any], base_size: tuple[int, int]) -> UsedSettings:
        level = as_any(request.aug_level, self._settings.aug_level)
        enlarging = self._used_enlarging(request.sr_steps, level, request.sr_scheduler) if request.upscale > 1 else {}
        return UsedSettings(
            base_model=model_name(self._settings.base_model),
            base_hash=self._info.base_hash,
            sampler=request.scheduler or sampler_name(self._base),
            steps=options["num_inference_steps"],
            guidance_scale=options.get("guidance_scale"),
            base_size=base_size,
            upscale=request.upscale,
            **enlarging,
        )

    def _used_enlarging(self, steps: int | None, level: float, scheduler: str | None) -> dict[str, Any]:
        return {
            "sr_model": model_name(self._settings.sr_model),
            "sr_hash": self._info.sr_hash,
            "sr_sampler": scheduler or sampler_name(self._upscaler.pipeline),
            "sr_steps": as_any(steps, self._settings.sr_steps),
            "aug_level": level,
        }


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def _generator(seed: np.random.SeedSequence) -> torch.Generator:
    import torch

    return torch.Generator("cpu").manual_seed(int(seed.generate_state(1, np.uint64)[0]))
