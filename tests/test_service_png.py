"""A picture's text, read the way that image viewers read it."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from service.cascade import GenerateRequest, GenerateResult, UsedSettings
from service.png import encode_png, parameters_text

# How AUTOMATIC1111's reader finds the pairs of the last line.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
USED = UsedSettings("bundled", "DDIM", 20, 5.0, (2, 1), 4, "bundled", "DDPM", 4, 0.02)


def result(used: UsedSettings = USED) -> GenerateResult:
    picture = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    return GenerateResult(picture, seed=7, seconds={"base": 1.0}, used=used)


def test_pixels_and_text_survive() -> None:
    made = Image.open(io.BytesIO(encode_png(GenerateRequest("🍎 红", 7, negative_prompt="b"), result())))
    assert np.array_equal(np.asarray(made), result().image)
    assert json.loads(made.info["settings"]) == {
        "prompt": "🍎 红",
        "negative_prompt": "b",
        "seed": 7,
        "base_model": "bundled",
        "sampler": "DDIM",
        "steps": 20,
        "guidance_scale": 5.0,
        "base_size": [2, 1],
        "upscale": 4,
        "sr_model": "bundled",
        "sr_sampler": "DDPM",
        "sr_steps": 4,
        "aug_level": 0.02,
    }


def test_parameters_read_as_a_viewer_reads_them() -> None:
    text = parameters_text(GenerateRequest("a cat, sitting: here\non two lines", 7, negative_prompt="x, y"), result())
    *lines, last = text.split("\n")
    assert lines == ["a cat, sitting: here", "on two lines", "Negative prompt: x, y"]
    assert dict(PAIR.findall(last)) == {
        "Steps": "20",
        "Sampler": "DDIM",
        "CFG scale": "5.0",
        "Seed": "7",
        "Size": "2x1",
        "Model": "bundled",
        "Hires upscale": "4",
        "Hires steps": "4",
        "Hires upscaler": "SR3 bundled",
        "Hires sampler": "DDPM",
        "SR aug level": "0.02",
    }


def test_what_was_not_done_is_not_written() -> None:
    base_only = UsedSettings("a, b: c", "Euler", 9, None, (4, 2), 1)
    text = parameters_text(GenerateRequest("p", 7, upscale=1), result(base_only))
    assert text == 'p\nSteps: 9, Sampler: Euler, Seed: 7, Size: 4x2, Model: "a, b: c"'
    assert dict(PAIR.findall(text.split("\n")[1]))["Model"] == '"a, b: c"'


@pytest.mark.parametrize("seconds", [{"base": 1.0}, {"base": 2.0}])
def test_time_taken_does_not_change_the_bytes(seconds: dict[str, float]) -> None:
    slower = GenerateResult(result().image, 7, seconds, USED)
    assert encode_png(GenerateRequest("a", 7), slower) == encode_png(GenerateRequest("a", 7), result())
