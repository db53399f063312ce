"""How a picture was made, as text for its file: for people and image viewers, and as JSON for programs."""

import json
from contextlib import suppress
from dataclasses import asdict

from service.pictures import read_metadata
from service.requests import GenerateRequest, Request, UsedSettings

SOFTWARE = "sr3-cascade"
LONGEST_SETTINGS = 1 << 16
"""In characters, of a file's `settings` that `inspected` reads."""


def metadata_of(request: Request, used: UsedSettings, versions: dict[str, str]) -> dict[str, str]:
    """Entries for `encode_picture`: `parameters`, as AUTOMATIC1111 writes it and image viewers read it, and
    `settings`, the same and the versions as JSON."""
    return {
        "Software": SOFTWARE,
        "parameters": parameters_text(request, used),
        "settings": json.dumps(settings_of(request, used) | {"versions": versions}, ensure_ascii=False),
    }


def inspected(data: bytes, max_pixels: int) -> bytes:
    """What a picture's file says of how it was made, as a JSON object, whose `settings` are one too.

    They are text where the file's are longer than LONGEST_SETTINGS, no JSON object, or cannot be told in JSON: anybody
    may have written them. Raises InvalidPicture, also for more than `max_pixels`.
    """
    found = read_metadata(data, max_pixels)
    text = found.get("settings", "")
    with suppress(ValueError, RecursionError):
        settings = json.loads(text) if len(text) <= LONGEST_SETTINGS else None
        if isinstance(settings, dict):
            return _encoded({**found, "settings": settings})
    return _encoded(found)


def settings_of(request: Request, used: UsedSettings) -> dict[str, object]:
    """Prompt, negative prompt, seed and the settings really used, without what does not apply."""
    words = {}
    if isinstance(request, GenerateRequest):
        words = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    done = {key: value for key, value in asdict(used).items() if value is not None}
    return words | {"seed": request.seed} | done


def parameters_text(request: Request, used: UsedSettings) -> str:
    """The prompt, a line with the negative prompt if there is one, and a line of `Key: value, …`."""
    pairs = {
        "Steps": used.steps,
        "Sampler": used.sampler,
        "CFG scale": used.guidance_scale,
        "Seed": request.seed,
        "Size": "{}x{}".format(*used.base_size),
        "Model hash": used.base_hash,
        "Model": used.base_model,
        "Hires upscale": used.upscale if used.upscale > 1 else None,
        "Hires steps": used.sr_steps,
        "Hires upscaler": used.sr_model and f"SR3 {used.sr_model}",
        "Hires upscaler hash": used.sr_hash,
        "Hires sampler": used.sr_sampler,
        "SR aug level": used.aug_level,
        "SR consistency": used.consistency,
        "SR views": used.views,
    }
    lines = []
    if isinstance(request, GenerateRequest):
        lines.append(request.prompt)
        if request.negative_prompt:
            lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def _encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:"\n') else text
