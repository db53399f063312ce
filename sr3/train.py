"""Train an SR3 pipeline: `python -m sr3.train --data crops.safetensors --out run/sr3`.

`data` is a pack that `python -m sr3.corpus` made, or a folder of pictures. OUT/pipeline is the result: a
diffusers directory. The same command again goes on where the last one stopped.
"""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degradation.arguments import from_json, parse_arguments
from sr3.data import Mix, draw_record, load_pack, make_sample
from sr3.loop import LoopConfig, base_digest, digest, fit, generator, mixed, own_device
from sr3.mistakes import told
from sr3.model import SCALE, LowResEncoder, SR3UNet
from sr3.pipeline import SR3Pipeline, load, resolve_device
from sr3.presets import PRESETS, Preset, build, save
from sr3.process import (
    add_noise,
    augment,
    cosine_gamma,
    denoising_loss,
    psnr_loss,
    sample_gamma,
    sample_visited,
    scale_loss,
    ssim_loss,
    standardised,
    visited_gammas,
)


@dataclass(frozen=True)
class TrainConfig:
    data: Path
    """A pack of crops, or a folder of pictures."""
    out: Path
    preset: str = "bundled"
    """One of bundled, sr3-paper, sr3-paper-tiny."""
    init: Path | None = None
    """A pipeline directory whose weights to start from; its sizes are then trained, whatever those of the preset."""
    phase: str = "all"
    """all; encoder: the encoder alone, whose iterations then take half as long; few-steps: a last phase for the
    denoiser alone, from --init, at the noise levels of --few-steps."""
    few_steps: tuple[int, ...] = (1, 2, 4, 8)
    """The numbers of steps that the phase few-steps is for."""
    mean_loss: str = "l1"
    """What μ is trained on: l1; for a last stretch psnr (the logarithm of each crop's squared error), or psnr-ssim."""
    crop_size: int = 128
    """Pixels on a side of the training targets: a multiple of 32."""
    mix: Mix = field(default_factory=Mix)
    skip_bad: bool = False
    """With a folder: name unreadable files and go on, in place of stopping."""
    workers: int = 1
    """Threads that prepare the next batch."""
    seed: int = 0
    loop: LoopConfig = field(default_factory=LoopConfig)


