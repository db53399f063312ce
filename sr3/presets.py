"""The sizes in which SR3 is built, and its pipelines before training."""

from dataclasses import dataclass
from pathlib import Path

from diffusers import DDIMScheduler, DDPMScheduler

from sr3.model import LowResEncoder, SR3UNet
from sr3.pipeline import SR3Pipeline
from sr3.saving import halved, open_to_others

# The cosine schedule ends in pure noise; SR3's own is linear (arXiv 2104.07636, section 4, T = 2000).
COSINE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
LINEAR = {"num_train_timesteps": 2000, "beta_schedule": "linear", "beta_start": 1e-6, "beta_end": 1e-2}
# Its algorithm 2 begins with pure noise and adds noise of variance 1 − α_t after each step.
ANCESTRAL = {"timestep_spacing": "trailing", "variance_type": "fixed_large", "clip_sample": True}


@dataclass(frozen=True)
class Preset:
    """The sizes of both networks, and what the denoiser predicts."""

    channels: int = 64
    num_blocks: int = 16
    patch_size: int = 4
    base_channels: int = 48
    multipliers: tuple[int, ...] = (1, 2, 3)
    unet_blocks: int = 1
    attention_levels: tuple[int, ...] = ()
    dropout: float = 0.0
    paper: bool = False
    """SR3 as published: bicubic concatenated at full resolution, ε predicted, ancestral sampling."""
    context_blocks: int = 12
    context_channels: int = 128
    temperature: float = 1.0
    overestimate: float = 0.96
    ceiling: float = 0.03


PRESETS = {
    "bundled": Preset(),
    "sr3-paper": Preset(3, 0, 1, 128, (1, 2, 4, 4, 8, 8), 3, (4,), 0.0, paper=True),
    "sr3-paper-tiny": Preset(3, 0, 1, 16, (1, 2), 1, (1,), 0.0, paper=True),
}


def build(preset: Preset) -> SR3Pipeline:
    """An untrained pipeline."""
    encoder = LowResEncoder(preset.channels, preset.num_blocks, preset.context_blocks, preset.context_channels)
    unet = SR3UNet(
        patch_size=preset.patch_size,
        condition_channels=preset.channels,
        base_channels=preset.base_channels,
        multipliers=preset.multipliers,
        num_blocks=preset.unet_blocks,
        attention_levels=preset.attention_levels,
        dropout=preset.dropout,
        gain=not preset.paper,
    )
    if preset.paper:
        return SR3Pipeline(encoder, unet, DDPMScheduler(**LINEAR, **ANCESTRAL, prediction_type="epsilon"))
    scheduler = DDIMScheduler(
        **COSINE,
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
        rescale_betas_zero_snr=False,
    )
    return SR3Pipeline(encoder, unet, scheduler, preset.temperature, preset.overestimate, preset.ceiling)


def save(pipeline: SR3Pipeline, folder: Path) -> None:
    """Write the pipeline's directory: float16, in shards of at most 15 MB. The pipeline itself stays as it is."""
    encoder, unet = (halved(m) for m in (pipeline.encoder, pipeline.unet))
    copied = SR3Pipeline(encoder, unet, pipeline.scheduler, **pipeline.sampling())
    copied.save_pretrained(folder, max_shard_size="15MB")
    open_to_others(folder)
