"""From a prompt to a picture: the base model, then SR3 ×4 once or twice.

The one module of the service that uses `ldm` and `sr3`, and that only when called: a worker calls
`load_cascade` where the device is, everyone else sees the `Cascade` protocol and plain frozen data.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.pictures import InvalidPicture, decode_picture, encode_picture
from service.settings import Settings
from service.upscale import OnStep, Progress, UpscaleOptions, Upscaler, load_upscaler
from sr3.images import Picture

if TYPE_CHECKING:
    import torch

__all__ = [
    "Cascade",
    "GenerateRequest",
    "GenerateResult",
    "InvalidPicture",
    "InvalidRequest",
    "Picture",
    "Progress",
    "UpscaleOptions",
    "Upscaler",
    "decode_picture",
    "encode_picture",
    "load_cascade",
    "load_upscaler",
]

# The enlargements that each `upscale` takes, by the name of what they give.
ENLARGEMENTS: dict[int, tuple[str, ...]] = {1: (), 4: ("x4",), 16: ("x4", "x16")}


BUNDLED_GUIDANCE = 4.0  # more makes the small model's colours garish


class InvalidRequest(ValueError):
    """The loaded models cannot do what `field` asks for; the message says why."""

    def __init__(self, field: str, got: object, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.got = got


@dataclass(frozen=True)
class GenerateRequest:
    """One picture to make. None takes the server's default; `upscale` is 1, 4 or 16."""

    prompt: str
    seed: int
    upscale: int = 4
    negative_prompt: str = ""
    steps: int | None = None
    guidance_scale: float | None = None
    sr_steps: int | None = None
    aug_level: float | None = None


@dataclass(frozen=True)
class UsedSettings:
    """What was really done. What does not apply is None: the `sr_…` ones where nothing was enlarged."""

    base_model: str
    sampler: str
    steps: int
    guidance_scale: float | None
    base_size: tuple[int, int]  # width, height
    upscale: int
    sr_model: str | None = None
    sr_sampler: str | None = None
    sr_steps: int | None = None
    aug_level: float | None = None


@dataclass(frozen=True)
class GenerateResult:
    """A picture, uint8 RGB (H, W, 3), with its seed, seconds per stage and the settings really used."""

    image: NDArray[np.uint8]
    seed: int
    seconds: dict[str, float]
    used: UsedSettings


class Cascade(Protocol):
    """Anything that makes a picture of a request. Used by one thread at a time."""

    def generate(self, request: GenerateRequest, on_step: OnStep | None = None) -> GenerateResult:
        """Make the picture; `on_step` is told each step and may raise, which ends the work there.

        Raises InvalidRequest for what these models cannot do.
        """
        ...

    def upscale(
        self,
        pictures: Sequence[Picture],
        seeds: Sequence[int],
        options: UpscaleOptions,
        on_step: OnStep | None = None,
    ) -> list[Picture]:
        """See `Upscaler.upscale`."""
        ...


def load_cascade(settings: Settings) -> Cascade:
    """Load both models onto their device. Raises what `ldm.load` and `sr3.load` raise."""
    from diffusers.utils.logging import disable_progress_bar as diffusers_quiet
    from transformers.utils.logging import disable_progress_bar as transformers_quiet

    import ldm
    import sr3

    diffusers_quiet()  # a bar for each part of each model says nothing in a log
    transformers_quiet()
    place = {"device": settings.device, "dtype": settings.dtype}
    base = ldm.load(settings.base_model, **place, allow_download=settings.allow_download)
    enlarger = sr3.load(settings.sr_model, **place)
    return DiffusersCascade(base, enlarger, settings)


