"""The first stage: a KL autoencoder (Kingma and Welling, arXiv 1312.6114; Rombach et al., arXiv 2112.10752)."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from ldm.captions import Drawing
from ldm.data import FACTOR, load_pack, place, sample_placement
from ldm.loading import resolve_device
from ldm.models import LATENT_CHANNELS, build_autoencoder, grow_autoencoder, load_autoencoder
from sr3.loop import base_digest, digest, fit, generator, mixed, own_device
from sr3.saving import open_to_others

if TYPE_CHECKING:
    from ldm.train import AutoencoderConfig


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 RGB (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def placed_batch(pictures: np.ndarray, records: list[Drawing], chosen: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
    """The chosen drawings, each placed by the generator of (*key, position): uint8 RGB (len(chosen), S, S, 3)."""
    placed = []
    for position, index in enumerate(chosen):
        placement = sample_placement(np.random.default_rng([*key, position]), records[index])
        placed.append(place(pictures[index], records[index], placement))
    return np.stack(placed)


def lower_bound(target: Tensor, output: Tensor, mean: Tensor, log_variance: Tensor) -> dict[str, Tensor]:
    """The terms of the negative evidence lower bound in nats per picture, with a Laplace decoder on 8-bit levels whose
    scale is the one that fits these pictures best: `reconstruction` is E_q[-log p(x|z)] and `kl` is KL(q(z|x) ||
    N(0, I)) (Kingma and Welling, equation 10). Both are reported; of them only `kl` is in `reconstruction_loss`.
    Images (N, 3, H, W) in [-1, 1]."""
    count = target.shape[0]
    error = (output - target).abs().mean()
    scale = error.detach().clamp(min=1e-4)  # the maximum-likelihood scale of the Laplace distribution
    size = target[0].numel()
    reconstruction = size * (error / scale + torch.log(2 * scale) - math.log(2 / 255))
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() / count
    return {"absolute_error": error, "reconstruction": reconstruction, "kl": kl}


class Autoencoding(nn.Module):
    """One forward pass of training: images, noise and its least standard deviation (N, 1, 1, 1), in units of the
    latents', to output, mean and log-variance. The latents get the noise of the posterior, or more where that is less
    than the least.

    With `decoder_only` the encoder is frozen: the latents, and so a U-Net that was trained on them, stay valid. `std`
    is the latents' standard deviation where it stays what it was; else it is that of the means at hand.
    """

    def __init__(self, autoencoder: AutoencoderKL, decoder_only: bool = False, std: float | None = None) -> None:
        super().__init__()
        self.autoencoder, self.decoder_only, self.std = autoencoder, decoder_only, std
        for part in (autoencoder.encoder, autoencoder.quant_conv):
            part.requires_grad_(not decoder_only)

    def forward(self, images: Tensor, noise: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            posterior = self.autoencoder.encode(images).latent_dist
        std = posterior.mean.detach().std(correction=0) if self.std is None else self.std
        latents = posterior.mean + torch.maximum(posterior.std, std * least) * noise
        return self.autoencoder.decode(latents).sample, posterior.mean, posterior.logvar


def noise_levels(batch: int, largest: float, draw: torch.Generator) -> Tensor:
    """Standard deviations of noise on latents of unit variance, (batch, 1, 1, 1): uniform up to `largest` for three
    pictures of four, none for the fourth. A decoder that has seen noise makes plain areas of latents that a U-Net
    did not get quite right (Yang et al., arXiv 2507.15856)."""
    uniform, kept = torch.rand((2, batch, 1, 1, 1), generator=draw)
    return largest * uniform * (kept < 0.75)


def gradients(images: Tensor) -> Tensor:
    """Differences of neighbouring pixels along both axes, flattened: what makes edges sharp."""
    across, down = images.diff(dim=-1), images.diff(dim=-2)
    return torch.cat([across.flatten(1), down.flatten(1)], dim=1)


def psnr(target: Tensor, output: Tensor) -> float:
    """Mean PSNR in dB of images in [-1, 1], over the pictures."""
    error = ((output.clamp(-1, 1) - target) ** 2).flatten(1).mean(1)
    return float((10 * torch.log10(4 / error)).mean())


@torch.no_grad()
def encode_all(autoencoder: AutoencoderKL, placed: np.ndarray, batch: int = 256) -> Tensor:
    """Mean latents, times the scaling factor, of uint8 RGB pictures (N, S, S, 3)."""
    parameter = next(autoencoder.parameters())
    chunks = []
    for start in range(0, len(placed), batch):
        images = to_tensor(placed[start : start + batch]).to(parameter.device)
        with mixed(parameter.device):
            chunks.append(autoencoder.encode(images).latent_dist.mean.float().cpu())
    return torch.cat(chunks) * autoencoder.config.scaling_factor


def starting_autoencoder(config: "AutoencoderConfig", side: int) -> tuple[AutoencoderKL, AutoencoderKL | None]:
    """The autoencoder to train, and the one whose latents its first channels keep where it grows from that one."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        if not config.init:
            return build_autoencoder(side, config.latent_channels or LATENT_CHANNELS), None
        old = load_autoencoder(config.init)
        if config.latent_channels in (None, old.config.latent_channels):
            return old, None
        return grow_autoencoder(old, config.latent_channels), old


