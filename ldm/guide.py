"""Make the pictures of ldm/GUIDE.md with the bundled models: `python -m ldm.guide`."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ldm.loading import load
from ldm.models import OWN_GUIDANCE
from ldm.preview import preview
from ldm.schedulers import with_scheduler

NOISED_AT = (0, 200, 400, 600, 800, 999)


@dataclass(frozen=True)
class GuideConfig:
    out: Path = Path(__file__).parent / "guide_pictures"
    prompt: str = "a red apple"
    seed: int = 7
    steps: int = 10
    guidance: float = OWN_GUIDANCE


@dataclass(frozen=True)
class Steps:
    """What a run went through: noisy latents and estimates (1, C, h, w) and previews (H, W, 3) of each step."""

    noisy: list[Tensor]
    estimates: list[Tensor]
    previews: list[np.ndarray]


def run(pipeline: Any, config: GuideConfig) -> Steps:
    found = Steps([], [], [])

    def tell(own: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        found.noisy.append(values["latents"])
        found.estimates.append(own.scheduler.last_estimate)
        found.previews.append(preview(own, values["latents"])[0])
        return values

    with_scheduler(pipeline)(
        config.prompt,
        num_inference_steps=config.steps,
        guidance_scale=config.guidance,
        generator=torch.Generator().manual_seed(config.seed),
        output_type="latent",
        callback_on_step_end=tell,
    )
    return found


@torch.no_grad()
def decode(pipeline: Any, latents: Tensor) -> np.ndarray:
    """uint8 RGB (H, W, 3) of latents (1, C, h, w)."""
    image = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample[0]
    return image.add(1).mul(127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def row(pictures: list[np.ndarray], factor: int = 2, gap: int = 4) -> np.ndarray:
    """Side by side on white, each pixel `factor` times as large."""
    edge = ((0, gap), (0, gap), (0, 0))
    large = [np.pad(p.repeat(factor, 0).repeat(factor, 1), edge, constant_values=255) for p in pictures]
    return np.concatenate(large, axis=1)


def noising(pipeline: Any, latents: Tensor, config: GuideConfig) -> np.ndarray:
    """√γ x₀ + √(1 − γ) ε of the latents at the timesteps NOISED_AT, decoded (DDPM, equation 4)."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(config.seed))
    gammas = pipeline.scheduler.alphas_cumprod[list(NOISED_AT)]
    gammas[0] = 1.0
    return row([decode(pipeline, g.sqrt() * latents + (1 - g).sqrt() * noise) for g in gammas])


def channels(latents: Tensor) -> np.ndarray:
    """Each channel of the latents (1, C, h, w) as a grey picture, from -3 (black) to 3, twelve in a row."""
    grey = latents[0].add(3).mul(255 / 6).clamp(0, 255).byte().numpy()
    squares = [np.repeat(c[..., None], 3, axis=2) for c in grey]
    return np.concatenate([row(squares[i : i + 12], factor=8) for i in range(0, len(squares), 12)])


def main(config: GuideConfig) -> int:
    pipeline = load(device="cpu")
    steps = run(pipeline, config)
    final = steps.noisy[-1]
    result = decode(pipeline, final)
    every = range(0, config.steps, max(config.steps // 10, 1))
    config.out.mkdir(parents=True, exist_ok=True)
    lines = [
        row([decode(pipeline, steps.noisy[i]) for i in every]),
        row([decode(pipeline, steps.estimates[i]) for i in every]),
        row([steps.previews[i] for i in every]),
    ]
    made = {
        "noising.png": noising(pipeline, final, config),
        "latents.png": channels(final),
        "steps.png": np.concatenate(lines),
        "result.png": result,
    }
    for name, pixels in made.items():
        cv2.imwrite(str(config.out / name), pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    command = [sys.executable, "-m", "sr3", str(config.out / "result.png"), "-o", str(config.out / "result_x4.png")]
    # A drawn picture's own blur is not projected back: the noise of the service's SERVICE_AUG_LEVEL goes on it first.
    subprocess.run([*command, "--seed", str(config.seed), "--aug-level", "0.02"], check=True)
    return 0


if __name__ == "__main__":
    from degradation.arguments import run_command

    sys.exit(run_command(main, GuideConfig, "ldm.guide", __doc__))
