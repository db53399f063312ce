"""The batched pipeline does what the single one does: with every step alone, mixed, and in full plans."""

import math

import numpy as np
import pytest
import torch

from degradation import PRESETS, Plan, apply_plan, apply_step, sample_plan, target
from degradation.batched import apply_plans_batched, targets_batched
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
)
from tests.degradation_measures import textured

MIXING = ((0.3, 0.2, -0.5), (0.1, 0.6, 0.2), (0.0, 0.1, 0.7))
MATRIX = ((0.6, 0.3, 0.1), (0.1, 0.7, 0.2), (0.05, 0.2, 0.75))
HEIGHT, WIDTH = 72, 56


def stack(images):
    return torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image in images]))


def psnr(a, b):
    return -10 * math.log10(float(np.mean((a - b) ** 2)) + 1e-20)


def single(tensor):
    return tensor.permute(1, 2, 0).numpy()


ALONE = [
    Blur(2.0, 25),
    Blur(0.01, 7),
    AnisotropicBlur(2.6, 0.4, 1.0, 21),
    *(
        Resize(height, width, method)
        for method in ("linear", "cubic", "area", "bicubic")
        for height, width in ((18, 14), (29, 23), (72, 56), (100, 90), (80, 40), (20, 100))
    ),
    Decimate(4, 1.3),
    Decimate(2, 0.2),
    *(GaussianNoise(20, kind, 3, MIXING) for kind in ("colour", "grey", "correlated")),
    *(SpeckleNoise(20, kind, 3, MIXING) for kind in ("colour", "grey", "correlated")),
    PoissonNoise(300, False, 1),
    PoissonNoise(300, True, 1),
    *(CameraNoise(0.003, 1e-5, 2.2, 1.6, 1.3, MATRIX, p, 5) for p in ("RGGB", "GRBG", "GBRG", "BGGR")),
    Sharpen(0.5, 21, 10),
]


def size_after(step):
    if isinstance(step, Resize):
        return step.height, step.width
    return (HEIGHT // step.factor, WIDTH // step.factor) if isinstance(step, Decimate) else (HEIGHT, WIDTH)


def run_alone(image, step):
    """A plan of this step, then back to the size that a plan has to end at."""
    steps = (step,) if size_after(step) == (HEIGHT, WIDTH) else (step, Resize(HEIGHT, WIDTH, "linear"))
    plan = Plan("alone", 1, (HEIGHT, WIDTH), steps)
    return single(apply_plans_batched(stack([image]), [plan])[0]), apply_plan(image, plan)


@pytest.mark.parametrize("step", ALONE, ids=str)
def test_each_step_alone_is_over_45_db(step):
    batched, reference = run_alone(textured(0, HEIGHT, WIDTH), step)
    assert psnr(batched, reference) > 45


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [10, 30, 60, 95])
def test_jpeg_is_over_38_db(quality, subsampling):
    for size in ((72, 56), (37, 45)):
        image = textured(1, *size)
        plan = Plan("alone", 1, size, (Jpeg(quality, subsampling),))
        assert psnr(single(apply_plans_batched(stack([image]), [plan])[0]), apply_plan(image, plan)) > 38


@pytest.mark.parametrize("size", [(10, 10), (12, 64), (24, 24), (18, 18), (40, 40)], ids=str)
def test_jpeg_repeats_the_border_of_the_chroma_as_libjpeg_does(size):
    """Even heights that are no multiple of 16. The median, as one coefficient that rounds the other way is a step."""
    images = [textured(seed, *size) for seed in range(9) for _ in range(4)]
    plans = [Plan("alone", 1, size, (Jpeg((10, 30, 60, 95)[i % 4], "4:2:0"),)) for i in range(36)]
    batched = apply_plans_batched(stack(images), plans)
    pairs = zip(batched, images, plans, strict=True)
    assert np.median([psnr(single(result), apply_plan(image, plan)) for result, image, plan in pairs]) > 46


