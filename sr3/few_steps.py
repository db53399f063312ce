"""The last training phase: the denoiser at the very noise levels that a sampler of few steps visits, and against a
small patch discriminator on what that sampler makes. The encoder, and with it 0 steps, stays as it is."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from sr3.model import SCALE, LowResEncoder, SR3UNet, reduce, upsample
from sr3.process import add_noise, augment, denoising_loss, scheduler_gamma, standardised


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


class Discriminator(nn.Module):
    """Scores of patches (PatchGAN, arXiv 1611.07004) with spectral normalisation (arXiv 1802.05957): a picture beside
    its enlarged low_res, both (N, 3, H, W), to (N, 1, H/4, W/4). Positive for what looks real."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        sizes = [(6, channels, 3, 1), (channels, 2 * channels, 4, 2), (2 * channels, 4 * channels, 4, 2)]
        layers: list[nn.Module] = []
        for inner, outer, kernel, stride in sizes:
            layers += [spectral_norm(nn.Conv2d(inner, outer, kernel, stride, 1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(4 * channels, 1, 3, padding=1)))

    def forward(self, picture: Tensor, enlarged: Tensor) -> Tensor:
        return self.layers(torch.cat([picture, enlarged], dim=1))


class FewSteps(nn.Module):
    """Encoder (frozen), denoiser and, with `adversarial`, discriminator as one module, for one pass of training."""

    def __init__(self, encoder: LowResEncoder, unet: SR3UNet, adversarial: float) -> None:
        super().__init__()
        self.encoder, self.unet, self.adversarial = encoder.requires_grad_(False), unet, adversarial
        self.discriminator = Discriminator() if adversarial else None

    def forward(
        self, low_res: Tensor, high_res: Tensor, level: Tensor, gamma: Tensor, noise: Tensor, path: Tensor
    ) -> dict[str, Tensor]:
        """The terms of the loss: `denoising` at `gamma` (N,), and of a picture sampled along `path` (steps,) from
        `noise` (N, 48, h, w) its `content` (what it reduces to) and what the `discriminator` and `adversarial` say."""
        with torch.no_grad():
            encoded = self.encoder(low_res, level)
        scale = F.interpolate(encoded.log_scale.float().exp(), scale_factor=float(SCALE))
        mean = encoded.mean.float()
        residual = standardised(high_res, mean, scale, SCALE)
        output = self.unet(add_noise(residual, gamma, noise), encoded.features, gamma).float()
        weight = encoded.log_scale.float().exp()
        terms = {"denoising": denoising_loss(output, residual, weight / weight.mean())}
        if self.discriminator is None:
            return terms
        made = mean + scale * F.pixel_shuffle(self._sample(noise, encoded.features, path), SCALE)
        enlarged = upsample(low_res.float())
        terms["content"] = (reduce(made) - reduce(high_res)).abs().mean()
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        judged = torch.func.functional_call(self.discriminator, frozen, (made, enlarged))
        terms["adversarial"] = -judged.float().mean()
        fake, real = self.discriminator(made.detach(), enlarged), self.discriminator(high_res, enlarged)
        terms["discriminator"] = (F.relu(1 + fake.float()) + F.relu(1 - real.float())).mean()  # hinge
        return terms

    def _sample(self, noise: Tensor, features: Tensor, path: Tensor) -> Tensor:
        """ŷ₀ after all steps; only the last is differentiated."""
        noisy = noise
        for gamma, gamma_next in pairwise(path):
            with torch.no_grad():
                sample = self.unet(noisy, features, gamma.expand(len(noisy))).float()
            noisy = step(noisy, sample, gamma, gamma_next)
        return self.unet(noisy, features, path[-1].expand(len(noisy))).float()

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """What is minimised, by denoiser and discriminator at once: neither's terms reach the other's weights."""
        if self.discriminator is None:
            return terms["denoising"]
        made = terms["content"] + self.adversarial * terms["adversarial"]
        return terms["denoising"] + made + terms["discriminator"]


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
    noise = torch.randn(len(low_res), 3 * SCALE**2, *low_res.shape[-2:], generator=generator).to(device)
    low_res = augment(low_res, level, torch.randn(low_res.shape, generator=generator).to(device))
    with torch.autocast(device.type, torch.bfloat16):
        return model(low_res, high_res, level, gamma.to(device), noise, path.to(device))
