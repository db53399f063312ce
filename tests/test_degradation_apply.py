"""Plans applied: deterministic, aligned, in range, and nothing is changed on the way."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degradation import PRESETS, Plan, apply_plan, crop_to_multiple, degrade, sample_plan, target
from degradation.plan import Jpeg, Resize
from degradation.resize import resize
from tests.degradation_measures import find_constants, measure_shifts, registered_shift, textured

ROOT = Path(__file__).resolve().parent.parent


@settings(max_examples=40, deadline=None)
@given(
    st.integers(16, 512),
    st.integers(16, 512),
    st.integers(0, 2**63),
    st.sampled_from([(name, scale) for name in PRESETS for scale in PRESETS[name].scales]),
)
def test_any_size_any_preset_any_plan(height, width, seed, preset_and_scale):
    preset, scale = preset_and_scale
    whole = textured(seed % 7, height, width)
    before = whole.copy()
    if height % scale or width % scale:
        with pytest.raises(ValueError, match=f"{height}×{width}"):
            degrade(whole, np.random.default_rng(seed), preset, scale)
    image = crop_to_multiple(whole, scale)
    low_res, plan = degrade(image, np.random.default_rng(seed), preset, scale)
    assert low_res.shape == (height // scale, width // scale, 3)
    assert low_res.dtype == np.float32
    assert low_res.min() >= 0 and low_res.max() <= 1 and np.isfinite(low_res).all()
    assert low_res.std() > 0
    assert np.array_equal(whole, before)
    assert np.array_equal(apply_plan(image, Plan.from_json(plan.to_json())), low_res)


@pytest.mark.parametrize("preset", PRESETS)
def test_replay_in_another_process_gives_the_same_bits(preset, tmp_path):
    image = textured(1, 96, 128)
    np.save(tmp_path / "image.npy", image)
    results, plans = [], []
    for seed in range(8):
        low_res, plan = degrade(image, np.random.default_rng(seed), preset)
        results.append(low_res)
        plans.append(plan.to_json())
    (tmp_path / "plans.txt").write_text("\n".join(plans), encoding="utf-8")
    code = (
        "import sys, numpy as np; from degradation import Plan, apply_plan; folder = sys.argv[1]\n"
        "image = np.load(folder + '/image.npy')\n"
        "plans = open(folder + '/plans.txt', encoding='utf-8').read().splitlines()\n"
        "np.save(folder + '/out.npy', [apply_plan(image, Plan.from_json(p)) for p in plans])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), np.array(results))


def test_the_number_of_threads_changes_nothing():
    image = textured(2, 640, 768)  # OpenCV starts no threads for much less
    threads = cv2.getNumThreads()
    results = []
    try:
        for count in (1, 4):
            cv2.setNumThreads(count)
            rng = np.random.default_rng(0)
            results.append([degrade(image, rng, preset)[0] for preset in ("bsr", "bsr", "bsr-plus")])
    finally:
        cv2.setNumThreads(threads)
    assert np.array_equal(*results)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_result_stays_aligned_with_its_target(preset):
    """A smaller sample of the bar in bench_degradation.py (300 plans, mean under 0.05, none over 0.6)."""
    shifts = measure_shifts(preset, [textured(seed, 512, 512) for seed in range(6)], 36)
    assert np.hypot(*shifts.mean(axis=0)) < 0.05
    assert np.median(np.hypot(*shifts.T)) < 0.1
    assert np.hypot(*shifts.T).max() < 0.6


def test_the_measure_of_alignment_would_see_a_shift():
    """Half a pixel, as an even kernel causes it, is seen: else the test above would be worth nothing."""
    image = textured(0, 512, 512)
    reference = resize(image, 128, 128)
    for shift in ((2, 0), (0, 2), (-1, 3)):  # in high-resolution pixels
        moved = np.roll(image, shift[::-1], axis=(0, 1))
        assert np.allclose(registered_shift(resize(moved, 128, 128), reference), np.divide(shift, 4), atol=0.02)
    even = cv2.blur(reference, (6, 6))
    assert np.abs(registered_shift(even, reference)).max() > 0.4


@pytest.mark.parametrize("preset", PRESETS)
def test_no_plan_gives_a_constant_image(preset):
    """A smaller sample of the bar in bench_degradation.py (20,000 plans)."""
    least, bad = find_constants(preset, 400)
    assert bad == 0 and least > 0.03


def test_tiny_sigmas_do_not_make_black_images():
    """The defect of the code in use: a kernel that underflows to zeros."""
    image = textured(3, 64, 64)
    preset = dataclasses.replace(PRESETS["bsr-light"], blur_strength=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(100):
        low_res, _ = degrade(image, rng, preset)
        assert abs(low_res.mean() - image.mean()) < 0.1


def test_memory_stays_flat():
    image = textured(4, 128, 128)
    rng = np.random.default_rng(0)
    resident = []
    for _ in range(3):
        for _ in range(150):
            degrade(image, rng, "bsr-plus")
        resident.append(psutil.Process().memory_info().rss)
    assert resident[2] - resident[1] < 16 << 20


def test_height_and_width_are_never_mixed_up():
    wide = textured(5, 64, 256)
    for preset in PRESETS:
        low_res, plan = degrade(wide, np.random.default_rng(1), preset)
        assert low_res.shape == (16, 64, 3) and plan.size == (64, 256)
    cropped = crop_to_multiple(textured(6, 70, 135), 4)
    assert cropped.shape == (68, 132, 3)
    assert np.array_equal(cropped, textured(6, 70, 135)[1:69, 1:133])
    with pytest.raises(ValueError, match="3×20"):
        crop_to_multiple(textured(0, 3, 20), 4)


def test_colours_are_never_mixed_up():
    """Every preset keeps a red picture red and a blue one blue."""
    for channel in (0, 2):
        image = np.full((64, 64, 3), 0.2, np.float32)
        image[..., channel] = 0.8
        for preset in PRESETS:
            for seed in range(10):
                mean = degrade(image, np.random.default_rng(seed), preset)[0].mean(axis=(0, 1))
                assert np.abs(mean - image[0, 0]).max() < 0.12, (preset, seed, mean)


def test_the_result_is_never_the_image_itself():
    image = textured(7, 16, 16)
    plan = Plan("nothing", 1, (16, 16), ())
    result = apply_plan(image, plan)
    assert np.array_equal(result, image) and not np.shares_memory(result, image)


def test_sharpening_belongs_to_the_target():
    image = textured(8, 64, 64)
    plan = sample_plan(
        np.random.default_rng(0),
        dataclasses.replace(PRESETS["bicubic"], sharpen_probability=1.0),
        4,
        (64, 64),
    )
    sharpened = target(image, plan)
    assert sharpened.std() > image.std()
    assert np.allclose(apply_plan(image, plan), resize(sharpened, 16, 16))
    assert target(image, dataclasses.replace(plan, sharpen=None)) is image


def test_read_only_and_strided_inputs_work():
    image = textured(9, 128, 128)[::2, ::-2]
    image.setflags(write=False)
    for preset in PRESETS:
        low_res, plan = degrade(image, np.random.default_rng(2), preset)
        assert np.array_equal(low_res, apply_plan(np.ascontiguousarray(image), plan))


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((16, 16, 3)), "float32"),
        (np.zeros((16, 16, 3), np.uint8), "to_float"),
        (np.zeros((16, 16), np.float32), "shape"),
        (np.zeros((16, 16, 4), np.float32), "shape"),
        (np.full((16, 16, 3), 1.5, np.float32), r"\[0, 1\]"),
        (np.full((16, 16, 3), np.nan, np.float32), r"\[0, 1\]"),
        ([[0.0]], "list"),
    ],
)
def test_images_that_are_none_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        degrade(image, np.random.default_rng(0), "bicubic")


def test_plans_for_other_images_are_refused():
    image = textured(0, 32, 64)
    plan = sample_plan(np.random.default_rng(0), "bsr", 4, (64, 32))
    with pytest.raises(ValueError, match=r"64×32 .* 32×64"):
        apply_plan(image, plan)
    with pytest.raises(ValueError, match="end at 5×5"):
        apply_plan(image, Plan("odd", 4, (32, 64), (Resize(5, 5), Jpeg(50))))
    with pytest.raises(ValueError, match="crop_to_multiple"):
        apply_plan(image[:30], Plan("odd", 4, (30, 64), (Resize(7, 16),)))


def test_import_loads_no_torch_and_no_scipy():
    code = (
        "import sys, degradation; from degradation import *; import degradation.preview\n"
        "assert not {'torch', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
