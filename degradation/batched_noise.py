"""Noise for a group of images, each with its own parameters. Needs torch.

Images are (n, 3, H, W), the first ``sizes[i]`` pixels of image i count, and steps are one for each.
Without a generator the noise is drawn on the host, from the steps' seeds; with one, on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from degradation.batched_borders import Size, mirror_pad
from degradation.camera import DEMOSAIC_FILTERS, RED_POSITIONS, check_camera
from degradation.noise import LUMA, gaussian_field, poisson_noise
from degradation.plan import CameraNoise, GaussianNoise, PoissonNoise, SpeckleNoise


def gaussian_noise_batch(
    images: Tensor,
    sizes: Sequence[Size],
    steps: Sequence[GaussianNoise | SpeckleNoise],
    generator: torch.Generator | None,
) -> Tensor:
    """Gaussian or speckle noise."""
    level = images.new_tensor([step.level / 255 for step in steps])[:, None, None, None]
    if generator is None:
        field = images.new_zeros(images.shape)
        for i, (step, (height, width)) in enumerate(zip(steps, sizes, strict=True)):
            rng = np.random.default_rng(step.seed)
            drawn = gaussian_field(rng, (height, width, 3), step.kind, step.mixing)
            field[i, :, :height, :width] = _to_tensor(drawn, images)
    else:
        white = torch.randn(images.shape, generator=generator, device=images.device)
        mixing = images.new_tensor(np.stack([_mixing(step) for step in steps]))
        field = torch.einsum("ncd,ndhw->nchw", mixing, white)
    factor = images if isinstance(steps[0], SpeckleNoise) else 1.0
    return (images + factor * (level * field)).clamp(0, 1)


def _mixing(step: GaussianNoise | SpeckleNoise) -> np.ndarray:
    """The matrix that makes this kind of noise out of three independent values."""
    if step.kind == "grey":
        return np.array([[1, 0, 0]] * 3, np.float32)
    return np.asarray(step.mixing if step.kind == "correlated" else np.eye(3), np.float32)


def poisson_noise_batch(
    images: Tensor,
    sizes: Sequence[Size],
    steps: Sequence[PoissonNoise],
    generator: torch.Generator | None,
) -> Tensor:
    """Photon noise. From the plans' seeds it is drawn on the host, for the images as they are there."""
    if generator is None:
        result = images.clone()
        for i, (step, (height, width)) in enumerate(zip(steps, sizes, strict=True)):
            image = np.ascontiguousarray(images[i, :, :height, :width].permute(1, 2, 0).cpu().numpy())
            noisy = poisson_noise(image, np.random.default_rng(step.seed), step.peak, step.grey)
            result[i, :, :height, :width] = _to_tensor(noisy, images)
        return result
    peak = images.new_tensor([step.peak for step in steps])[:, None, None, None]
    grey = torch.tensor([step.grey for step in steps], device=images.device)[:, None, None, None]
    luma = torch.einsum("c,nchw->nhw", images.new_tensor(LUMA), images)[:, None].expand_as(images)
    mean = torch.where(grey, luma, images)
    drawn = torch.poisson((mean * peak).contiguous(), generator=generator) / peak
    added = torch.where(grey, (drawn - mean)[:, :1], drawn - mean)
    return (images + added).clamp(0, 1)


def camera_noise_batch(
    images: Tensor,
    sizes: Sequence[Size],
    steps: Sequence[CameraNoise],
    generator: torch.Generator | None,
) -> Tensor:
    """Sensor noise, through the signal processor there and back."""
    for s in steps:
        check_camera(s.pattern, (s.shot, s.read), (s.red_gain, s.blue_gain, s.digital_gain))
    height, width = images.shape[2:]
    gains = np.array([[s.red_gain, 1, s.blue_gain] for s in steps]) * [[s.digital_gain] for s in steps]
    to_camera = np.array([s.camera_matrix for s in steps])
    there = images.new_tensor(to_camera / gains[:, :, None])
    back = images.new_tensor(np.linalg.inv(to_camera) * gains[:, None, :])
    colours = torch.einsum("ncd,ndhw->nchw", there, _to_linear(images))
    red, blue, red_row = _bayer(steps, height, width, images.device)
    raw = torch.where(red, colours[:, 0], torch.where(blue, colours[:, 2], colours[:, 1]))
    shot = images.new_tensor([step.shot for step in steps])[:, None, None]
    read = images.new_tensor([step.read for step in steps])[:, None, None]
    if generator is None:
        field = torch.zeros_like(raw)
        for i, (step, (h, w)) in enumerate(zip(steps, sizes, strict=True)):
            drawn = np.random.default_rng(step.seed).standard_normal((h, w), dtype=np.float32)
            field[i, :h, :w] = torch.from_numpy(drawn).to(images)
    else:
        field = torch.randn(raw.shape, generator=generator, device=images.device)
    raw = (raw + torch.sqrt(shot * raw.clamp(min=0) + read) * field).clamp(max=1)
    filters = images.new_tensor(DEMOSAIC_FILTERS)[:, None]
    green, in_row, in_column, opposite = F.conv2d(mirror_pad(raw[:, None], sizes, 2), filters).unbind(1)
    at_green_red = torch.where(red_row, in_row, in_column)
    at_green_blue = torch.where(red_row, in_column, in_row)
    demosaiced = [
        torch.where(red, raw, torch.where(blue, opposite, at_green_red)),
        torch.where(red | blue, green, raw),
        torch.where(blue, raw, torch.where(red, opposite, at_green_blue)),
    ]
    return _to_display(torch.einsum("ncd,ndhw->nchw", back, torch.stack(demosaiced, dim=1)))


def _bayer(
    steps: Sequence[CameraNoise], height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Which pixels are red, which are blue, which rows hold red: (n, H, W), (n, H, W), (n, H, 1)."""
    positions = torch.tensor([RED_POSITIONS[step.pattern] for step in steps], device=device)
    red_row = (torch.arange(height, device=device) % 2 == positions[:, :1])[:, :, None]
    red_column = (torch.arange(width, device=device) % 2 == positions[:, 1:])[:, None, :]
    return red_row & red_column, ~red_row & ~red_column, red_row


def _to_linear(images: Tensor) -> Tensor:
    untoned = 0.5 - torch.sin(torch.asin(1 - 2 * images.clamp(0, 1)) / 3)
    return untoned.clamp(min=1e-8) ** 2.2


def _to_display(linear: Tensor) -> Tensor:
    x = linear.clamp(1e-8, 1) ** (1 / 2.2)
    return (x * x * (3 - 2 * x)).clamp(0, 1)


def _to_tensor(image: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(like)
