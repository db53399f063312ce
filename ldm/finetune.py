"""Fine-tuning a Stable Diffusion (1, 2, XL or the bundled one) on captioned pictures, whole or by low-rank adapters."""

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image, ImageOps
from torch import Tensor, nn

from ldm.diffusion import denoising_loss
from ldm.folder import Captioned, digests, read_captioned
from ldm.loading import GUIDANCE, load, own_guidance, resolve_device
from ldm.preview import FILE as PREVIEW
from ldm.preview import encode
from ldm.schedulers import has_gammas
from sr3.loop import base_digest, fit, generator, mixed, own_device
from sr3.memory import fast_dtype
from sr3.saving import halved, open_to_others

if TYPE_CHECKING:
    from ldm.train import FinetuneConfig

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
SAMPLES = 4  # captions that are drawn at each save


def check_family(pipeline: DiffusionPipeline) -> None:
    """Raises ValueError for what this module does not train."""
    if not isinstance(pipeline, StableDiffusionPipeline | StableDiffusionXLPipeline):
        raise ValueError(f"{type(pipeline).__name__} cannot be fine-tuned here: only Stable Diffusion 1, 2 and XL can")
    if not has_gammas(pipeline.scheduler):
        raise ValueError(f"the model's noise is that of {type(pipeline.scheduler).__name__}, which is not trained here")
    if pipeline.scheduler.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"the model predicts {pipeline.scheduler.config.prediction_type}, which is not trained here")


def squared(picture: Captioned, size: int) -> np.ndarray:
    """The middle square, uint8 RGB (size, size, 3)."""
    return np.array(ImageOps.fit(picture.open(), (size, size), Image.Resampling.LANCZOS))


@torch.no_grad()
def encode_pictures(pipeline: DiffusionPipeline, pictures: list[Captioned], size: int, flip: bool) -> Tensor:
    """Latents (1 or 2, N, C, h, w) on the CPU: as they are and, with `flip`, mirrored."""
    rows = []
    for picture in pictures:
        pixels = squared(picture, size)
        both = np.stack([pixels, pixels[:, ::-1]]) if flip else pixels[None]
        images = torch.from_numpy(np.ascontiguousarray(both)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        rows.append(encode(pipeline.vae, images))
    return torch.stack(rows, dim=1)


@torch.no_grad()
def encode_captions(pipeline: DiffusionPipeline, captions: list[str], device: torch.device) -> list[tuple[Tensor, ...]]:
    """Of each caption the text's embeddings (L, D) and, for XL, the pooled one (P,); kept on the CPU. Of the
    empty caption they are zeros where the model's pipeline guides with zeros."""
    found = []
    for caption in captions:
        options = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        embeds = pipeline.encode_prompt(prompt=caption, device=device, **options)
        pooled = (embeds[2],) if isinstance(pipeline, StableDiffusionXLPipeline) else ()
        zeros = not caption and pipeline.config.get("force_zeros_for_empty_prompt")
        kept = (e[0].float().cpu() for e in (embeds[0], *pooled))
        found.append(tuple(map(torch.zeros_like, kept) if zeros else kept))
    return found


def add_lora(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """Freeze the U-Net and give its attention adapters of this rank (Hu et al., arXiv 2106.09685), in float32."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=LORA_TARGETS))
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_result(pipeline: DiffusionPipeline, config: "FinetuneConfig") -> None:
    """OUT/lora, which `load_lora_weights` of diffusers reads, or OUT/pipeline in float16."""
    if config.lora:
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
        type(pipeline).save_lora_weights(config.out / "lora", unet_lora_layers=layers)
        open_to_others(config.out / "lora")
        return
    half = copy.copy(pipeline)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            setattr(half, name, halved(part))
    half.save_pretrained(config.out / "pipeline", max_shard_size="2GB")
    open_to_others(config.out / "pipeline")
    for name in (PREVIEW, GUIDANCE):  # the encoder is as it was, and so is its map
        file = Path(str(pipeline.config.get("_name_or_path", ""))) / name
        if file.is_file():
            shutil.copy(file, config.out / "pipeline" / name)


@torch.no_grad()
def samples(pipeline: DiffusionPipeline, captions: list[str], size: int) -> Tensor:
    """Some captions drawn with seed 0, side by side (3, H, W) in [0, 1]."""
    chosen = list(dict.fromkeys(captions))[:SAMPLES]
    draw = [torch.Generator().manual_seed(0) for _ in chosen]
    options = {"num_inference_steps": 20, "guidance_scale": own_guidance(pipeline), "output_type": "pt"}
    with mixed(pipeline.device):
        made = pipeline(chosen, height=size, width=size, generator=draw, **options).images
    return torch.cat(list(made.float().cpu().clamp(0, 1)), dim=2)


def finetune(config: "FinetuneConfig") -> None:
    """Train, and write OUT/pipeline or OUT/lora. Raises ValueError for what cannot be read or is not trained here,
    and where OUT holds the state of a training on other pictures or captions."""
    if config.lora is not None and config.lora < 1:
        raise ValueError(f"lora is {config.lora}; it must be 1 or more")
    if config.lora:
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise ValueError(f"lora needs peft: pip install '.[train]' ({error})") from None
    pictures = read_captioned(config.data)
    device = resolve_device(own_device(config.loop.device))
    narrow = config.lora and device.type == "cuda" and fast_dtype(device) == "bfloat16"
    pipeline = load(config.init, str(device), "bfloat16" if narrow else "float32", config.allow_download)
    check_family(pipeline)
    size = config.size or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    if size % pipeline.vae_scale_factor:
        raise ValueError(f"size is {size}; it must be a multiple of {pipeline.vae_scale_factor}")
    latents = encode_pictures(pipeline, pictures, size, config.flip)
    texts = encode_captions(pipeline, ["", *(p.caption for p in pictures)], device)
    unet = pipeline.unet
    if config.checkpointing:
        unet.enable_gradient_checkpointing()
    if config.lora:
        add_lora(unet, config.lora, config.seed)
    else:
        unet.requires_grad_(True)
    gammas = pipeline.scheduler.alphas_cumprod.float().cpu()
    batch = config.loop.batch_size

    def loss(run: nn.Module, step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([config.seed, 0, step])
        chosen = rng.integers(len(pictures), size=batch)
        mirrored = rng.integers(len(latents), size=batch)
        text = np.where(rng.random(batch) < config.caption_dropout, 0, chosen + 1)[rows]
        condition = [torch.stack(part).to(device) for part in zip(*(texts[i] for i in text), strict=True)]
        added: dict[str, Any] = {}
        if len(condition) > 1:
            sizes = torch.tensor([[size, size, 0, 0, size, size]] * len(text), dtype=torch.float32, device=device)
            added = {"added_cond_kwargs": {"text_embeds": condition[1], "time_ids": sizes}}

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            with mixed(device):
                given = (noisy.to(device), timestep.to(device), condition[0])
                return run(*given, **added, return_dict=False)[0]

        draw, prediction = generator(config.seed, 2, step), pipeline.scheduler.config.prediction_type
        rest = (gammas, draw, batch, rows, config.timestep_shift, prediction)
        return denoising_loss(predict, latents[mirrored, chosen][rows], *rest)

    def on_save(step: int) -> dict[str, Tensor]:
        save_result(pipeline, config)
        image = samples(pipeline, [p.caption for p in pictures], size)
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(config.out / "samples.png")
        return {"samples": image}

    base = base_digest("init", Path(pipeline.config["_name_or_path"]), config.out)  # of a hub id, where it is cached
    fit(unet, loss, config, on_save, contents=digests(config.data, pictures) | base)