def reconstruction_loss(images: Tensor, output: Tensor, kl: Tensor, kl_weight: float) -> Tensor:
    """What is minimised, of images (N, 3, H, W) in [-1, 1]: the mean absolute error, the same of neighbouring pixels'
    differences, the pictures' mean logarithm of the squared error (their PSNR), and `kl` per latent number."""
    logarithm = ((output - images) ** 2).flatten(1).mean(1).clamp(min=1e-6).log().mean()
    edges = (gradients(output) - gradients(images)).abs().mean()
    return (output - images).abs().mean() + edges + 0.1 * logarithm + kl_weight * kl


def train_autoencoder(config: "AutoencoderConfig") -> None:
    """Train, and write OUT/vae with its scaling factor set so that latents have unit variance (it stays what it was
    where the latents stay, with `decoder_only` or more of them). Raises ValueError for `decoder_only` without `init`
    or with more latents, and for a pack of which nothing is held out."""
    pictures, records, _ = load_pack(config.pack)
    seen = np.array([i for i, r in enumerate(records) if not r.held_out])
    weights = np.array([2.0 if records[i].everyday else 1.0 for i in seen])
    kept = np.array([i for i, r in enumerate(records) if r.held_out])[:256]
    if not len(kept):
        raise ValueError(f"{config.pack} has no drawings that are held out, which measure the autoencoder")
    device = resolve_device(own_device(config.loop.device))
    autoencoder, held = starting_autoencoder(config, pictures.shape[1])
    if config.decoder_only and (held or not config.init):
        raise ValueError("decoder_only keeps the encoder that it starts from: give init, a vae directory, and no more")
    first = held.to(device).config.latent_channels if held else 0
    autoencoder.set_attn_processor(AttnProcessor())
    std = 1 / autoencoder.config.scaling_factor if config.decoder_only or held else None
    # contiguous: group norm's backward is slow on channels-last
    model = Autoencoding(autoencoder, config.decoder_only, std).to(device)
    side = pictures.shape[1] // FACTOR
    latent = (autoencoder.config.latent_channels, side, side)
    held_out = to_tensor(placed_batch(pictures, records, kept, (config.seed, 1)))

    def loss(run: nn.Module, step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([config.seed, 0, step])
        chosen = rng.choice(seen, config.loop.batch_size, p=weights / weights.sum())
        images = to_tensor(placed_batch(pictures, records, chosen, (config.seed, 0, step))[rows]).to(device)
        draw = generator(config.seed, step)
        noise = torch.randn((config.loop.batch_size, *latent), generator=draw)[rows].to(device)
        least = noise_levels(config.loop.batch_size, config.latent_noise, draw)[rows].to(device)
        with mixed(device):
            output, mean, log_variance = run(images, noise, least)
        terms = lower_bound(images, output.float(), mean.float(), log_variance.float())
        value = reconstruction_loss(images, output.float(), terms["kl"] / mean[0].numel(), config.kl_weight)
        if held:
            with torch.no_grad(), mixed(device):
                target = held.encode(images).latent_dist.mean
            terms["held"] = F.mse_loss(mean[:, :first].float(), target.float())
            value = value + terms["held"]
        return value, {k: float(v.detach()) for k, v in terms.items()}

    @torch.no_grad()
    def on_save(step: int) -> dict[str, Tensor]:
        means = encode_all(autoencoder, ((held_out.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy())
        found = float((means / autoencoder.config.scaling_factor).std())
        if std is None:
            autoencoder.register_to_config(scaling_factor=round(1 / found, 4))
        autoencoder.save_pretrained(config.out / "vae", max_shard_size="15MB")
        open_to_others(config.out / "vae")
        output = autoencoder(held_out.to(device)).sample.float().cpu()
        print(f"\nstep {step}: held-out PSNR {psnr(held_out, output):.2f} dB, latent std {found:.3f}", flush=True)
        pairs = torch.cat([held_out[:16], output[:16].clamp(-1, 1)]).add(1).div(2)
        return {"held_out": torch.cat([torch.cat(list(row), dim=2) for row in pairs.split(8)], dim=1)}

    contents = digest(config.pack) | base_digest("init", config.init, config.out)
    fit(model, loss, config, on_save, contents=contents)
