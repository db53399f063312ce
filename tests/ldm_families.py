"""Tiny text-to-image pipelines with random weights, one of each family, as their directories."""

from collections.abc import Callable
from typing import Any

import diffusers as d
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a", "red", "apple", "cat"])}


def tokenizer(length: int = 16) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=length, **special)


def clip(width: int = 32, projection: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=width, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=width, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5() -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4))


def autoencoder(channels: int, levels: int = 2, **extra: object) -> d.AutoencoderKL:
    """Latents 2 ** (levels - 1) times smaller than the pictures."""
    return d.AutoencoderKL(
        block_out_channels=(16,) * levels, down_block_types=("DownEncoderBlock2D",) * levels, norm_num_groups=8,
        up_block_types=("UpDecoderBlock2D",) * levels, latent_channels=channels, sample_size=64 * levels, **extra,
    )  # fmt: skip


def unet(**extra: object) -> d.UNet2DConditionModel:
    return d.UNet2DConditionModel(**{
        "block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 8, "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 32,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, **extra,
    })  # fmt: skip


BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def stable_diffusion() -> d.DiffusionPipeline:
    return d.StableDiffusionPipeline(
        autoencoder(4), clip(), tokenizer(), unet(), d.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
        None, None, requires_safety_checker=False,
    )  # fmt: skip


def latent_consistency() -> d.DiffusionPipeline:
    return d.LatentConsistencyModelPipeline(
        autoencoder(4), clip(), tokenizer(), unet(time_cond_proj_dim=16), d.LCMScheduler(**BETAS), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl() -> d.DiffusionPipeline:
    network = unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, cross_attention_dim=64,
        projection_class_embeddings_input_dim=6 * 8 + 32, use_linear_projection=True,
    )  # fmt: skip
    scheduler = d.EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    parts = (clip(), clip(projection=True), tokenizer(), tokenizer())
    return d.StableDiffusionXLPipeline(autoencoder(4), *parts, network, scheduler, add_watermarker=False)


def stable_diffusion_3() -> d.DiffusionPipeline:
    """Without the third text encoder, as people leave it out."""
    network = d.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    vae = autoencoder(4, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False)
    parts = (clip(16, True), tokenizer(), clip(48, True), tokenizer(), None, None)
    return d.StableDiffusion3Pipeline(network, d.FlowMatchEulerDiscreteScheduler(shift=3.0), vae, *parts)


def flux() -> d.DiffusionPipeline:
    network = d.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    vae = autoencoder(4, 1, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False)
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return d.FluxPipeline(scheduler, vae, clip(), tokenizer(), t5(), tokenizer(), network)


def pixart_sigma() -> d.DiffusionPipeline:
    network = d.PixArtTransformer2DModel(
        sample_size=32, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=4, caption_channels=32,
        in_channels=4, cross_attention_dim=32, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    return d.PixArtSigmaPipeline(tokenizer(), t5(), autoencoder(4, 4), network, d.DPMSolverMultistepScheduler())


def sana_network(**options: Any) -> d.SanaTransformer2DModel:
    return d.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
        sample_size=32, **options,
    )  # fmt: skip


def sana() -> d.DiffusionPipeline:
    vae = d.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, scaling_factor=0.4,
        encoder_block_types=("ResBlock",) * 5, decoder_block_types=("ResBlock",) * 5,
        encoder_block_out_channels=(8,) * 5, decoder_block_out_channels=(8,) * 5,
        encoder_qkv_multiscales=((),) * 5, decoder_qkv_multiscales=((),) * 5,
        encoder_layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
    )  # fmt: skip
    gemma = Gemma2Model(Gemma2Config(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    ))  # fmt: skip
    return d.SanaPipeline(tokenizer(300), gemma, vae, sana_network(), d.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0))  # fmt: skip


def sana_sprint() -> d.DiffusionPipeline:
    """Distilled to a few steps."""
    parts = sana().components | {"transformer": sana_network(guidance_embeds=True), "scheduler": d.SCMScheduler()}
    return d.SanaSprintPipeline(**parts)


def edm() -> d.DiffusionPipeline:
    """Such as Playground v2.5."""
    parts = stable_diffusion_xl().components
    return d.StableDiffusionXLPipeline(
        **parts | {"scheduler": d.EDMDPMSolverMultistepScheduler()}, add_watermarker=False
    )


FAMILIES: dict[str, Callable[[], d.DiffusionPipeline]] = {
    f.__name__: f
    for f in (
        stable_diffusion, latent_consistency, stable_diffusion_xl, edm, stable_diffusion_3, flux, pixart_sigma, sana,
        sana_sprint,
    )
}  # fmt: skip


def build(name: str) -> d.DiffusionPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FAMILIES[name]()
