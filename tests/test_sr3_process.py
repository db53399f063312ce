"""The diffusion process, by known answers."""

import itertools
import math

import diffusers
import numpy as np
import pytest
import torch

from sr3.process import (
    Noise,
    add_noise,
    augment,
    cosine_gamma,
    denoising_loss,
    project,
    psnr_loss,
    sample_gamma,
    sample_visited,
    scale_loss,
    scheduler_gamma,
    ssim_loss,
    visited_gammas,
)


def test_gamma_of_one_leaves_the_sample_and_zero_only_noise():
    sample, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(add_noise(sample, torch.ones(2), noise), sample)
    assert torch.equal(add_noise(sample, torch.zeros(2), noise), noise)


def test_cosine_schedule_runs_from_signal_to_noise():
    gamma = cosine_gamma(torch.linspace(0, 1, 5))
    assert torch.allclose(gamma, torch.tensor([1.0, 0.853553, 0.5, 0.146447, 0.0]), atol=1e-6)


def test_sampled_gammas_follow_the_schedule():
    schedule = cosine_gamma(torch.linspace(0, 1, 101))
    gamma = sample_gamma(schedule, torch.Generator().manual_seed(0), 20_000)
    assert gamma.min() >= 0 and gamma.max() <= 1
    # E[cos²(πt/2)] over uniform t is 1/2, its standard deviation 1/√8.
    assert abs(gamma.mean() - 0.5) < 5 * 8**-0.5 / 20_000**0.5


def test_augmentation_keeps_the_mean_and_has_the_stated_level():
    low_res = torch.full((1, 3, 64, 64), 0.25)
    noised = augment(
        low_res, torch.tensor([0.3]), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    )
    noise_share = noised.std() / (1 + noised.std() ** 2) ** 0.5
    assert noise_share == pytest.approx(0.3, abs=0.01)
    assert noised.mean() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(augment(low_res, torch.zeros(1), torch.randn(1, 3, 64, 64)), low_res)


def test_parts_of_noise_are_the_wholes_and_the_user_of_one_leaves_the_others_alone():
    def draws() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (3, 4)]

    planes = [[torch.randn(16, 24, generator=each) for _ in range(5)] for each in draws()]
    whole = torch.stack([torch.stack(each) for each in planes])
    noise = Noise((2, 5, 8, 12), draws(), torch.device("cpu"), ratio=2, multiple=4)
    assert torch.equal(noise[..., :, :], whole)
    for _ in range(2):
        part = noise[..., slice(0, 6), slice(4, 12)]
        assert torch.equal(part, whole[..., :16, 8:])
        part.zero_()


@pytest.mark.parametrize("timestep", [0, 1, 500, 998, 999, 321.5])
def test_gamma_at_a_schedulers_timestep(timestep):
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    gamma = scheduler_gamma(scheduler, timestep)
    low, high = int(timestep), min(int(timestep) + 1, 999)
    assert scheduler.alphas_cumprod[high] <= gamma + 1e-6
    assert gamma <= scheduler.alphas_cumprod[low] + 1e-6
    if timestep == low:
        assert gamma == pytest.approx(float(scheduler.alphas_cumprod[low]), rel=1e-4, abs=1e-9)


def test_losses_have_their_minimum_at_the_truth():
    target = torch.randn(2, 3, 4, 4)
    assert denoising_loss(target, target) == 0
    assert denoising_loss(target + 1, target, torch.full((2, 1, 4, 4), 3.0)) == pytest.approx(3.0, rel=1e-5)
    squared = torch.full((1, 1, 2, 2), 0.04)
    values = {s: float(scale_loss(torch.full((1, 1, 2, 2), s).log(), squared)) for s in (0.1, 0.2, 0.4)}
    assert min(values, key=values.__getitem__) == 0.2


def test_psnr_loss_counts_each_picture_by_the_logarithm_of_its_squared_error():
    target = torch.randn(2, 3, 4, 4)
    errors = torch.tensor([0.1, 0.5]).view(2, 1, 1, 1)
    expected = (math.log(0.01 + 1e-4) + math.log(0.25 + 1e-4)) / 2
    assert psnr_loss(target + errors, target) == pytest.approx(expected, rel=1e-5)


def test_the_visited_gammas_are_those_that_the_sampler_tells_the_network(small_pipeline):
    seen = []
    small_pipeline.unet.register_forward_pre_hook(lambda module, inputs: seen.append(float(inputs[2][0])))
    for path, count in zip(visited_gammas(small_pipeline.scheduler, (1, 2, 4)), (1, 2, 4), strict=True):
        seen.clear()
        small_pipeline(np.zeros((8, 8, 3), np.uint8), count)
        assert seen == pytest.approx(path.tolist()) and len(path) == count


def test_every_visited_gamma_is_drawn(small_pipeline):
    paths = visited_gammas(small_pipeline.scheduler, (1, 4))
    gamma = sample_visited(paths, torch.Generator().manual_seed(0), 400)
    assert set(gamma.tolist()) == set(torch.cat(paths).tolist())
    assert 0.4 < (gamma == paths[0][0]).float().mean() < 0.6  # the one step of the first


def test_ssim_loss_agrees_with_a_second_implementation():
    first, second = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    second = 0.5 * first + 0.5 * second
    weights = np.array([0.299, 0.587, 0.114])
    a, b = (np.einsum("nchw,c->nhw", x.numpy(), weights) for x in (first, second))
    values = []
    for x, y in zip(a, b, strict=True):
        for i, j in itertools.product(range(0, 25, 4), repeat=2):
            u, v = x[i : i + 8, j : j + 8], y[i : i + 8, j : j + 8]
            both = ((u - u.mean()) * (v - v.mean())).mean()
            structure = (2 * both + 0.03**2) / (u.var() + v.var() + 0.03**2)
            values.append(structure * (2 * u.mean() * v.mean() + 0.01**2) / (u.mean() ** 2 + v.mean() ** 2 + 0.01**2))
    assert float(ssim_loss(2 * first - 1, 2 * second - 1)) == pytest.approx(1 - np.mean(values), abs=1e-4)
    assert float(ssim_loss(first, first)) == pytest.approx(0, abs=1e-6)


def test_each_back_projection_is_told_of_and_may_be_the_last():
    class Enough(Exception):
        pass

    passes = []

    def look():
        passes.append(1)
        if len(passes) == 4:
            raise Enough

    whole = project(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.25), lambda x: x, lambda x: x, 3, look)
    assert len(passes) == 3
    assert torch.equal(whole, torch.full((1, 3, 8, 8), 0.25))
    with pytest.raises(Enough):
        project(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), lambda x: x, lambda x: x, 100, look)
    assert len(passes) == 4
