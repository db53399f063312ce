"""Presets can be changed and saved, and refuse what no plan could be drawn from."""

import dataclasses
import json

import pytest

from degradation import PRESETS, Preset
from degradation.presets import find_preset


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    assert PRESETS[name].name == name
    assert Preset.from_json(PRESETS[name].to_json()) == PRESETS[name]


def test_a_changed_preset_survives_json():
    mine = dataclasses.replace(PRESETS["bsr"], name="mine", noise_levels=(1, 50), jpeg_probability=0.5)
    assert Preset.from_json(mine.to_json()) == mine
    assert Preset.from_json('{"name": "short", "final_jpeg": false}').final_jpeg is False


def test_the_numbers_of_the_paper():
    bsr, light, plus = PRESETS["bsr"], PRESETS["bsr-light"], PRESETS["bsr-plus"]
    assert (bsr.noise_levels, light.noise_levels) == ((2, 25), (1, 2))
    assert (bsr.jpeg_qualities, light.jpeg_qualities) == ((30, 95), (80, 95))
    assert (bsr.resize_probability, light.resize_probability) == (0.75, 0.8)
    assert (bsr.camera_probability, plus.camera_probability) == (0.25, 0.1)
    assert "camera_noise" in bsr.slots and "camera_noise" not in light.slots
    assert (len(bsr.slots), len(plus.slots)) == (7, 13)
    assert bsr.slots.count("blur") == 2 and light.slots.count("blur") == 1
    assert (bsr.shuffle_probability, plus.shuffle_probability) == (1.0, 0.5)
    assert 8 in light.scales and 8 not in bsr.scales


@pytest.mark.parametrize(
    "field, value",
    [
        ("jpeg_probability", 1.2),
        ("shuffle_probability", -0.1),
        ("noise_kind_probabilities", (0.5, 0.5, 0.5)),
        ("noise_kind_probabilities", (1.5, -0.5, 0.0)),
        ("kernel_sizes", (6, 8)),
        ("kernel_sizes", (9, 7)),
        ("kernel_sizes", (7,)),
        ("jpeg_qualities", (30, 101)),
        ("jpeg_qualities", (0, 50)),
        ("blur_strength", -1.0),
        ("scales", ()),
        ("scales", (5,)),
        ("slots", ("melt",)),
        ("slots", ("final_resize", "final_resize")),
        ("interpolations", ("lanczos",)),
        ("final_interpolations", ()),
        ("jpeg_subsamplings", ("4:1:1",)),
    ],
)
def test_bad_values_are_refused_by_the_fields_name(field, value):
    with pytest.raises(ValueError, match=field.split("_")[0]):
        dataclasses.replace(PRESETS["bsr"], **{field: value})


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "{",
        '{"name": "x", "sharpness": 1}',
        '{"name": "x", "slots": "blur"}',
        '{"name": "x", "noise_levels": 3}',
        '{"name": "x", "final_jpeg": "no"}',
        '{"name": "x", "noise_levels": ["a", "b"]}',
        '{"name": "x", "jpeg_probability": "often"}',
    ],
)
def test_json_that_is_no_preset_is_refused(text):
    with pytest.raises(ValueError):
        Preset.from_json(text)


def test_presets_are_found_by_name_and_cannot_be_replaced():
    assert find_preset("bsr") is PRESETS["bsr"]
    assert find_preset(PRESETS["bsr"]) is PRESETS["bsr"]
    with pytest.raises(ValueError, match="bsr-light"):
        find_preset("bsrgan")
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["bsr"]  # type: ignore[index]
    assert json.loads(PRESETS["bsr"].to_json())["jpeg_qualities"] == [30, 95]
