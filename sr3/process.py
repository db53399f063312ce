"""The diffusion process of SR3 (Saharia et al., arXiv 2104.07636) as functions over tensors.

`gamma` is the signal's share of the variance (the paper's γ; elsewhere ᾱ), of shape (N,), in [0, 1].
"""

import math
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_RESIDUAL = 6.0  # in expected standard deviations: what is further out would drown the rest of a batch


def cosine_gamma(time: Tensor) -> Tensor:
    """γ(t) = cos²(πt/2) for t in [0, 1]: 1 (no noise) at 0, 0 (only noise) at 1.
    Nichol and Dhariwal, arXiv 2102.09672, equation 17, without its offset."""
    return torch.cos(0.5 * math.pi * time) ** 2


def sample_gamma(schedule: Tensor, generator: torch.Generator, count: int) -> Tensor:
    """γ of `count` training samples: t uniform, then γ uniform in (γ_{t-1}, γ_t) (SR3, section 2.4).

    `schedule` (T + 1,) is γ_0 = 1, γ_1, …, γ_T on the CPU. Returns (count,).
    """
    step = torch.randint(1, len(schedule), (count,), generator=generator)
    share = torch.rand(count, generator=generator)
    return schedule[step] + share * (schedule[step - 1] - schedule[step])


def add_noise(sample: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
    """√γ y₀ + √(1 − γ) ε (SR3, equation 5). `sample` and `noise` (N, C, H, W), `gamma` (N,)."""
    gamma = gamma.view(-1, 1, 1, 1)
    return gamma.sqrt() * sample + (1 - gamma).sqrt() * noise


def standardised(high_res: Tensor, mean: Tensor, scale: Tensor, patch: int) -> Tensor:
    """The residual d = (high_res − μ)/s that the denoiser learns, unshuffled: (N, 3, H, W) and s (N, 1, H, W) to
    (N, 3·patch², H/patch, W/patch). Cut off at LARGEST_RESIDUAL."""
    residual = ((high_res - mean) / scale).clamp(-LARGEST_RESIDUAL, LARGEST_RESIDUAL)
    return F.pixel_unshuffle(residual, patch)


def augment(low_res: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Noise conditioning augmentation (Ho et al., arXiv 2106.15282, section 4): variance-preserving noise of
    standard deviation `level` (N,) in [0, 1), divided by √(1 − level²) so that colours keep their place."""
    level = level.view(-1, 1, 1, 1)
    return low_res + level / (1 - level**2).sqrt() * noise


def project(
    high_res: Tensor,
    low_res: Tensor,
    reduce: Callable[[Tensor], Tensor],
    enlarge: Callable[[Tensor], Tensor],
    times: int,
    on_pass: Callable[[], None] = lambda: None,
) -> Tensor:
    """Back-projection (Irani and Peleg, CVGIP 53(3), 1991): add what the reduction of `high_res` misses of
    `low_res`, `times` times. Both in [-1, 1]. `on_pass()` is called after each time and may raise to stop."""
    for _ in range(times):
        high_res = (high_res + enlarge(low_res - reduce(high_res))).clamp_(-1, 1)
        on_pass()
    return high_res


class HasSchedule(Protocol):
    """What `scheduler_gamma` needs of a diffusers scheduler."""

    alphas_cumprod: Tensor


def scheduler_gamma(scheduler: HasSchedule, timestep: Tensor | float) -> Tensor:
    """γ at a timestep of a diffusers scheduler, between its integer steps too: σ = √((1 − γ)/γ) is interpolated
    linearly, as the schedulers that take fractional timesteps do. Returns a scalar on the CPU in float32."""
    gammas = scheduler.alphas_cumprod.double().cpu().clamp(min=1e-12)
    sigmas = ((1 - gammas) / gammas).sqrt()
    time = min(max(float(timestep), 0.0), len(sigmas) - 1.0)
    low = int(time)
    high = min(low + 1, len(sigmas) - 1)
    sigma = sigmas[low] + (time - low) * (sigmas[high] - sigmas[low])
    return (1 / (1 + sigma**2)).float()


def visited_gammas(scheduler: Any, counts: Sequence[int]) -> list[Tensor]:
    """For each number of steps the γ (steps,) that a diffusers scheduler visits, from noise to picture: without the
    pure noise that comes before them, of which the denoiser is not asked."""
    found = []
    for count in counts:
        copy = type(scheduler).from_config(scheduler.config)
        copy.set_timesteps(count + 1)
        found.append(torch.stack([scheduler_gamma(copy, t) for t in copy.timesteps[1:]]))
    return found


def sample_visited(paths: Sequence[Tensor], generator: torch.Generator, count: int) -> Tensor:
    """γ (count,) of training samples for a sampler of few steps: one of `visited_gammas`, then a place on it."""
    pick = torch.randint(len(paths), (count,), generator=generator).tolist()
    share = torch.rand(count, generator=generator)
    return torch.stack([paths[i][int(s * len(paths[i]))] for i, s in zip(pick, share, strict=True)])


def denoising_loss(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of a prediction of ε or of y₀ (SR3, equation 6 with p = 2), weighted if wished."""
    error = (output - target) ** 2
    return error.mean() if weight is None else (error * weight).mean()


def psnr_loss(mean: Tensor, target: Tensor) -> Tensor:
    """Mean over the pictures (N, C, H, W) of log(MSE + 1e-4): PSNR but for sign and factor (arXiv 2105.06086,
    equation 5); the floor keeps flat pictures from outweighing all others."""
    return ((mean - target) ** 2).mean((1, 2, 3)).add(1e-4).log().mean()


def ssim_loss(mean: Tensor, target: Tensor) -> Tensor:
    """1 − SSIM of the luminance of pictures (N, 3, H, W) in [-1, 1] (Wang et al., IEEE TIP 13(4), 2004, equation 13),
    in uniform windows of 8×8: what it costs to leave blotches where `target` is smooth (arXiv 1511.08861)."""
    weights = mean.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    a, b = (((x + 1) * weights).sum(1, keepdim=True) for x in (mean, target))  # in [0, 2]: SSIM wants no sign

    def average(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 8, 4)

    mean_a, mean_b = average(a), average(b)
    spread = average(a * a) + average(b * b) - mean_a**2 - mean_b**2
    together = average(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return 1 - (light * (2 * together + c2) / (spread + c2)).mean()


def scale_loss(log_scale: Tensor, squared_error: Tensor) -> Tensor:
    """Negative log-likelihood, per number, of errors under a Gaussian of standard deviation exp(log_scale).

    Both (N, 1, h, w): `squared_error` is the mean over what shares the scale, and is not differentiated.
    """
    return (log_scale + 0.5 * squared_error.detach() * (-2 * log_scale).exp()).mean()


class Noise:
    """Standard normal noise of whole pictures in float32 (N, C, H, W), drawn once and kept: each picture's plane by
    plane from its own CPU generator.

    Parts, as copies on `device`, are named by low-resolution rows and columns, each of `ratio` positions; a part's
    end is rounded up to the `multiple` to which the picture was padded.
    """

    def __init__(
        self,
        shape: Sequence[int],
        generators: Sequence[torch.Generator],
        device: torch.device,
        ratio: int = 1,
        multiple: int = 1,
    ) -> None:
        self.shape, self.device, self.ratio, self.multiple = shape, device, ratio, multiple
        _, planes, height, width = shape
        size = (len(generators), planes, height * ratio, width * ratio)
        self.values = torch.empty(size, dtype=torch.float32, device=generators[0].device)
        for picture, generator in zip(self.values, generators, strict=True):
            for plane in picture:
                plane.normal_(generator=generator)

    def __getitem__(self, where: tuple[EllipsisType, slice, slice]) -> Tensor:
        rows, columns = (self._positions(part) for part in where[1:])
        return self.values[..., rows, columns].to(self.device, copy=True)

    def _positions(self, part: slice) -> slice:
        if part.stop is None:
            return part
        return slice(part.start * self.ratio, -(-part.stop // self.multiple) * self.multiple * self.ratio)
