"""The first stage of the cascade: what the base model takes, and its pictures."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.requests import GenerateRequest, InvalidRequest, ModelInfo, as_any
from service.settings import Settings
from service.steps import StepCallback
from service.upscale import OnStep

if TYPE_CHECKING:
    import torch


class Painter:
    """A diffusers text-to-image pipeline. Used by one thread."""

    def __init__(self, pipeline: Any, info: ModelInfo, settings: Settings) -> None:
        from ldm.loading import own_guidance

        self._pipeline, self._info, self._settings = pipeline, info, settings
        self._guidance = own_guidance(pipeline)
        pipeline.set_progress_bar_config(disable=True)

    def options(self, requests: Sequence[GenerateRequest]) -> dict[str, Any]:
        """The pipeline's arguments for requests of equal keys; InvalidRequest for what the model does not take."""
        from ldm.loading import step_options
        from ldm.schedulers import most_steps, with_scheduler

        takes = inspect.signature(self._pipeline.__call__).parameters
        first = requests[0]
        options: dict[str, Any] = {
            "prompt": [request.prompt for request in requests],
            **step_options(self._pipeline, as_any(first.steps, self._settings.base_steps)),
        }
        for request in requests:
            self._check_tokens("prompt", request.prompt)
        if first.negative_prompt:
            if "negative_prompt" not in takes:
                raise InvalidRequest("negative_prompt", first.negative_prompt, "the base model takes none")
            for request in requests:
                self._check_tokens("negative_prompt", request.negative_prompt)
            options["negative_prompt"] = [request.negative_prompt for request in requests]
        if "guidance_scale" in takes:
            default = as_any(self._settings.guidance_scale, self._guidance)
            options["guidance_scale"] = as_any(first.guidance_scale, default)
        elif first.guidance_scale is not None:
            raise InvalidRequest("guidance_scale", first.guidance_scale, "the base model takes none")
        check_scheduler("scheduler", first.scheduler, self._info.schedulers)
        most = most_steps(with_scheduler(self._pipeline, first.scheduler))
        if most is not None and options["num_inference_steps"] > most:
            raise InvalidRequest("steps", options["num_inference_steps"], f"the base model takes at most {most}")
        multiple = self._info.size_multiple
        for side in ("width", "height"):
            wanted = getattr(first, side)
            if wanted is not None:
                if multiple is None or wanted % multiple:
                    takes_what = f"takes multiples of {multiple}" if multiple else "takes no size"
                    raise InvalidRequest(side, wanted, f"the base model {takes_what}")
                options[side] = wanted
        return options

    def draw(
        self,
        options: dict[str, Any],
        requests: Sequence[GenerateRequest],
        generators: list[torch.Generator],
        on_step: OnStep,
    ) -> list[NDArray[np.uint8] | Exception]:
        """Pictures of requests of equal keys with what `options` gave for them, uint8 RGB (H, W, 3), or why one was not
        made."""
        from ldm.schedulers import with_scheduler
        from sr3.images import to_uint8

        pipeline = with_scheduler(self._pipeline, requests[0].scheduler)  # a new one; of its own kind for None
        size = (options.get("height", self._info.height), options.get("width", self._info.width))
        tell = StepCallback(on_step, "base", options["num_inference_steps"], size=size)
        listening = tell.listening(pipeline)
        try:
            output = pipeline(**options, **listening, generator=generators, output_type="pt")
        except BaseException:
            pipeline.maybe_free_model_hooks()  # an offloaded network would stay on the device, beside the next one
            raise
        flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(requests)
        outcomes: list[NDArray[np.uint8] | Exception] = []
        for image, unsafe, request in zip(output.images, flagged, requests, strict=True):
            if unsafe:
                message = "the base model's safety checker refused it"
                outcomes.append(InvalidRequest("prompt", request.prompt, message))
            elif not image.isfinite().all():
                outcomes.append(
                    RuntimeError("the base model made values that are not finite; try SERVICE_DTYPE=float32")
                )
            else:
                outcomes.append(to_uint8(image[None] * 2 - 1)[0])
        return outcomes

    def _check_tokens(self, field: str, text: str) -> None:
        """InvalidRequest where the base model would cut the text short for every tokenizer that it has."""
        parts = self._pipeline.components.items()
        tokenizers = [part for name, part in parts if name.startswith("tokenizer") and part is not None]
        takes = inspect.signature(self._pipeline.__call__).parameters
        most = takes["max_sequence_length"].default if "max_sequence_length" in takes else sys.maxsize
        counts = [(len(each(text, verbose=False).input_ids), min(each.model_max_length, most)) for each in tokenizers]
        if counts and all(tokens > limit for tokens, limit in counts):
            tokens, limit = max(counts, key=lambda count: count[1])
            raise InvalidRequest(field, text, f"{tokens} tokens; the base model reads at most {limit}")


def check_scheduler(field: str, name: str | None, known: Sequence[str]) -> None:
    """InvalidRequest where the scheduler that `field` names is not one of those."""
    if name is not None and name.lower() not in {each.lower() for each in known}:
        raise InvalidRequest(field, name, f"this model takes {', '.join(known) or 'its own alone'}")
