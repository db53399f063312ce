"""The pipeline: known answers, seeds, batches, tiles, schedulers, errors, and its directory."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler
from PIL import Image

from sr3.images import to_tensor
from sr3.model import estimate, reduce
from sr3.pipeline import ModelError, SR3Pipeline, load
from sr3.presets import PRESETS, build, save
from sr3.schedulers import SCHEDULERS, with_scheduler
from sr3.tiling import Tiling
from tests.conftest import SMALL


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_zero_steps_give_the_mean(small_pipeline):
    low_res = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mean = small_pipeline.encoder(low_res, torch.zeros(1)).mean.clamp(-1, 1)
    assert torch.equal(small_pipeline(low_res, 0, consistency=0, output_type="pt").images, mean)


@pytest.mark.parametrize("steps", [0, 2])
def test_consistency_makes_the_result_reduce_to_the_input(small_pipeline, steps):
    low_res = to_tensor(picture(24, 24)) * 0.6
    errors = []
    for times in (0, 1, 2, 5):
        result = small_pipeline(low_res, steps, draw(0), consistency=times, output_type="pt").images
        errors.append(float((reduce(result) - low_res).abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]
    default = small_pipeline(low_res, steps, draw(0), output_type="pt").images
    assert torch.equal(default, small_pipeline(low_res, steps, draw(0), consistency=2, output_type="pt").images)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_tensor_of_a_sampling_is_on_the_models_device(name):
    """As on a GPU, which is not there: on torch's meta device tensors of another are refused too."""
    pipeline = with_scheduler(build(SMALL).to("meta"), name)
    made = pipeline(picture(), 2, draw(0), aug_level=0.1, consistency=1, output_type="pt", views=2).images
    assert made.device.type == "meta" and made.shape == (1, 3, 64, 96)


class Oracle(torch.nn.Module):
    """A denoiser that knows the answer."""

    def __init__(self, unet, answer):
        super().__init__()
        self.config, self.multiple, self.answer = unet.config, unet.multiple, answer
        self.parameter = torch.nn.Parameter(torch.zeros(1))

    def forward(self, noisy, condition, gamma):
        return self.answer.expand_as(noisy)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 10])
def test_an_oracle_makes_every_scheduler_return_the_answer(small_pipeline, name, steps):
    low_res = torch.rand(1, 3, 16, 16) * 2 - 1
    answer = torch.randn(1, 48, 16, 16, generator=draw(1)) * 0.1
    pipeline = with_scheduler(small_pipeline, name)
    oracle = SR3Pipeline(pipeline.encoder, pipeline.unet, pipeline.scheduler)
    object.__setattr__(oracle, "unet", Oracle(pipeline.unet, answer))
    with torch.no_grad():
        encoded = pipeline.encoder(low_res, torch.zeros(1))
    scale = encoded.log_scale.exp().repeat_interleave(4, -1).repeat_interleave(4, -2)
    expected = encoded.mean + scale * torch.nn.functional.pixel_shuffle(answer, 4)
    result = oracle(low_res, steps, draw(0), consistency=0, output_type="pt").images
    error = (result - expected.clamp(-1, 1)).abs().max()
    assert error < (0.03 if name == "DDIM" and 1000 % (steps + 1) else 0.02)  # diffusers' DDIM then ends before γ = 1


def test_temperature_is_how_far_from_the_estimate_to_the_sample_and_stays_with_the_model(small_pipeline, tmp_path):
    cool = SR3Pipeline(small_pipeline.encoder, small_pipeline.unet, small_pipeline.scheduler, temperature=0.5)
    save(cool, tmp_path)
    for name in SCHEDULERS:
        hot, cool = (with_scheduler(each, name) for each in (small_pipeline, load(tmp_path, "cpu", "float32")))
        estimate, sample, between = (
            pipeline(picture(), steps, draw(0), consistency=0, output_type="pt").images
            for pipeline, steps in ((hot, 0), (hot, 2), (cool, 2))
        )
        inside = (estimate.abs() < 1) & (sample.abs() < 1)
        assert inside.float().mean() > 0.3 and (sample - estimate)[inside].abs().mean() > 0.01
        assert torch.allclose(between[inside], ((estimate + sample) / 2)[inside], atol=2e-3)  # weights of 16 bits


