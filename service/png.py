"""A result as PNG bytes, with how it was made in the PNG's text."""

import io
import json
from dataclasses import asdict

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.cascade import GenerateRequest, GenerateResult


def encode_png(request: GenerateRequest, result: GenerateResult) -> bytes:
    """PNG bytes of `result.image`, the same for the same picture and settings.

    Text entries: `parameters`, as AUTOMATIC1111 writes it and image viewers read it, and `settings`,
    the same as JSON for programs.
    """
    info = PngInfo()
    info.add_text("Software", "open super-resolution cascade")
    info.add_text("parameters", parameters_text(request, result))
    info.add_text("settings", settings_json(request, result))
    stream = io.BytesIO()
    Image.fromarray(result.image).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def parameters_text(request: GenerateRequest, result: GenerateResult) -> str:
    """The prompt, a line with the negative prompt if there is one, and a line of `Key: value, …`."""
    used = result.used
    pairs = {
        "Steps": used.steps,
        "Sampler": used.sampler,
        "CFG scale": used.guidance_scale,
        "Seed": result.seed,
        "Size": "{}x{}".format(*used.base_size),
        "Model": used.base_model,
        "Hires upscale": used.upscale if used.upscale > 1 else None,
        "Hires steps": used.sr_steps,
        "Hires upscaler": used.sr_model and f"SR3 {used.sr_model}",
        "Hires sampler": used.sr_sampler,
        "SR aug level": used.aug_level,
    }
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines)


def settings_json(request: GenerateRequest, result: GenerateResult) -> str:
    """Prompt, negative prompt, seed and the settings really used, as one JSON object."""
    settings = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": result.seed,
        **asdict(result.used),
    }
    return json.dumps(settings, ensure_ascii=False)


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:"\n') else text
