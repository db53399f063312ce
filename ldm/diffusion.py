"""The second stage: text encoder and U-Net in the autoencoder's latent space, trained together."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel

from ldm.autoencoder import encode_all
from ldm.captions import Drawing, caption
from ldm.data import Placement, load_pack, place, sample_placement
from ldm.loading import resolve_device
from ldm.models import (
    NOISE_SCHEDULE,
    OWN_GUIDANCE,
    assemble,
    build_text_encoder,
    build_unet,
    grow_unet,
    load_autoencoder,
    save,
    train_tokenizer,
)
from sr3.loop import base_digest, digest, fit, generator, mixed, own_device

if TYPE_CHECKING:
    from ldm.train import DiffusionConfig

SHEET = (
    "a red apple",
    "a yellow sun",
    "a cat face",
    "a blue car",
    "a green tree",
    "a pizza",
    "a house",
    "a red heart",
)


def velocity(sample: Tensor, noise: Tensor, gamma: Tensor) -> Tensor:
    """v = √γ ε − √(1 − γ) x₀ (Salimans and Ho, arXiv 2202.00512, section 4). `gamma` (N, 1, 1, 1)."""
    return gamma.sqrt() * noise - (1 - gamma).sqrt() * sample


def shifted_timesteps(uniform: Tensor, shift: float, number: int) -> Tensor:
    """Uniform numbers in [0, 1) to timesteps 0 to `number` - 1, the more of them noisy the larger `shift` (Esser et
    al., arXiv 2403.03206, equation 23). What a drawing is, and its colours, are settled where noise prevails."""
    steps = (number * shift * uniform / (1 + (shift - 1) * uniform)).long()
    return steps.clamp(max=number - 1)  # rounding makes `number` of some of the largest float32 below 1


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    gammas: Tensor,
    draw: torch.Generator,
    batch: int,
    rows: slice,
    shift: float,
    prediction: str = "v_prediction",
) -> tuple[Tensor, dict[str, float]]:
    """One step of training (DDPM, arXiv 2006.11239, algorithm 1): the mean squared error and what to log.

    `predict(noisy, timestep)` is the network, `latents` (n, C, h, w) the rows `rows` of a batch of `batch`, whose
    timesteps and noise are drawn whole whatever the rows; `gammas` (T,) is γ at each timestep. Errors of v count alike
    at every timestep: weights that fall with the signal's share (min-SNR) leave colours and concepts unlearned.
    """
    timestep = shifted_timesteps(torch.rand(batch, generator=draw), shift, len(gammas))[rows]
    noise = torch.randn((batch, *latents.shape[1:]), generator=draw)[rows]
    gamma = gammas[timestep].view(-1, 1, 1, 1)
    noisy = gamma.sqrt() * latents + (1 - gamma).sqrt() * noise
    target = {"v_prediction": velocity(latents, noise, gamma), "epsilon": noise, "sample": latents}[prediction]
    output = predict(noisy, timestep).float()
    error = F.mse_loss(output, target.to(output.device))
    return error, {"error": float(error.detach())}


class TextToLatent(nn.Module):
    """One forward pass of training: tokens and noisy latents to the predicted v."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, tokens: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        return self.unet(noisy, timestep, self.text_encoder(tokens)[0]).sample