def test_views_are_those_of_the_estimate_and_leave_what_is_drawn(small_pipeline):
    given = picture()
    one, two, mirrored = (
        small_pipeline(each, 0, consistency=0, output_type="pt", views=views).images
        for each, views in ((given, 1), (given, 2), (given[:, ::-1].copy(), 2))
    )
    assert torch.allclose(two.flip(-1), mirrored, atol=1e-5) and not torch.allclose(one, two, atol=1e-3)
    cold, drawn = (small_pipeline(given, 2, draw(0), consistency=0, output_type="pt", views=v).images for v in (1, 2))
    inside = torch.stack([one, two, cold, drawn]).abs().amax(0) < 1
    assert inside.float().mean() > 0.3
    with torch.no_grad():
        scales = [
            estimate(small_pipeline.encoder, to_tensor(given), torch.zeros(1), views).log_scale.exp()
            for views in (1, 2)
        ]
    first, second = (torch.nn.functional.interpolate(scale, scale_factor=4.0) for scale in scales)
    assert torch.allclose(((cold - one) / first)[inside], ((drawn - two) / second)[inside], atol=1e-5)
    for wrong in (0, 9):
        with pytest.raises(ValueError, match=f"views is {wrong}; it must be between 1 and 8"):
            small_pipeline(given, views=wrong)


def test_no_more_is_drawn_than_the_ceiling_of_the_model_lets(small_pipeline, tmp_path):
    given = (picture() * 0.5 + 64).astype(np.uint8)
    networks = small_pipeline.encoder, small_pipeline.unet, small_pipeline.scheduler
    with torch.no_grad():
        scale = small_pipeline.encoder(to_tensor(given), torch.zeros(1)).log_scale.exp()
    ceiling = float(scale.median())
    save(SR3Pipeline(*networks, temperature=0.1, ceiling=ceiling), tmp_path)
    bounded, free = load(tmp_path, "cpu", "float32"), SR3Pipeline(*networks, temperature=0.1)
    for pipeline in (bounded, free):
        pipeline.encoder, pipeline.unet = networks[:2]  # not in float16
        pipeline.set_progress_bar_config(disable=True)
    mean = free(given, 0, consistency=0, output_type="pt").images
    less, more = (p(given, 2, draw(0), consistency=0, output_type="pt").images - mean for p in (bounded, free))
    inside = (mean + more).abs() < 1
    assert inside.float().mean() > 0.3
    share = torch.nn.functional.interpolate(scale.clamp(max=ceiling) / scale, scale_factor=4.0).expand_as(more)
    assert share[inside].min() < 0.98 and torch.allclose(less[inside], (share * more)[inside], atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_denoiser_is_told_more_noise_where_the_model_says_so(small_pipeline, tmp_path, name):
    networks = small_pipeline.encoder, small_pipeline.unet, small_pipeline.scheduler
    save(SR3Pipeline(*networks, overestimate=1.5), tmp_path)
    told = []
    for each in (small_pipeline, load(tmp_path, "cpu", "float32")):
        pipeline, seen = with_scheduler(each, name), []
        pipeline.unet.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(float(args[2][0])))
        pipeline(picture(), 4, draw(0))
        told.append(np.array(seen))
    assert told[0].min() < 0.1 and told[0].max() > 0.8
    assert np.allclose(told[1], np.maximum(1 - 1.5 * (1 - told[0]), 0), atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_seed_gives_the_same_picture_with_every_scheduler(small_pipeline, name):
    pipeline = with_scheduler(small_pipeline, name)
    first, again, other = (pipeline(picture(), 3, draw(s)).images[0] for s in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_a_seed_gives_the_same_picture_in_any_batch(small_pipeline, name):
    pipeline = with_scheduler(small_pipeline, name)
    pictures = [picture(seed=i) for i in range(3)]
    together = pipeline(pictures, 3, [draw(i) for i in range(3)], aug_level=0.1).images
    for i, each in enumerate(pictures):
        alone = pipeline(each, 3, draw(i), aug_level=0.1).images[0]
        assert np.abs(alone.astype(int) - together[i]).max() <= 1


def test_without_a_generator_it_follows_the_global_seed_and_leaves_it(small_pipeline):
    with torch.random.fork_rng():
        results = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            results.append(small_pipeline(picture(8, 8), 1).images[0])
            assert torch.initial_seed() == seed
    assert np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (17, 8), (31, 30)])
