"""Steps in words, and words into steps."""

import numpy as np
import pytest

from degradation import PRESETS, sample_plan
from degradation.captions import FAMILY_COLOURS, describe, parse_step
from degradation.plan import (
    STEP_NAMES,
    AnisotropicBlur,
    Blur,
    CameraNoise,
    Decimate,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Resize,
    Sharpen,
)


@pytest.mark.parametrize(
    "step, family, text",
    [
        (Blur(1.314, 7), "blur", "Blur σ 1.31, 7 taps"),
        (AnisotropicBlur(2, 0.5, np.pi / 4, 9), "blur", "Blur σ 2.00 × 0.50 at 45°, 9 taps"),
        (Resize(48, 64, "area"), "size", "Resize to 64 × 48, area"),
        (Decimate(4, 1.2), "size", "Blur σ 1.20, every 4th pixel"),
        (Decimate(2, 0.3), "size", "Blur σ 0.30, every 2nd pixel"),
        (GaussianNoise(12.0, "grey"), "noise", "Noise 12/255, grey"),
        (PoissonNoise(310.4, True), "noise", "Poisson, 310 photons, grey"),
        (CameraNoise(0.0043, 1e-5), "camera", "Camera noise, shot 0.0043"),
        (Jpeg(47), "jpeg", "JPEG quality 47, 4:2:0"),
        (Sharpen(), "blur", "Sharpen 0.5, radius 51"),
    ],
)
def test_captions(step, family, text):
    assert describe(step) == (family, text)


def test_every_step_of_every_preset_has_a_caption():
    rng = np.random.default_rng(0)
    for preset in PRESETS:
        for _ in range(50):
            for step in sample_plan(rng, preset).steps:
                family, text = describe(step)
                assert family in FAMILY_COLOURS and len(text) < 60


@pytest.mark.parametrize(
    "text, step",
    [
        ("blur:sigma=2", Blur(2.0)),
        ("jpeg:quality=30", Jpeg(30)),
        ("jpeg:quality=30,subsampling=4:4:4", Jpeg(30, "4:4:4")),
        ("resize:height=64,width=96,interpolation=area", Resize(64, 96, "area")),
        ("poisson_noise:peak=100,grey=true", PoissonNoise(100.0, True)),
        ("gaussian_noise:level=10,kind=grey,seed=3", GaussianNoise(10.0, "grey", 3)),
        ("sharpen", Sharpen()),
    ],
)
def test_words_become_steps(text, step):
    assert parse_step(text) == step


@pytest.mark.parametrize(
    "text, message",
    [
        ("melt", "melt.*blur, "),
        ("", "no operation"),
        ("blur", "needs sigma"),
        ("blur:2", "key=value"),
        ("blur:sigma=soft", "soft"),
        ("blur:strength=2", "strength"),
        ("jpeg:quality=30.5", "whole number"),
        ("poisson_noise:peak=100,grey=maybe", "maybe"),
        ("gaussian_noise:level=3,mixing=1", "by hand"),
    ],
)
def test_other_words_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_step(text)


def test_every_operation_can_be_given_by_hand():
    needed = {
        "blur": "sigma=1",
        "anisotropic_blur": "sigma_x=1,sigma_y=2",
        "resize": "height=4,width=4",
        "decimate": "factor=2,sigma=1",
        "gaussian_noise": "level=3",
        "poisson_noise": "peak=50",
        "speckle_noise": "level=3",
        "camera_noise": "shot=0.01,read=0.0001",
        "jpeg": "quality=3",
        "sharpen": "weight=1",
    }
    assert set(needed) == set(STEP_NAMES)
    for name, fields in needed.items():
        assert isinstance(parse_step(f"{name}:{fields}"), STEP_NAMES[name])