class Cascade(nn.Module):
    """Encoder and denoiser (none: the encoder is trained alone) as one module, for one forward pass of training."""

    def __init__(self, encoder: LowResEncoder, unet: SR3UNet | None) -> None:
        super().__init__()
        self.encoder, self.unet = encoder, unet

    def forward(
        self, low_res: Tensor, high_res: Tensor, level: Tensor, gamma: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """μ (N, 3, 4h, 4w), log s (N, 1, h, w), the denoiser's output and the residual d (N, 3·patch², H, W)."""
        encoded = self.encoder(low_res, level)
        if self.unet is None:
            return encoded.mean, encoded.log_scale, None, None
        patch = self.unet.config.patch_size
        with torch.autocast(low_res.device.type, enabled=False):
            scale = F.interpolate(encoded.log_scale.detach().float().exp(), scale_factor=float(SCALE))
            residual = standardised(high_res, encoded.mean.detach().float(), scale, patch)
            noisy = add_noise(residual, gamma, noise)
        output = self.unet(noisy, encoded.features.detach(), gamma)
        return encoded.mean, encoded.log_scale, output, residual


def losses(
    model: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    draw: torch.Generator,
    draw_gamma: Callable[[torch.Generator, int], Tensor],
    paper: bool,
    mean_loss: str = "l1",
    of: int | None = None,
    rows: slice = slice(None),
) -> dict[str, Tensor]:
    """The terms of one step: `mean` (of μ), `scale` and, with a denoiser, `denoising`. `total` is their weighted sum;
    with a frozen encoder `denoising` alone, in which each noise level counts in units of its variance 1 − γ (SNR + 1
    weighting, arXiv 2202.00512, section 4).

    `mean_loss` is l1, psnr for a tenth of `psnr_loss`, or psnr-ssim for 0.3 · `ssim_loss` beside. `batch` is low_res
    (N, 3, h, w) and high_res (N, 3, 4h, 4w) in [-1, 1], and aug_level (N,): the `rows` of a step's `of` samples (all of
    them if None), for all of which is drawn, so that processes that share a step differ. `draw_gamma` makes γ (N,).
    """
    low_res, high_res, level = batch
    count, device = of or len(low_res), low_res.device
    patch = 1 if paper else SCALE
    gamma = draw_gamma(draw, count)[rows].to(device)
    shape = (count, 3 * patch**2, high_res.shape[-2] // patch, high_res.shape[-1] // patch)
    noise = torch.randn(shape, generator=draw)[rows].to(device)
    added = torch.randn((count, *low_res.shape[1:]), generator=draw)[rows].to(device)
    low_res = augment(low_res, level, added)
    with mixed(device):
        mean, log_scale, output, residual = model(low_res, high_res, level, gamma, noise)
    if paper:
        total = denoising_loss(output.float(), noise)
        return {"total": total, "denoising": total}
    mean, log_scale = mean.float(), log_scale.float()
    error = F.avg_pool2d(((high_res - mean) ** 2).mean(1, keepdim=True), SCALE)
    distance = (mean - high_res).abs().mean() if mean_loss == "l1" else psnr_loss(mean, high_res) / 10
    if mean_loss == "psnr-ssim":
        distance = distance + 0.3 * ssim_loss(mean, high_res)
    terms = {"mean": distance, "scale": scale_loss(log_scale, error)}
    total = 10 * terms["mean"] + 0.1 * terms["scale"]
    if output is None:
        return {"total": total, **terms}
    weight = log_scale.detach().exp()
    weight = weight / weight.mean() / (1 - gamma.view(-1, 1, 1, 1)).clamp(min=0.01)
    terms["denoising"] = denoising_loss(output.float(), residual, weight)
    learned = total if mean.requires_grad else 0
    return {"total": learned + terms["denoising"], **terms}


def check(config: TrainConfig) -> Preset:
    """The preset. Raises ValueError for settings that do not go together."""
    if config.preset not in PRESETS:
        raise ValueError(f"preset is {config.preset!r}; it must be one of {', '.join(PRESETS)}")
    if config.phase not in ("all", "encoder", "few-steps"):
        raise ValueError(f"phase is {config.phase!r}; it must be all, encoder or few-steps")
    if config.mean_loss not in ("l1", "psnr", "psnr-ssim"):
        raise ValueError(f"mean_loss is {config.mean_loss!r}; it must be l1, psnr or psnr-ssim")
    if config.phase == "few-steps" and config.init is None:
        raise ValueError("the phase few-steps needs --init")
    if config.phase != "all" and PRESETS[config.preset].paper:
        raise ValueError(f"the phase {config.phase} is not for the paper's presets")
    if not config.few_steps or min(config.few_steps) < 1:
        raise ValueError("few_steps must be numbers from 1 up")
    if config.crop_size < 32 or config.crop_size % 32:
        raise ValueError(f"crop_size is {config.crop_size}; it must be a multiple of 32")
    return PRESETS[config.preset]


def read_data(config: TrainConfig) -> tuple[np.ndarray, dict[str, str]]:
    """The crops (N, S, S, 3) of a pack, or cut from a folder, and digests of what they are from by name."""
    if config.data.is_dir():
        from sr3.corpus import CorpusConfig, collect

        corpus = CorpusConfig(config.out, (config.data,), (), size=max(192, config.crop_size), seed=config.seed)
        crops, sources, bad = collect(corpus)
        for line in bad:
            print(line, file=sys.stderr)
        if bad and not config.skip_bad:
            raise ValueError(f"{len(bad)} files could not be read; --skip-bad goes on without them")
        if not crops:
            raise ValueError(f"{config.data} holds no picture that crops could be cut from")
        found: defaultdict[str, Any] = defaultdict(hashlib.sha256)  # folders below may have pictures of one name
        for source in sources:
            found[source.file].update(source.sha256.encode())
        return np.stack(crops), {name: each.hexdigest()[:16] for name, each in found.items()}
    return load_pack(config.data)[0], digest(config.data)


def make_batch(config: TrainConfig, crops: np.ndarray, step: int, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """low_res, high_res (in [-1, 1]) and aug_level of the rows of one step's batch."""
    size = config.loop.batch_size
    pairs, levels = [], []
    for position in range(step * size, (step + 1) * size)[rows]:
        record = draw_record((config.seed, *divmod(position, len(crops))), crops, config.crop_size, config.mix)
        pairs.append(make_sample(record, crops, config.crop_size))
        levels.append(record.aug_level)
    low_res, high_res = (torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2) for side in zip(*pairs, strict=True))
    return low_res.mul(2).sub(1), high_res.mul(2).sub(1), torch.tensor(levels)


def train(config: TrainConfig) -> SR3Pipeline:
    """Train until the steps or the minutes are over; returns the pipeline with the averaged weights.

    Raises ValueError for settings that do not go together, and for data that cannot be used.
    """
    preset = check(config)
    crops, contents = read_data(config)
    if crops.shape[1] < config.crop_size:
        raise ValueError(f"{config.data} has crops of {crops.shape[1]} pixels; crop_size is {config.crop_size}")
    device = resolve_device(own_device(config.loop.device))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        pipeline = load(config.init, "cpu", "float32") if config.init else build(preset)
    if preset.paper == bool(pipeline.encoder.config.num_blocks):
        paper = sorted(name for name, each in PRESETS.items() if each.paper != preset.paper)
        raise ValueError(f"{config.init} is not of the preset {config.preset}; give --preset {' or '.join(paper)}")
    pipeline.encoder.requires_grad_(config.phase != "few-steps")
    pipeline.to(device)  # the whole of it, though only one network may be trained: samples are drawn with both
    model = Cascade(pipeline.encoder, None if config.phase == "encoder" else pipeline.unet)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.phase == "few-steps":
        draw_gamma = partial(sample_visited, visited_gammas(pipeline.scheduler, config.few_steps))
    elif preset.paper:
        draw_gamma = partial(sample_gamma, torch.cat([torch.ones(1), pipeline.scheduler.alphas_cumprod]))
    else:
        draw_gamma = partial(sample_gamma, cosine_gamma(torch.linspace(0, 1, 1001)))
    ready: dict[int, Future[tuple[Tensor, Tensor, Tensor]]] = {}

    def loss(run: nn.Module, step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
        for ahead in range(step, step + 1 + config.workers):
            if ahead not in ready:
                ready[ahead] = pool.submit(make_batch, config, crops, ahead, rows)
        low_res, high_res, level = (t.to(device) for t in ready.pop(step).result())
        batch, draw = (low_res, high_res, level), generator(config.seed, step)
        shared = (config.loop.batch_size, rows)
        terms = losses(run, batch, draw, draw_gamma, preset.paper, config.mean_loss, *shared)
        return terms["total"], {k: float(v.detach()) for k, v in terms.items()}

    def on_save(step: int) -> dict[str, Tensor]:
        save(pipeline, config.out / "pipeline")
        low_res, high_res, _ = make_batch(replace(config, seed=config.seed + 1), crops, 0, slice(0, 4))
        images = [F.interpolate(low_res, scale_factor=4.0), high_res]
        shown = {"few-steps": (0, *config.few_steps), "encoder": (0,), "all": (10,) if preset.paper else (0, 4)}
        for steps in shown[config.phase]:
            draw = [torch.Generator().manual_seed(i) for i in range(len(low_res))]
            images.append(pipeline(low_res, steps, draw, output_type="pt").images.cpu())
        rows = [torch.cat(list(i), dim=2) for i in images]
        return {"low_res, high_res, samples": torch.cat(rows, dim=1).add(1).div(2).clamp(0, 1)}

    contents |= base_digest("init", config.init, config.out)
    with ThreadPoolExecutor(config.workers) as pool:
        fit(model, loss, config, on_save, contents=contents)
    return load(config.out / "pipeline", "cpu", "float32")


def main() -> int:
    try:
        if len(sys.argv) == 3 and sys.argv[1] == "--config":
            config = from_json(Path(sys.argv[2]), train=TrainConfig)
        else:
            config = parse_arguments(TrainConfig, "sr3.train", __doc__)
        train(config)
    except (Exception, KeyboardInterrupt) as error:
        return told("sr3.train", error, "a smaller --loop.batch-size")
    return 0


if __name__ == "__main__":
    sys.exit(main())