def test_any_size_becomes_four_times_as_large(small_pipeline, size):
    result = small_pipeline(picture(*size), 1, draw(0)).images[0]
    assert result.shape == (4 * size[0], 4 * size[1], 3)


@pytest.mark.parametrize("steps", [0, 3])
def test_tiled_equals_untiled(small_pipeline, steps):
    image = picture(100, 90)
    whole = small_pipeline(image, steps, draw(0), tiling=Tiling(128, 32)).images[0]
    tiles = []
    tiled = small_pipeline(image, steps, draw(0), tiling=Tiling(64, 31), on_tile=lambda: tiles.append(1)).images[0]
    assert len(tiles) > 2 * (steps + 1)
    assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_pil_arrays_and_tensors_are_one(small_pipeline):
    image = picture()
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() * (2 / 255) - 1
    results = [small_pipeline(x, 2, draw(0)).images[0] for x in (image, Image.fromarray(image), tensor)]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    pil = small_pipeline(image, 2, draw(0), output_type="pil").images[0]
    assert np.array_equal(np.asarray(pil), results[0])


def test_the_callback_sees_every_step_and_may_stop(small_pipeline):
    seen = []

    def look(pipeline, step, timestep, values):
        seen.append((step, timestep, tuple(values["sample"].shape)))
        if step == 2:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        small_pipeline(picture(), 5, draw(0), callback_on_step_end=look)
    assert [s[0] for s in seen] == [0, 1, 2]
    assert seen[0][1] > seen[1][1] > seen[2][1]


def test_back_projections_are_told_of_and_are_no_evaluations(small_pipeline):
    passes, tiles = [], []
    pipeline = with_scheduler(small_pipeline, "DDIM")
    pipeline.on_pass = lambda: passes.append(1)
    pipeline(picture(), 1, draw(0), consistency=7, on_tile=lambda: tiles.append(1))
    assert len(passes) == 7
    assert len(tiles) == pipeline.evaluations(16, 24, 1)


def test_noise_augmentation_changes_the_picture(small_pipeline):
    plain, noised = (small_pipeline(picture(), 1, draw(0), aug_level=a).images[0] for a in (0.0, 0.2))
    assert not np.array_equal(plain, noised)


def test_half_precision_stays_close(small_pipeline):
    half = SR3Pipeline(
        *(copy.deepcopy(m).bfloat16() for m in (small_pipeline.encoder, small_pipeline.unet)), small_pipeline.scheduler
    )
    for aug_level in (0.0, 0.1):
        full, small = (p(picture(), 2, draw(0), aug_level).images[0].astype(int) for p in (small_pipeline, half))
        assert np.abs(full - small).mean() < 2
    low_res = to_tensor(picture(24, 24)) * 0.6
    error = reduce(half(low_res, 0, consistency=20, output_type="pt").images) - low_res
    assert error.abs().mean() < 0.004  # the input itself was not rounded to bfloat16


