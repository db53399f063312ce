"""Cheap pictures of what a model is drawing, from its latents by a linear map.

`python -m ldm.preview --pack drawings.safetensors --model ldm/weights` fits the map of a model on drawings by least
squares and writes it beside the weights.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from sr3.mistakes import told
from sr3.saving import open_to_others

FILE = "preview.safetensors"
MEASURED = 200  # drawings that measure a map and are not fitted
KERNEL = 3  # latents around each that its pixels are drawn from


class NoPreview(ValueError):
    """Latents of a kind that no map is made for."""


@dataclass(frozen=True)
class LatentMap:
    """`weight` (3·patch², C, k, k) and `bias` (3·patch²): each latent position becomes patch × patch pixels."""

    weight: Tensor
    bias: Tensor

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w) as the sampler has them to images (N, 3, patch·h, patch·w), about in [-1, 1]."""
        patch = round((len(self.bias) / 3) ** 0.5)
        half = self.weight.shape[-1] // 2
        padded = F.pad(latents.float().cpu(), (half,) * 4, mode="replicate")
        return F.pixel_shuffle(F.conv2d(padded, self.weight, self.bias), patch)


def fit_map(latents: Tensor, images: Tensor, kernel: int = KERNEL, ridge: float = 1e-3) -> LatentMap:
    """The linear map with the least squared error from latents (N, C, h, w) to images (N, 3, H, W) in [-1, 1], H a
    multiple of h. `ridge` times the number of positions keeps directions that the latents do not show at zero."""
    patch = images.shape[-1] // latents.shape[-1]
    channels, half = latents.shape[1], kernel // 2
    seen = F.unfold(F.pad(latents.double(), (half,) * 4, mode="replicate"), kernel)  # (N, C·k², h·w)
    seen = seen.movedim(1, 2).flatten(0, 1)
    wanted = F.pixel_unshuffle(images.double(), patch).flatten(2).movedim(1, 2).flatten(0, 1)
    middle, level = seen.mean(0), wanted.mean(0)
    seen, wanted = seen - middle, wanted - level
    square = seen.T @ seen + ridge * len(seen) * torch.eye(seen.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(square, seen.T @ wanted)  # (C·k², 3·patch²)
    weight = solved.T.reshape(-1, channels, kernel, kernel)
    return LatentMap(weight.float().contiguous(), (level - middle @ solved).float())


@torch.no_grad()
def encode(autoencoder: Any, images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] to latents as the sampler has them, on the CPU: scaled, and shifted where the
    model shifts. Takes any autoencoder of diffusers' text-to-image pipelines."""
    parameter = next(autoencoder.parameters())
    encoded = autoencoder.encode(images.to(parameter))
    latents = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    shift = autoencoder.config.get("shift_factor") or 0.0
    return (latents.float().cpu() - shift) * autoencoder.config.scaling_factor


def fit_plain(autoencoder: Any) -> LatentMap:
    """The fall-back for a model without a map of its own: one pixel a position, fitted on eight soft patterns of
    random colours that go once through its encoder. It shows colours and large shapes."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 4, 4, generator=draw) * 2 - 1
    images = F.interpolate(coarse, size=128, mode="bilinear", align_corners=False)
    latents = encode(autoencoder, images)
    return fit_map(latents, F.interpolate(images, size=latents.shape[-2:], mode="area"), kernel=1)


def latent_map(pipeline: DiffusionPipeline) -> LatentMap:
    """The map of the pipeline's latents: `preview.safetensors` of its directory, or else `fit_plain`, made once for
    each autoencoder and kept with it. Call it after loading where the first preview should not wait. Raises NoPreview,
    at once after the first time, where there is no autoencoder that takes images (N, 3, H, W)."""
    if getattr(pipeline, "vae", None) is None:
        raise NoPreview(f"{type(pipeline).__name__} has no autoencoder")
    found: LatentMap | NoPreview | None = getattr(pipeline.vae, "latent_map", None)
    if found is None:
        path = Path(str(pipeline.config.get("_name_or_path", ""))) / FILE
        found = load_map(path) if path.is_file() else None
        if found is None or found.weight.shape[1] != pipeline.vae.config.latent_channels:
            try:
                found = fit_plain(pipeline.vae)
            except (AttributeError, TypeError, ValueError) as error:  # those of video models and of Flux 2
                found = NoPreview(f"{type(pipeline.vae).__name__}: {error}")
        pipeline.vae.latent_map = found
    if isinstance(found, NoPreview):
        raise found
    return found


def load_map(path: Path) -> LatentMap:
    tensors = load_file(path)
    return LatentMap(tensors["weight"].float(), tensors["bias"].float())


def unpack(pipeline: DiffusionPipeline, latents: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Latents (N, C, h, w) of those that a transformer such as Flux's has as a row of 2×2 patches (N, L, 4C).

    `size` is the picture's height and width in pixels; None takes it for square.
    """
    if latents.ndim == 4:
        return latents
    factor = pipeline.vae_scale_factor
    side = round(latents.shape[1] ** 0.5) * 2 * factor
    height, width = size or (side, side)
    return pipeline._unpack_latents(latents, height, width, factor)


@torch.no_grad()
def preview(pipeline: DiffusionPipeline, latents: Tensor, size: tuple[int, int] | None = None) -> np.ndarray:
    """A cheap picture of the model's current estimate x₀, uint8 RGB (N, H, W, 3), for `callback_on_step_end`:

        lambda pipeline, step, timestep, values: show(preview(pipeline, values["latents"])) or values

    The estimate is the one that a scheduler of `ldm.schedulers.with_scheduler` keeps; with another scheduler the noisy
    `latents` themselves are shown. H and W are a fixed multiple of the latents': the bundled model's map gives whole
    pictures, `fit_plain`'s gives one pixel a position. `size`: see `unpack`.
    """
    kept = getattr(pipeline.scheduler, "last_estimate", None)
    shown = latents if kept is None or kept.shape != latents.shape else kept
    images = latent_map(pipeline)(unpack(pipeline, shown, size))
    return images.add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class PreviewConfig:
    pack: Path
    """The drawings that python -m ldm.corpus made."""
    model: Path = Path(__file__).parent / "weights"
    """The pipeline directory; the map is written into it."""
    drawings: int = 3000
    """How many to fit on; the next 200 measure the map."""


def write_map(config: PreviewConfig) -> None:
    """Fit the map and write it. Raises ValueError for too few drawings, and where the model or they cannot be read."""
    from ldm.data import load_pack, place, sample_placement
    from ldm.loading import load

    autoencoder = load(config.model, "cpu").vae
    pictures, records, _ = load_pack(config.pack)
    if len(records) <= MEASURED or config.drawings < 1:
        few = f"{config.drawings} of {len(records)} drawings"
        raise ValueError(f"the map would be fitted to {few}, without the {MEASURED} that measure it: too few")
    order = np.random.default_rng(0).permutation(len(records))[: config.drawings + MEASURED]
    placed = [place(pictures[i], records[i], sample_placement(np.random.default_rng(i), records[i])) for i in order]
    images = torch.from_numpy(np.stack(placed)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    latents = torch.cat([encode(autoencoder, part) for part in images.split(128)])
    found = fit_map(latents[:-MEASURED], images[:-MEASURED])
    save_file({"weight": found.weight.half(), "bias": found.bias.half()}, config.model / FILE)
    open_to_others(config.model / FILE)
    squared = ((found(latents[-MEASURED:]).clamp(-1, 1) - images[-MEASURED:]) ** 2).flatten(1).mean(1)
    print(f"{config.model / FILE}: {float(10 * (4 / squared).log10().mean()):.1f} dB on {MEASURED} other drawings")


def main(config: PreviewConfig) -> int:
    try:
        write_map(config)
    except Exception as error:
        return told("ldm.preview", error, "a smaller number of --drawings")
    return 0


if __name__ == "__main__":
    from degradation.arguments import run_command

    sys.exit(run_command(main, PreviewConfig, "ldm.preview", __doc__))
