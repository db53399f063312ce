"""What is drawn follows the table: frequencies, ranges, order."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from degradation import PRESETS, sample_plan
from degradation.plan import (
    AnisotropicBlur,
    Blur,
    CameraNoise,
    Decimate,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Resize,
    Sharpen,
    SpeckleNoise,
    step_name,
)

MANY = 4000


def draw(preset, count=MANY, scale=4, size=(256, 128), seed=0):
    rng = np.random.default_rng(seed)
    return [sample_plan(rng, preset, scale, size) for _ in range(count)]


def within(successes, trials, probability):
    """Four standard deviations of the binomial: one false alarm in 16,000."""
    return abs(successes - trials * probability) <= 4 * math.sqrt(trials * probability * (1 - probability)) + 1e-9


def uniform(values, low, high):
    """In the range, reaching both ends, and with the mean of a uniform distribution."""
    values = np.asarray(values, float)
    width = high - low
    mean_is_right = abs(values.mean() - (low + high) / 2) < 4 * width / math.sqrt(12 * len(values))
    reach = 12 / len(values) * width  # not reached once in 80,000 times
    reaches = values.min() < low + reach and values.max() > high - reach
    return low <= values.min() and values.max() <= high and reaches and mean_is_right


def steps(plans, kind):
    return [step for plan in plans for step in plan.steps if isinstance(step, kind)]


def halved(plan):
    first = plan.steps[0]
    return isinstance(first, Resize) and (first.height, first.width) == (128, 64)


@pytest.fixture(scope="module")
def bsr():
    return draw("bsr")


@pytest.fixture(scope="module")
def light():
    return draw("bsr-light")


@pytest.fixture(scope="module")
def plus():
    return draw("bsr-plus")


def test_bicubic_is_one_antialiased_resize():
    assert all(plan.steps == (Resize(64, 32, "bicubic"),) for plan in draw("bicubic", 50))


@pytest.mark.parametrize("preset", ["bsr", "bsr-light", "bsr-plus"])
def test_a_quarter_is_halved_first_and_half_of_that_antialiased(preset):
    plans = draw(preset, 2000)
    first = [plan.steps[0] for plan in plans if halved(plan)]
    # A downsampling by exactly 2 that happens to come first looks the same; it is rare.
    assert within(len(first), len(plans), 0.25) or len(first) < 2000 * 0.25 + 80
    assert within(sum(step.interpolation == "bicubic" for step in first), len(first), 0.5)


def test_blurs(bsr, light):
    for plans, each, strength, sizes in ((bsr, 2, 1, range(7, 26, 2)), (light, 1, 0.25, range(5, 8, 2))):
        anisotropic, isotropic = steps(plans, AnisotropicBlur), steps(plans, Blur)
        total = len(anisotropic) + len(isotropic)
        assert total == each * len(plans)
        assert within(len(anisotropic), total, 0.5)
        counts = Counter(step.size for step in (*anisotropic, *isotropic))
        assert set(counts) == set(sizes)
        assert all(within(count, total, 1 / len(sizes)) for count in counts.values())
        whole = [plan for plan in plans if not halved(plan)]
        variances = [value**2 for step in steps(whole, AnisotropicBlur) for value in (step.sigma_x, step.sigma_y)]
        assert uniform(variances, 0, 8 * strength)
        assert uniform([step.sigma for step in steps(whole, Blur)], 0, 2.8 * strength)
        assert uniform([step.angle for step in anisotropic], 0, math.pi)


def test_a_halved_image_is_blurred_for_the_factor_that_is_left(bsr):
    left = [plan for plan in bsr if halved(plan) and plan.steps[0].interpolation == "bicubic"]
    variances = [v**2 for step in steps(left, AnisotropicBlur) for v in (step.sigma_x, step.sigma_y)]
    assert uniform(variances, 0, 6)
    assert max(step.sigma for step in steps(left, Blur)) <= 2.4
    assert {step.factor for step in steps(left, Decimate)} == {2}
    assert uniform([step.sigma for step in steps(left, Decimate)], 0.1, 1.2)


def test_downsampling(bsr, light):
    for plans, resized in ((bsr, 0.75), (light, 0.8)):
        decimated = sum(any(isinstance(step, Decimate) for step in plan.steps) for plan in plans)
        assert within(decimated, len(plans), 1 - resized)
        whole = [plan for plan in plans if not halved(plan)]
        assert {step.factor for step in steps(whole, Decimate)} == {4}
        assert uniform([step.sigma for step in steps(whole, Decimate)], 0.1, 2.4)
        ratios = [256 / plan_resizes[0].height for plan in whole if len(plan_resizes := steps([plan], Resize)) == 2]
        assert min(ratios) >= 1 and max(ratios) <= 8
        assert abs(np.mean(ratios) - 4.5) < 0.15


def test_interpolations_are_uniform(bsr):
    resizes = [step for step in steps(bsr, Resize) if step.interpolation != "bicubic"]
    counts = Counter(step.interpolation for step in resizes)
    assert set(counts) == {"linear", "cubic", "area"}
    assert all(within(count, len(resizes), 1 / 3) for count in counts.values())


def test_gaussian_noise(bsr, light):
    for plans, low, high in ((bsr, 2, 25), (light, 1, 2)):
        drawn = steps(plans, GaussianNoise)
        assert len(drawn) == len(plans)
        counts = Counter(step.level for step in drawn)
        assert set(counts) == {float(level) for level in range(low, high + 1)}
        assert all(within(count, len(drawn), 1 / (high - low + 1)) for count in counts.values())
        for kind, probability in (("colour", 0.4), ("grey", 0.4), ("correlated", 0.2)):
            assert within(sum(step.kind == kind for step in drawn), len(drawn), probability)
        assert all((step.mixing is not None) == (step.kind == "correlated") for step in drawn)
        assert len({step.seed for step in drawn}) == len(drawn)


def test_correlated_noise_has_a_random_covariance_of_bounded_variance(bsr):
    mixings = [np.array(step.mixing) for step in steps(bsr, GaussianNoise) if step.mixing]
    covariances = np.array([mixing @ mixing.T for mixing in mixings])
    eigenvalues = np.linalg.eigvalsh(covariances)
    assert eigenvalues.min() > -1e-9 and eigenvalues.max() <= 1 + 1e-9
    assert abs(np.trace(covariances, axis1=1, axis2=2).mean() - 1.5) < 0.1
    assert np.abs(covariances[:, 0, 1]).max() > 0.2


def test_jpeg(bsr, light):
    for plans, low, high in ((bsr, 30, 95), (light, 80, 95)):
        assert all(isinstance(plan.steps[-1], Jpeg) for plan in plans)
        middle = [step for plan in plans for step in plan.steps[:-1] if isinstance(step, Jpeg)]
        assert within(len(middle), len(plans), 0.9)
        qualities = [step.quality for step in steps(plans, Jpeg)]
        counts = Counter(qualities)
        assert set(counts) == set(range(low, high + 1))
        assert all(within(count, len(qualities), 1 / (high - low + 1)) for count in counts.values())


def test_camera_noise_is_drawn_and_follows_its_model(bsr, light, plus):
    assert within(len(steps(bsr, CameraNoise)), len(bsr), 0.25)
    assert not steps(light, CameraNoise)
    assert within(len(steps(plus, CameraNoise)), 2 * len(plus), 0.1)
    drawn = steps(bsr, CameraNoise)
    assert uniform([math.log(step.shot) for step in drawn], math.log(0.0001), math.log(0.012))
    rest = [math.log(step.read) - 2.18 * math.log(step.shot) - 1.20 for step in drawn]
    assert abs(np.mean(rest)) < 4 * 0.26 / math.sqrt(len(rest))
    assert np.std(rest) == pytest.approx(0.26, rel=0.1)
    for step in drawn:
        assert 1.9 <= step.red_gain <= 2.4 and 1.5 <= step.blue_gain <= 1.9 and step.digital_gain > 0
        assert np.allclose(np.sum(step.camera_matrix, axis=1), 1)
        assert np.linalg.cond(step.camera_matrix) < 10
    assert set(Counter(step.pattern for step in drawn)) == {"RGGB", "GRBG", "GBRG", "BGGR"}


def test_order_is_random_with_its_two_constraints(bsr):
    """The last JPEG ends every plan, downsample-3 follows downsample-2, and else any order comes."""
    noise_first = blur_after_noise = 0
    for plan in bsr:
        names = [step_name(step) for step in plan.steps]
        assert names[-1] == "jpeg"
        assert 7 <= len(plan.steps) - halved(plan) + ("camera_noise" not in names) <= 8
        finals = [i for i, s in enumerate(plan.steps) if isinstance(s, Resize) and s.height == 64]
        downs = [i for i, n in enumerate(names) if n == "decimate"]
        assert finals and (not downs or max(finals) > downs[0])
        noise = names.index("gaussian_noise")
        noise_first += noise == halved(plan)
        blur_after_noise += sum(name.endswith("blur") for name in names[noise:])
    # Seven slots, of which an absent camera or middle JPEG leaves its place to the next.
    present = [1 / (5 + jpeg + camera) for jpeg in (0, 1) for camera in (0, 1)]
    weights = [(0.9 if jpeg else 0.1) * (0.25 if camera else 0.75) for jpeg in (0, 1) for camera in (0, 1)]
    probability = sum(p * w for p, w in zip(present, weights, strict=True))
    assert within(noise_first, len(bsr), probability)
    assert within(blur_after_noise, 2 * len(bsr), 0.5) or abs(blur_after_noise / len(bsr) - 1) < 0.06


def test_final_resize_changes_places_with_a_later_downsample():
    """Of all orders of the two, only downsample-2 before downsample-3 is left, each place as likely."""
    preset = dataclasses.replace(
        PRESETS["bsr"],
        slots=("downsample", "final_resize", "gaussian_noise"),
        halve_probability=0.0,
        resize_probability=0.0,
    )
    orders = Counter(tuple(step_name(s) for s in plan.steps[:-1]) for plan in draw(preset, 3000))
    assert set(orders) == {
        ("decimate", "resize", "gaussian_noise"),
        ("decimate", "gaussian_noise", "resize"),
        ("gaussian_noise", "decimate", "resize"),
    }
    assert all(within(count, 3000, 1 / 3) for count in orders.values())


def test_plus_has_poisson_speckle_and_rescaling(plus):
    assert within(len(steps(plus, PoissonNoise)), 2 * len(plus), 0.1)
    assert within(len(steps(plus, SpeckleNoise)), 2 * len(plus), 0.1)
    peaks = [math.log10(step.peak) for step in steps(plus, PoissonNoise)]
    assert uniform(peaks, 2, 4)
    poissons = steps(plus, PoissonNoise)
    assert within(sum(step.grey for step in poissons), len(poissons), 0.5)
    assert all(len(steps([plan], GaussianNoise)) == 2 for plan in plus)
    assert all(len(steps([plan], Jpeg)) == 2 for plan in plus)
    assert all(isinstance(plan.steps[-1], Jpeg) and isinstance(plan.steps[-2], Resize) for plan in plus)


def test_plus_resizes_up_keeps_or_shrinks():
    preset = dataclasses.replace(PRESETS["bsr-plus"], slots=("rescale",), halve_probability=0.0)
    firsts = [plan.steps[0] if len(plan.steps) == 3 else None for plan in draw(preset, size=(512, 512))]
    up = [step.height / 512 for step in firsts if step and step.height > 512]
    down = [step.height / 512 for step in firsts if step and step.height <= 512]
    assert within(len(up), MANY, 0.2) or abs(len(up) - 800) < 110
    assert within(firsts.count(None), MANY, 0.1)
    assert max(up) <= 2 and min(down) >= 1 / 8
    assert abs(np.mean(up) - 1.5) < 0.05 and abs(np.mean(down) - 0.5625) < 0.02


def test_plus_is_shuffled_half_of_the_time(plus):
    """Unshuffled, a blur comes first (halving aside) and the middle JPEG before the second blur."""
    blur_first = sum(step_name(plan.steps[halved(plan)]).endswith("blur") for plan in plus)
    assert 0.5 * len(plus) < blur_first < 0.75 * len(plus)


def test_no_intermediate_of_plus_is_smaller_than_half_of_the_result(plus):
    assert min(step.height for step in steps(plus, Resize)) >= 32
    assert min(step.width for step in steps(plus, Resize)) >= 16


def test_sharpening_of_the_target_is_drawn():
    preset = dataclasses.replace(PRESETS["bsr-plus"], sharpen_probability=0.3)
    plans = draw(preset, 1000)
    assert within(sum(plan.sharpen == Sharpen() for plan in plans), 1000, 0.3)
    assert not any(plan.sharpen for plan in draw("bsr", 200))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_scales(preset, scale):
    if scale not in PRESETS[preset].scales:
        with pytest.raises(ValueError, match=r"scales \(2, 4\)"):
            sample_plan(np.random.default_rng(0), preset, scale, (64, 64))
        return
    for plan in draw(preset, 30, scale, (64, 96)):
        last = steps([plan], Resize)[-1]
        assert plan.scale == scale and (last.height, last.width) == (64 // scale, 96 // scale)
        assert scale > 2 or plan.steps[0] != Resize(32, 48, "bicubic") or preset == "bicubic"


def test_the_same_generator_gives_the_same_plans_and_no_other():
    assert draw("bsr", 20, seed=3) == draw("bsr", 20, seed=3)
    assert draw("bsr", 20, seed=3) != draw("bsr", 20, seed=4)


def test_global_random_state_is_neither_used_nor_changed():
    import random

    np.random.seed(1)
    before = (np.random.get_state()[1].tobytes(), random.getstate())
    first = draw("bsr-plus", 5)
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == before
    np.random.seed(2)
    random.seed(2)
    assert draw("bsr-plus", 5) == first


@pytest.mark.parametrize("size", [(63, 64), (64, 66), (2, 64), (0, 0)])
def test_sizes_that_are_no_multiple_are_refused_with_both_sides_named(size):
    with pytest.raises(ValueError, match=f"{size[0]}×{size[1]} \\(height × width\\)"):
        sample_plan(np.random.default_rng(0), "bsr", 4, size)
