"""How far a network is, told from within diffusers' pipelines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.upscale import OnStep, Progress


@contextmanager
def interruptible(on_step: OnStep | None, parts: Iterable[object]) -> Iterator[OnStep]:
    """What to tell of progress while the block runs: `on_step` hears it, and the last of it again before each network
    among `parts` and each of a network's blocks, and after each pass of an SR3 pipeline among them. It may raise, which
    ends the work there."""
    from torch import nn

    last: Progress | None = None

    def tell(progress: Progress) -> None:
        nonlocal last
        last = progress
        if on_step is not None:
            on_step(progress)

    def look(*call: object) -> None:
        if on_step is not None and last is not None:
            on_step(last)

    listened = list(parts) if on_step is not None else []
    networks = [part for part in listened if isinstance(part, nn.Module)]
    passing: list[Any] = [part for part in listened if hasattr(part, "on_pass")]
    hooks = [block.register_forward_pre_hook(look) for network in networks for block in _blocks(network)]
    before = [part.on_pass for part in passing]
    for part in passing:
        part.on_pass = look
    try:
        yield tell
    finally:
        for part, own in zip(passing, before, strict=True):
            part.on_pass = own
        for hook in hooks:
            hook.remove()


def _blocks(network: Any) -> list[Any]:
    """The network, and what stands in its lists and is made of layers."""
    from torch import nn

    lists = [part for part in network.modules() if isinstance(part, nn.ModuleList | nn.Sequential)]
    return [network, *(block for each in lists for block in each if any(block.children()))]


class StepCallback:
    """Announces a stage; then a callback of diffusers' that tells `on_step`, which may raise, of each of its steps.

    `preview` makes small pictures; without it they are made of the latents, `size` being the picture's height and
    width.
    """

    def __init__(
        self,
        on_step: OnStep,
        stage: str,
        steps: int,
        preview: Callable[[], list[NDArray[np.uint8]]] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self._on_step, self._preview, self._size = on_step, preview, size
        self._last = Progress(stage, 0, steps, preview)
        on_step(self._last)

    def __call__(self, pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Step `step`, counted from 0, is done; some schedulers take more than they were asked for."""
        preview, steps = self._preview or latent_preview(pipeline, values, self._size), self._last.steps
        self._last = Progress(self._last.stage, min(step + 1, steps), steps, preview)
        self._on_step(self._last)
        return values

    def listening(self, pipeline: Any) -> dict[str, Any]:
        """The argument that has a pipeline call this after each step. One that takes none (PixArt's) is listened to
        at its scheduler, which must be this call's own."""
        if "callback_on_step_end" in inspect.signature(pipeline.__call__).parameters:
            return {"callback_on_step_end": self}
        scheduler, calls = pipeline.scheduler, 0
        step = scheduler.step

        @functools.wraps(step)
        def telling(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            result = step(*arguments, **options)
            calls += 1
            done = calls * self._last.steps // len(scheduler.timesteps)  # some evaluate twice a step
            self(pipeline, done - 1, None, {"latents": result[0]})
            return result

        scheduler.step = telling
        return {}


def latent_preview(
    pipeline: Any, values: dict[str, Any], size: tuple[int, int] | None
) -> Callable[[], list[NDArray[np.uint8]]] | None:
    """What would make small pictures of the latents of this step, for those who look; `size`: see `ldm.preview`."""
    latents = values.get("latents")
    if not hasattr(pipeline, "vae") or latents is None:
        return None

    def decode() -> list[NDArray[np.uint8]]:
        from ldm.preview import preview

        return list(preview(pipeline, latents, size))

    return decode