@pytest.mark.parametrize("method", ["linear", "bicubic"])
def test_steps_of_one_kind_and_many_sizes_share_a_batch(method):
    """Every image is at another size when the same kinds of step come; borders must not leak."""
    images = [textured(seed, HEIGHT, WIDTH) for seed in range(6)]
    plans = []
    for i in range(6):
        middle = (
            Resize(20 + 9 * i, 60 - 7 * i, method),
            Blur(0.5 + i, 7 + 2 * i),
            AnisotropicBlur(1 + i, 0.5, i, 9 + 2 * i),
            GaussianNoise(5.0 + i, "colour", i),
            CameraNoise(0.001 * i, 1e-5, camera_matrix=MATRIX, seed=i, pattern=("RGGB", "BGGR")[i % 2]),
            Resize(HEIGHT, WIDTH, "cubic"),
        )
        plans.append(Plan("mixed", 1, (HEIGHT, WIDTH), middle[i % 2 :] if i % 2 else middle))
    batched = apply_plans_batched(stack(images), plans)
    for image, plan, result in zip(images, plans, batched, strict=True):
        assert psnr(single(result), apply_plan(image, plan)) > 60


def test_a_small_bicubic_result_beside_a_large_one():
    """Far beyond the small one's own pixels, none of its input is within the kernel's reach."""
    images = [textured(seed, 16, 16) for seed in range(2)]
    plans = [
        Plan("x", 1, (16, 16), (Resize(side, side, "bicubic"), Blur(2.0, 25), Resize(16, 16, "bicubic")))
        for side in (10, 40)
    ]
    batched = apply_plans_batched(stack(images), plans)
    for image, plan, result in zip(images, plans, batched, strict=True):
        assert psnr(single(result), apply_plan(image, plan)) > 60


