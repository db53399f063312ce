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

WINDOW = 16  # positions a side, over which what a picture holds of a band is estimated


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


def bands(picture: Tensor) -> list[Tensor]:
    """Linear views of pictures (N, C, H, W), in which grain and what lies along an edge differ: what is left at a
    quarter of the size, and the differences between neighbours in four directions at the whole size and a half."""
    views = [F.avg_pool2d(picture, 4)]
    for each in (picture, F.avg_pool2d(picture, 2)):
        views += [each.diff(dim=-1), each.diff(dim=-2)]
        views += [each[..., 1:, 1:] - each[..., :-1, :-1], each[..., 1:, :-1] - each[..., :-1, 1:]]
    return views


def local_size(view: Tensor, window: int, stride: int) -> Tensor:
    """Root mean square over the channels and windows of so many positions a side."""
    return F.avg_pool2d((view**2).mean(1, keepdim=True), window, stride).add(1e-6).sqrt()


def energy_score(one: Tensor, other: Tensor, target: Tensor) -> Tensor:
    """The energy score of two samples (Gneiting and Raftery 2007, "Strictly proper scoring rules", equation 22), as a
    mean over patches of the target's `bands`, each relative to how much `target` holds of it thereabouts: grain
    costs most where the target has edges or nothing, least where it is texture. So weighted it is not strictly
    proper any more, and may favour faint samples. All (N, C, H, W)."""
    score = []
    for a, b, c in zip(bands(one), bands(other), bands(target), strict=True):
        close = 0.5 * (local_size(a - c, 4, 2) + local_size(b - c, 4, 2)) - 0.5 * local_size(a - b, 4, 2)
        held = local_size(c, min(WINDOW, *c.shape[-2:]), 4)
        held = F.interpolate(held, close.shape[-2:], mode="bilinear")
        score.append((close / (held + 0.1 * held.mean())).mean())
    return torch.stack(score).mean()


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
        terms = {"denoising": denoising_loss(output, residual, weight)}
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