class Samples:
    """Latents of every drawing in `variants` placements, and captions drawn anew each time."""

    def __init__(self, config: "DiffusionConfig", autoencoder: AutoencoderKL) -> None:
        pictures, records, _ = load_pack(config.pack)
        chosen = [i for i, r in enumerate(records) if not r.held_out]
        self.records: list[Drawing] = [records[i] for i in chosen]
        everyday = np.array([r.everyday for r in self.records])
        weight = np.where(everyday, config.everyday_weight, 1.0)
        self.share = np.cumsum(weight / weight.sum())
        self.config, self.variants = config, config.variants
        self.placements: list[Placement] = []
        chunks = []
        for variant in range(config.variants):
            placed = []
            for index, record in zip(chosen, self.records, strict=True):
                placement = sample_placement(np.random.default_rng([config.seed, variant, index]), record)
                self.placements.append(placement)
                placed.append(place(pictures[index], record, placement))
            chunks.append(encode_all(autoencoder, np.stack(placed)))
        self.latents = torch.cat(chunks)  # (variants · drawings, C, h, w)

    def draw(self, step: int, rows: slice) -> tuple[Tensor, list[str]]:
        """Latents (B, C, h, w) and captions of the rows of one step's batch."""
        size, number = self.config.loop.batch_size, len(self.records)
        latents, captions = [], []
        for position in range(step * size, (step + 1) * size)[rows]:
            rng = np.random.default_rng([self.config.seed, 1, position])
            drawing = min(int(np.searchsorted(self.share, rng.random())), number - 1)
            at = int(rng.integers(self.variants)) * number + drawing
            placement = self.placements[at]
            latents.append(self.latents[at])
            empty = rng.random() < self.config.caption_dropout
            text = caption(rng, self.records[drawing], placement.colour, placement.ground)
            captions.append("" if empty else text)
        return torch.stack(latents), captions

    def all_captions(self, each: int = 6) -> list[str]:
        """Captions to train the tokenizer on."""
        rng = np.random.default_rng(self.config.seed)
        placed = list(zip(self.placements, self.records * self.variants, strict=True)) * each
        return [caption(rng, r, p.colour, p.ground) for p, r in placed[: each * len(self.records)]]


def starting_pipeline(
    config: "DiffusionConfig", autoencoder: AutoencoderKL, samples: Samples
) -> StableDiffusionPipeline:
    """The pipeline to train: of `config.init` with this autoencoder, or new. Its U-Net grows with the latents."""
    if config.init:
        found = StableDiffusionPipeline.from_pretrained(
            config.init, vae=autoencoder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        if found.unet.config.in_channels < autoencoder.config.latent_channels:
            found.register_modules(unet=grow_unet(found.unet, autoencoder.config.latent_channels))
        return found
    tokenizer = train_tokenizer(samples.all_captions())
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        text_encoder = build_text_encoder(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
        unet = build_unet(samples.latents.shape[-1], samples.latents.shape[1])
    return assemble(autoencoder, text_encoder, tokenizer, unet)


@torch.no_grad()
def sheet(pipeline: StableDiffusionPipeline) -> Tensor:
    """The prompts of `SHEET` as one image (3, H, W) in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    draw = [torch.Generator().manual_seed(i) for i in range(len(SHEET))]
    images = pipeline(
        list(SHEET), num_inference_steps=20, guidance_scale=OWN_GUIDANCE, generator=draw, output_type="pt"
    ).images
    return torch.cat(list(images.float().cpu()), dim=2)


def train_diffusion(config: "DiffusionConfig") -> None:
    """Train, and write OUT/pipeline: an ordinary Stable Diffusion pipeline directory."""
    device = resolve_device(own_device(config.loop.device))
    if config.loop.threads:
        torch.set_num_threads(config.loop.threads)
    autoencoder = load_autoencoder(config.autoencoder).eval().to(device)
    samples = Samples(config, autoencoder)
    print(
        f"{len(samples.records)} drawings, {len(samples.latents)} latents, std {samples.latents.std():.3f}",
        file=sys.stderr,
    )
    pipeline = starting_pipeline(config, autoencoder, samples).to(device)
    pipeline.text_encoder.set_attn_implementation("eager")
    pipeline.unet.set_attn_processor(AttnProcessor())  # the CPU's fused attention is slow backwards
    model = TextToLatent(pipeline.text_encoder, pipeline.unet)
    gammas = DDPMScheduler(**NOISE_SCHEDULE).alphas_cumprod

    def loss(run: nn.Module, step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
        latents, captions = samples.draw(step, rows)
        tokens = pipeline.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            with mixed(device):
                return run(tokens.to(device), noisy.to(device), timestep.to(device))

        draw, size = generator(config.seed, 2, step), config.loop.batch_size
        return denoising_loss(predict, latents, gammas, draw, size, rows, config.timestep_shift)

    def on_save(step: int) -> dict[str, Tensor]:
        save(pipeline, config.out / "pipeline")
        image = sheet(pipeline)
        Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype("uint8")).save(config.out / "sheet.png")
        return {"prompts": image}

    contents = digest(config.pack) | base_digest("autoencoder", config.autoencoder, config.out)
    fit(model, loss, config, on_save, contents=contents | base_digest("init", config.init, config.out))
