"""The bundled model's parts: a KL autoencoder, a text encoder with its tokenizer, and a latent U-Net."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from ldm.loading import GUIDANCE
from sr3.saving import halved, open_to_others

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
TEXT_LENGTH = 40
TEXT_WIDTH = 192
LATENT_CHANNELS = 12
OWN_GUIDANCE = 4.0  # more makes the small model's colours garish
NARROW = -6  # log-variance of the posterior to begin with: a wide one lets the decoder learn to ignore the latents

# Nichol and Dhariwal's cosine schedule (arXiv 2102.09672, equation 17), shifted to end in pure noise, with
# v-prediction (Salimans and Ho, arXiv 2202.00512).
NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


def build_autoencoder(size: int = 64, latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """Images (N, 3, size, size) in [-1, 1] to latents (N, latent_channels, size/8, size/8), and back."""
    autoencoder = AutoencoderKL(
        sample_size=size,
        latent_channels=latent_channels,
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=16,
    )
    with torch.no_grad():
        autoencoder.quant_conv.bias[latent_channels:] = NARROW
    return autoencoder


def _grown(old: Any, places: Mapping[str, tuple[Sequence[int], Sequence[int]]], **sizes: int) -> Any:
    """`old` with other `sizes` in its configuration. Of each convolution in `places`, which these make larger, the old
    outputs and inputs become those listed, and those outputs do not see the other inputs."""
    new = type(old).from_config({**old.config, **sizes})
    state = new.state_dict()
    for name, value in old.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer not in places:
            state[name] = value
            continue
        outputs, inputs = (torch.tensor(list(each)) for each in places[layer])
        state[name][outputs] = 0
        state[name][(outputs[:, None], inputs) if kind == "weight" else outputs] = value
    new.load_state_dict(state)
    return new.train(old.training)


def grow_autoencoder(old: AutoencoderKL, latent_channels: int) -> AutoencoderKL:
    """The same autoencoder with more latent channels: its own come first, and its decoder does not see the others yet.

    Raises ValueError for fewer channels than it has.
    """
    had = old.config.latent_channels
    if latent_channels < had:
        raise ValueError(f"latent_channels is {latent_channels}, but the autoencoder of init has {had}")
    first, decoder = range(had), range(old.decoder.conv_in.out_channels)
    moments = [*first, *range(latent_channels, latent_channels + had)]  # means, then log-variances
    places = {
        "encoder.conv_out": (moments, range(old.encoder.conv_out.in_channels)),
        "quant_conv": (moments, moments),
        "post_quant_conv": (first, first),
        "decoder.conv_in": (decoder, first),
    }
    grown: AutoencoderKL = _grown(old, places, latent_channels=latent_channels)
    with torch.no_grad():
        grown.quant_conv.bias[latent_channels + had :] = NARROW
    return grown


def grow_unet(old: UNet2DConditionModel, latent_channels: int) -> UNet2DConditionModel:
    """The same U-Net for more latent channels: it sees and predicts its own as before, and 0 for the others."""
    width, first = old.config.block_out_channels[0], range(old.config.in_channels)
    places = {"conv_in": (range(width), first), "conv_out": (first, range(width))}
    grown: UNet2DConditionModel = _grown(old, places, in_channels=latent_channels, out_channels=latent_channels)
    with torch.no_grad():
        grown.conv_out.weight[len(first) :] = grown.conv_out.bias[len(first) :] = 0
    return grown


def load_autoencoder(folder: Path) -> AutoencoderKL:
    """A `vae` directory in float32; only safetensors are read. Raises ValueError where there is none."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no autoencoder: it has no config.json")
    return AutoencoderKL.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)


def build_unet(size: int = 8, latent_channels: int = LATENT_CHANNELS) -> UNet2DConditionModel:
    """Noisy latents (N, latent_channels, size, size), a timestep and text (N, TEXT_LENGTH, TEXT_WIDTH) to v."""
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(128, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 3),  # the number of heads, in spite of its name
        cross_attention_dim=TEXT_WIDTH,
        addition_embed_type="text",  # the pooled text joins the timestep, and so reaches every block
        addition_embed_type_num_heads=4,
        norm_num_groups=16,
    )


def build_text_encoder(vocabulary: int, begin: int, end: int) -> CLIPTextModel:
    """Tokens (N, TEXT_LENGTH) to (N, TEXT_LENGTH, TEXT_WIDTH)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def train_tokenizer(captions: Iterable[str], vocabulary: int = 3000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text in any language goes through, however rare."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    ids = [(t, tokenizer.token_to_id(t)) for t in (BEGIN, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=TEXT_LENGTH,
    )


def assemble(
    autoencoder: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """An ordinary Stable Diffusion pipeline of these parts."""
    scheduler = DPMSolverMultistepScheduler(**NOISE_SCHEDULE)
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the pipeline's directory: float16, in shards of at most 15 MB. The pipeline itself stays as it is."""
    vae, text_encoder, unet = (halved(part) for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet))
    half = assemble(vae, text_encoder, pipeline.tokenizer, unet)
    half.save_pretrained(folder, max_shard_size="15MB")
    open_to_others(folder)
    (folder / GUIDANCE).write_text(json.dumps({"guidance_scale": OWN_GUIDANCE}) + "\n")