def test_the_papers_preset_samples_by_its_algorithm_2():
    torch.manual_seed(0)
    pipeline = build(PRESETS["sr3-paper-tiny"])
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(100)
    gammas = [*(scheduler.alphas_cumprod[t] for t in scheduler.timesteps), torch.ones(())]
    assert gammas[0] < 1e-4  # pure noise
    for step in (0, 50, 98):
        gamma, alpha = gammas[step], gammas[step] / gammas[step + 1]
        noise = torch.randn(1, 3, 8, 8, generator=draw(1))
        sample = gamma.sqrt() * 0.5 + (1 - gamma).sqrt() * noise
        mean = (sample - (1 - alpha) / (1 - gamma).sqrt() * noise) / alpha.sqrt()
        expected = mean + (1 - alpha).sqrt() * torch.randn(1, 3, 8, 8, generator=draw(2))
        made = scheduler.step(noise, scheduler.timesteps[step], sample, draw(2)).prev_sample
        assert torch.allclose(made, expected, atol=1e-3)
    assert pipeline(picture(), 4, draw(0)).images[0].shape == (64, 96, 3)
    with pytest.raises(ValueError, match="no regression estimate"):
        pipeline(picture(), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": picture(7, 20)}, "both sides must be at least 8"),
        ({"image": picture()[..., :2]}, r"must be uint8 or uint16 of shape \(H, W, 3\)"),
        ({"image": Image.new("L", (16, 16))}, "mode is L"),
        ({"image": [picture(), picture(16, 16)]}, "must have one size"),
        ({"image": []}, "no picture given"),
        ({"image": torch.zeros(0, 3, 16, 16)}, "no picture given"),
        (
            {"image": "photo.jpg"},
            "got a str; it must be PIL RGB, an array or a tensor",
        ),
        ({"image": [Path("photo.jpg")]}, "got a PosixPath"),
        ({"image": b"\x89PNG"}, "got a bytes"),
        ({"image": None}, "got a NoneType"),
        ({"image": picture(), "num_inference_steps": -1}, "must be 0 or more"),
        ({"image": picture(), "aug_level": 1.0}, "less than 1"),
        ({"image": picture(), "consistency": -1}, "consistency is -1"),
        ({"image": picture(), "output_type": "numpy"}, "must be one of uint8, pil, pt"),
        ({"image": picture(), "generator": [draw(0), draw(1)]}, "2 generators for 1 pictures"),
        ({"image": picture(), "generator": 5}, "got 5 as generator; it must be a torch.Generator for each picture"),
        ({"image": [picture()], "generator": [5]}, r"got \[5\] as generator"),
    ],
)
def test_bad_arguments_are_refused_with_what_is_accepted(small_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_pipeline(**arguments)


def test_a_saved_pipeline_loads_and_gives_the_same(small_pipeline, tmp_path):
    small_pipeline.save_pretrained(tmp_path / "p")
    again = load(tmp_path / "p", "cpu", "float32")
    expected = small_pipeline(picture(), 2, draw(0)).images[0]
    assert np.array_equal(again(picture(), 2, draw(0)).images[0], expected)


def test_a_pickled_pipeline_gives_the_same():
    """As a DataLoader's spawned workers get it."""
    pipeline = build(SMALL)
    again = pickle.loads(pickle.dumps(pipeline))
    assert np.array_equal(again(picture(), 2, draw(0)).images[0], pipeline(picture(), 2, draw(0)).images[0])


def test_a_seed_gives_the_same_picture_whatever_torchs_default_dtype(small_pipeline):
    expected = small_pipeline(picture(), 2, draw(0), aug_level=0.1).images[0]
    torch.set_default_dtype(torch.float64)
    try:
        assert np.array_equal(small_pipeline(picture(), 2, draw(0), aug_level=0.1).images[0], expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDIMScheduler(prediction_type="v_prediction"), "DDIMScheduler is for models that predict v_prediction"),
        (DDPMScheduler(), "DDPMScheduler is for models that predict epsilon"),
        (
            FlowMatchEulerDiscreteScheduler(),
            "FlowMatchEulerDiscreteScheduler is for models that predict something else",
        ),
        (HeunDiscreteScheduler(prediction_type="sample"), "HeunDiscreteScheduler asks the denoiser twice a step"),
    ],
)
def test_a_scheduler_that_does_not_fit_the_model_is_refused(small_pipeline, scheduler, message):
    pipeline = SR3Pipeline(small_pipeline.encoder, small_pipeline.unet, scheduler)
    with pytest.raises(ValueError, match=message):
        pipeline(picture(), 2, draw(0))
    assert pipeline(picture(), 0).images[0].shape == (64, 96, 3)


def test_wrong_directories_are_named(small_pipeline, tmp_path):
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load(tmp_path)
    small_pipeline.save_pretrained(tmp_path / "p")
    with pytest.raises(ModelError, match="must be auto, float32"):
        load(tmp_path / "p", dtype="float8")
    weights = tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path / "p")
    weights.unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path / "p")


def test_an_unknown_scheduler_is_refused_with_the_known_ones(small_pipeline):
    with pytest.raises(ValueError, match="one of DDIM, DDPM, DPMSolver"):
        with_scheduler(small_pipeline, "Magic")


def test_a_scheduler_clips_where_the_models_own_does(small_pipeline):
    paper = build(PRESETS["sr3-paper-tiny"])
    for name in ("DDIM", "DDPM"):
        assert with_scheduler(paper, name).scheduler.config.clip_sample
        assert not with_scheduler(small_pipeline, name).scheduler.config.clip_sample