class DiffusersCascade:
    """A diffusers text-to-image pipeline `base` and an SR3 pipeline `enlarger`, ×4 at a time."""

    def __init__(self, base: Any, enlarger: Any, settings: Settings) -> None:
        self._base = base
        self._enlarger = enlarger
        self._settings = settings
        for pipeline in (base, enlarger):
            pipeline.set_progress_bar_config(disable=True)
        self._upscaler = Upscaler(enlarger, settings)

    def upscale(
        self,
        pictures: Sequence[Picture],
        seeds: Sequence[int],
        options: UpscaleOptions,
        on_step: OnStep | None = None,
    ) -> list[Picture]:
        """See `Upscaler.upscale`."""
        return self._upscaler.upscale(pictures, seeds, options, on_step)

    def generate(self, request: GenerateRequest, on_step: OnStep | None = None) -> GenerateResult:
        """See `Cascade`. The stages take child seeds 0, 1, 2 of the request's, so each has its own noise."""
        on_step = on_step or (lambda progress: None)
        options = self._base_options(request)
        seconds: dict[str, float] = {}
        base_seed, *sr_seeds = np.random.SeedSequence(request.seed).spawn(3)
        with _timed(seconds, "base"):
            picture = self._draw(options, _generator(base_seed), on_step)
        height, width = picture.shape[:2]
        self._check_pixels(request.upscale, width * request.upscale, height * request.upscale)
        used = self._used(request, options, (width, height))
        for stage, seed in zip(ENLARGEMENTS[request.upscale], sr_seeds, strict=False):
            with _timed(seconds, stage):
                picture = self._enlarge(picture, stage, used, _generator(seed), on_step)
        promised = (height * request.upscale, width * request.upscale, 3)
        if picture.shape != promised or picture.dtype != np.uint8:
            raise RuntimeError(f"promised uint8 {promised}, made {picture.dtype} {picture.shape}")
        return GenerateResult(image=picture, seed=request.seed, seconds=seconds, used=used)

    def _base_options(self, request: GenerateRequest) -> dict[str, Any]:
        """The base pipeline's arguments; InvalidRequest for those that it does not take."""
        takes = inspect.signature(self._base.__call__).parameters
        options: dict[str, Any] = {
            "prompt": request.prompt,
            "num_inference_steps": _first(request.steps, self._settings.base_steps),
        }
        self._check_tokens("prompt", request.prompt)
        if request.negative_prompt:
            if "negative_prompt" not in takes:
                raise InvalidRequest("negative_prompt", request.negative_prompt, "the base model takes none")
            self._check_tokens("negative_prompt", request.negative_prompt)
            options["negative_prompt"] = request.negative_prompt
        if "guidance_scale" in takes:
            own = BUNDLED_GUIDANCE if self._settings.base_model is None else takes["guidance_scale"].default
            default = _first(self._settings.guidance_scale, own)
            options["guidance_scale"] = _first(request.guidance_scale, default)
        elif request.guidance_scale is not None:
            raise InvalidRequest("guidance_scale", request.guidance_scale, "the base model takes none")
        return options

    def _check_tokens(self, field: str, text: str) -> None:
        """InvalidRequest where every tokenizer of the base model would cut the text short."""
        parts = self._base.components.items()
        tokenizers = [part for name, part in parts if name.startswith("tokenizer") and part is not None]
        counts = [(len(each(text, verbose=False).input_ids), each.model_max_length) for each in tokenizers]
        if counts and all(tokens > limit for tokens, limit in counts):
            tokens, limit = max(counts, key=lambda count: count[1])
            raise InvalidRequest(field, text, f"{tokens} tokens; the base model reads at most {limit}")

    def _check_pixels(self, upscale: int, width: int, height: int) -> None:
        limit = self._settings.max_pixels
        if width * height > limit:
            raise InvalidRequest("upscale", upscale, f"{width}×{height} is over this server's {limit} pixels")

    def _draw(self, options: dict[str, Any], generator: torch.Generator, on_step: OnStep) -> NDArray[np.uint8]:
        """The base picture, uint8 RGB (H, W, 3)."""
        from sr3.images import to_uint8

        tell = _step_callback(on_step, "base", options["num_inference_steps"])
        output = self._base(**options, generator=generator, output_type="pt", callback_on_step_end=tell)
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise InvalidRequest("prompt", options["prompt"], "the base model's safety checker refused it")
        if not output.images.isfinite().all():
            raise RuntimeError("the base model made values that are not finite; try SERVICE_DTYPE=float32")
        return to_uint8(output.images * 2 - 1)[0]

    def _enlarge(
        self,
        picture: NDArray[np.uint8],
        stage: str,
        used: UsedSettings,
        generator: torch.Generator,
        on_step: OnStep,
    ) -> NDArray[np.uint8]:
        """`picture`, uint8 RGB (H, W, 3), as (4H, 4W, 3)."""
        assert used.sr_steps is not None
        output = self._enlarger(
            image=picture,
            num_inference_steps=used.sr_steps,
            generator=generator,
            aug_level=used.aug_level,
            callback_on_step_end=_step_callback(on_step, stage, used.sr_steps),
            output_type="uint8",
        )
        return np.asarray(output.images[0])

    def _used(self, request: GenerateRequest, options: dict[str, Any], base_size: tuple[int, int]) -> UsedSettings:
        enlarged = request.upscale > 1
        return UsedSettings(
            base_model=_model_name(self._settings.base_model),
            sampler=_sampler_name(self._base),
            steps=options["num_inference_steps"],
            guidance_scale=options.get("guidance_scale"),
            base_size=base_size,
            upscale=request.upscale,
            sr_model=_model_name(self._settings.sr_model) if enlarged else None,
            sr_sampler=_sampler_name(self._enlarger) if enlarged else None,
            sr_steps=_first(request.sr_steps, self._settings.sr_steps) if enlarged else None,
            aug_level=_first(request.aug_level, self._settings.aug_level) if enlarged else None,
        )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def _step_callback(on_step: OnStep, stage: str, steps: int) -> Callable[..., dict[str, Any]]:
    """Announce the stage, and return the callback that tells `on_step` of each of its steps."""
    on_step(Progress(stage, 0, steps))

    def tell(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        on_step(Progress(stage, step + 1, steps))
        return values

    return tell


def _generator(seed: np.random.SeedSequence) -> torch.Generator:
    import torch

    return torch.Generator("cpu").manual_seed(int(seed.generate_state(1, np.uint64)[0]))


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def _model_name(model: str | None) -> str:
    """A model's name for others to read: a hub id as it is, of a directory only the last part."""
    if model is None:
        return "bundled"
    return Path(model).resolve().name if Path(model).is_dir() else model


def _sampler_name(pipeline: Any) -> str:
    """The sampler's name as the field says it: "DDIM" for a DDIMScheduler."""
    return type(pipeline.scheduler).__name__.removesuffix("Scheduler")
