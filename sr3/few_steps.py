"""The last training phase: the denoiser at the very noise levels that a sampler of few steps visits, and by a scoring
rule on what that sampler makes. The encoder, and with it 0 steps, stays as it is."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr3.model import SCALE, LowResEncoder, SR3UNet
from sr3.process import add_noise, augment, denoising_loss, scheduler_gamma, standardised

PATCHES = (1, 4, 8, 16)  # pixels a side, in which samples are compared


def levels(scheduler: Any, counts: Sequence[int]) -> list[Tensor]:
    """For each number of steps the γ (steps,) that the scheduler visits, from noise to picture."""
    found = []
    for count in counts:
        copy = type(scheduler).from_config(scheduler.config)
        copy.set_timesteps(count)
        found.append(torch.stack([scheduler_gamma(copy, t) for t in copy.timesteps]))
    return found


def step(noisy: Tensor, sample: Tensor, gamma: Tensor, gamma_next: Tensor) -> Tensor:
    """DDIM's deterministic step (arXiv 2010.02502, equation 12, σ = 0) from a prediction of y₀. γ are scalars."""
    noise = (noisy - gamma.sqrt() * sample) / (1 - gamma).sqrt()
    return gamma_next.sqrt() * sample + (1 - gamma_next).sqrt() * noise


def patch_distance(one: Tensor, other: Tensor, sizes: Sequence[int] = PATCHES) -> Tensor:
    """The Euclidean distance of two pictures' patches over the square root of their dimension, as a mean over half
    overlapping patches of so many pixels a side: pictures (N, C, H, W) to one number."""
    squared = ((one - other) ** 2).mean(1, keepdim=True)
    means = [F.avg_pool2d(squared, size, max(size // 2, 1)) for size in sizes]
    return torch.stack([mean.add(1e-6).sqrt().mean() for mean in means]).mean()


def energy_score(one: Tensor, other: Tensor, target: Tensor) -> Tensor:
    """The energy score of two samples (Gneiting and Raftery 2007, "Strictly proper scoring rules", equation 22) in
    patches: least where they are drawn as `target` was, so that sharp is right and grain that no picture has is not."""
    close = 0.5 * (patch_distance(one, target) + patch_distance(other, target))
    return close - 0.5 * patch_distance(one, other)


class FewSteps(nn.Module):
    """Encoder (frozen) and denoiser as one module, for one forward pass of training. `energy` is the weight of the
    energy score of what the sampler makes; with 0 nothing is sampled."""

    def __init__(self, encoder: LowResEncoder, unet: SR3UNet, energy: float) -> None:
        super().__init__()
        self.encoder, self.unet, self.energy = encoder.requires_grad_(False), unet, energy

    def forward(
        self, low_res: Tensor, high_res: Tensor, level: Tensor, gamma: Tensor, noise: Tensor, path: Tensor
    ) -> dict[str, Tensor]:
        """The terms of the loss: `denoising` at `gamma` (N,), and the `energy` of two samples along `path` (steps,)
        from the halves of `noise` (2·N, 48, h, w), in units of the residual's expected size; `total` is their sum."""
        with torch.no_grad():
            encoded = self.encoder(low_res, level)
        scale = encoded.log_scale.float().exp()
        weight = scale / scale.mean()
        large = F.interpolate(scale, scale_factor=float(SCALE))
        residual = standardised(high_res, encoded.mean.float(), large, SCALE)
        noisy = add_noise(residual, gamma, noise[: len(residual)])
        output = self.unet(noisy, encoded.features, gamma).float()
        terms = {"denoising": denoising_loss(output, residual, weight / weight.mean())}
        terms["total"] = terms["denoising"]
        if self.energy:
            twice = encoded.features.repeat(2, 1, 1, 1)
            one, other = (F.pixel_shuffle(weight * d, SCALE) for d in self._sample(noise, twice, path).chunk(2))
            terms["energy"] = energy_score(one, other, F.pixel_shuffle(weight * residual, SCALE))
            terms["total"] = terms["denoising"] + self.energy * terms["energy"]
        return terms

    def _sample(self, noise: Tensor, features: Tensor, path: Tensor) -> Tensor:
        """ŷ₀ after all steps; only the last is differentiated."""
        noisy = noise
        for gamma, gamma_next in pairwise(path):
            with torch.no_grad():
                sample = self.unet(noisy, features, gamma.expand(len(noisy))).float()
            noisy = step(noisy, sample, gamma, gamma_next)
        return self.unet(noisy, features, path[-1].expand(len(noisy))).float()


def draw(paths: Sequence[Tensor], generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """One step's path, and for `count` samples a γ (count,) of a path and a place on it drawn for each."""
    pick = torch.randint(len(paths), (count + 1,), generator=generator).tolist()
    share = torch.rand(count, generator=generator)
    gamma = torch.stack([paths[i][int(s * len(paths[i]))] for i, s in zip(pick[1:], share, strict=True)])
    return paths[pick[0]], gamma


def losses(
    model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator, paths: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The terms of one step of the phase few-steps. `batch` as for `sr3.train.losses`, `paths` from `levels`."""
    low_res, high_res, level = batch
    device = low_res.device
    path, gamma = draw(paths, generator, len(low_res))
    noise = torch.randn(2 * len(low_res), 3 * SCALE**2, *low_res.shape[-2:], generator=generator).to(device)
    low_res = augment(low_res, level, torch.randn(low_res.shape, generator=generator).to(device))
    with torch.autocast(device.type, torch.bfloat16):
        return model(low_res, high_res, level, gamma.to(device), noise, path.to(device))