@pytest.mark.parametrize("preset", PRESETS)
def test_full_plans_are_close_and_do_not_depend_on_the_batch(preset):
    rng = np.random.default_rng(2)
    images = [textured(seed, HEIGHT, WIDTH) for seed in range(12)]
    plans = [sample_plan(rng, preset, 4, (HEIGHT, WIDTH)) for _ in images]
    batched = apply_plans_batched(stack(images), plans)
    assert batched.shape == (12, 3, HEIGHT // 4, WIDTH // 4) and batched.dtype == torch.float32
    assert batched.min() >= 0 and batched.max() <= 1
    reference = [apply_plan(image, plan) for image, plan in zip(images, plans, strict=True)]
    values = [psnr(single(result), other) for result, other in zip(batched, reference, strict=True)]
    assert np.median(values) > 38
    alone = apply_plans_batched(stack(images[3:4]), plans[3:4])[0]
    assert torch.allclose(alone, batched[3], atol=0.02) and (alone - batched[3]).abs().mean() < 1e-3


def test_nothing_is_changed_and_the_result_is_its_own():
    images = stack([textured(0, 32, 32)])
    before = images.clone()
    for steps in ((), (GaussianNoise(9),), (Resize(8, 8), Resize(32, 32)), (PoissonNoise(90),)):
        result = apply_plans_batched(images, [Plan("x", 1, (32, 32), steps)])
        result.zero_()
        assert torch.equal(images, before)


def test_noise_drawn_on_the_device_has_the_same_distribution():
    image = np.full((200, 200, 3), 0.5, np.float32)
    steps = (
        GaussianNoise(10, "colour"),
        GaussianNoise(10, "grey"),
        GaussianNoise(10, "correlated", 0, MIXING),
        SpeckleNoise(10, "colour"),
        PoissonNoise(500),
        PoissonNoise(500, True),
        CameraNoise(0.002, 1e-5, camera_matrix=MATRIX),
    )
    plans = [Plan("x", 1, (200, 200), (step,)) for step in steps]
    generator = torch.Generator().manual_seed(1)
    drawn = apply_plans_batched(stack([image] * len(steps)), plans, generator)
    for result, step in zip(drawn, steps, strict=True):
        reference = np.cov((apply_step(image, step) - image).reshape(-1, 3).T)
        covariance = np.cov((single(result) - image).reshape(-1, 3).T)
        assert np.allclose(covariance, reference, atol=0.06 * np.abs(reference).max()), step
    again = apply_plans_batched(stack([image] * len(steps)), plans, torch.Generator().manual_seed(1))
    assert torch.equal(again, drawn)


def test_it_stays_on_the_device_of_the_images():
    """PyTorch's meta device computes shapes only, and refuses to mix with tensors of another device."""
    rng = np.random.default_rng(3)
    for preset in PRESETS:
        plans = [sample_plan(rng, preset, 4, (64, 48)) for _ in range(6)]
        plans = [plan for plan in plans if not any(isinstance(s, PoissonNoise) for s in plan.steps)]
        result = apply_plans_batched(torch.empty(len(plans), 3, 64, 48, device="meta"), plans)
        assert result.device.type == "meta" and result.shape == (len(plans), 3, 16, 12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_what_the_cpu_gives():
    rng = np.random.default_rng(4)
    images = stack([textured(seed, HEIGHT, WIDTH) for seed in range(8)])
    plans = [sample_plan(rng, "bsr", 4, (HEIGHT, WIDTH)) for _ in range(8)]
    there = apply_plans_batched(images.cuda(), plans).cpu()
    assert (there - apply_plans_batched(images, plans)).abs().mean() < 2e-3
    apply_plans_batched(images.cuda(), plans, torch.Generator("cuda").manual_seed(0))


def test_targets_are_sharpened_where_the_plan_says_so():
    images = [textured(seed, 32, 32) for seed in range(3)]
    plans = [Plan("x", 4, (32, 32), (Resize(8, 8),), Sharpen() if i == 1 else None) for i in range(3)]
    targets, low = targets_batched(stack(images), plans), apply_plans_batched(stack(images), plans)
    for i in range(3):
        assert np.allclose(single(targets[i]), target(images[i], plans[i]), atol=1e-4)
        assert np.allclose(single(low[i]), apply_plan(images[i], plans[i]), atol=1e-4)


def test_what_does_not_fit_is_refused():
    images = torch.zeros(2, 3, 16, 16)
    plan = Plan("x", 4, (16, 16), (Resize(4, 4),))
    cases = [
        (images.double(), [plan, plan], "float32"),
        (images[:, :1], [plan, plan], "N, 3, H, W"),
        (images, [plan], "2 images"),
        (images[:0], [], "0 images"),
        (images, [plan, Plan("x", 4, (16, 20), (Resize(4, 5),))], "16×20"),
        (images, [plan, Plan("x", 2, (16, 16), (Resize(8, 8),))], "scale 2"),
        (images, [plan, Plan("x", 4, (16, 16), (Resize(4, 5),))], "different sizes"),
        (images, [Plan("x", 4, (16, 16), (Resize(5, 5),))] * 2, "end at"),
        (images, [Plan("x", 4, (16, 16), (Blur(1.0, 6), Resize(4, 4)))] * 2, "odd"),
    ]
    for tensor, plans, message in cases:
        with pytest.raises(ValueError, match=message):
            apply_plans_batched(tensor, plans)


@pytest.mark.parametrize(
    "step",
    [
        Blur(-1.0),
        Blur(math.nan),
        Blur(1.0, size=4),
        Blur(1.0, size=-3),
        Blur(1.0, size=1003),
        Resize(0, 5),
        Resize(-1, 5),
        Resize(2**14, 2**14),
        Resize(5, 5, "lanczos"),
        Decimate(0, 1.0),
        Decimate(3, 1.0),
        Decimate(2, -1.0),
        CameraNoise(-1.0, 0.0),
        CameraNoise(0.01, 0.01, red_gain=0.0),
        CameraNoise(0.01, 0.01, pattern="XYZW"),
        Jpeg(0),
        Jpeg(101),
        Jpeg(50, "4:1:1"),
        Sharpen(radius=4),
        Sharpen(radius=-1),
    ],
    ids=repr,
)
def test_a_step_that_cannot_be_is_refused_as_for_a_single_image(step):
    image = textured(0, 64, 64)
    plan = Plan("by hand", 4, (64, 64), (step, Resize(16, 16)))
    with pytest.raises(ValueError):
        apply_plan(image, plan)
    with pytest.raises(ValueError):
        apply_plans_batched(stack([image]), [plan])


def test_it_stays_in_float32_within_autocast_and_whatever_torchs_default_dtype():
    image = textured(0, 64, 64)
    plans = [sample_plan(np.random.default_rng(seed), "bsr-plus", 4, (64, 64)) for seed in range(20)]
    images = stack([image] * len(plans))
    expected = apply_plans_batched(images, plans)
    with torch.autocast("cpu", torch.bfloat16):
        made, targets = apply_plans_batched(images, plans), targets_batched(images, plans)
    assert torch.equal(made, expected) and torch.equal(targets, targets_batched(images, plans))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(apply_plans_batched(images, plans), expected)
    finally:
        torch.set_default_dtype(torch.float32)
