"""Train the bundled base model, or fine-tune any Stable Diffusion on one's own pictures.

`python -m ldm.train --init MODEL --data FOLDER` fine-tunes (`accelerate launch -m ldm.train …` on several devices);
`python -m ldm.train autoencoder --pack drawings.safetensors --out run/autoencoder`, then
`python -m ldm.train diffusion --pack drawings.safetensors --autoencoder run/autoencoder/vae --out run/diffusion`.
"""

import sys
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any

from degradation.arguments import from_json, parse_arguments
from sr3.loop import LoopConfig
from sr3.mistakes import told


@dataclass(frozen=True)
class AutoencoderConfig:
    """The first stage: a KL autoencoder of the drawings."""

    pack: Path
    out: Path
    init: Path | None = None
    """A `vae` directory to start from. Its latents are held where `latent_channels` adds others to them."""
    decoder_only: bool = False
    """Freeze the encoder of `init`, so that its latents stay valid for an existing U-Net."""
    latent_channels: int | None = None
    """Those of `init` if not given, and 12 without it."""
    kl_weight: float = 1e-3
    """Of the Kullback-Leibler term in nats per latent number, against the error."""
    latent_noise: float = 0.0
    """Largest standard deviation of noise that the decoder learns to see past, of latents of unit variance."""
    seed: int = 0
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(batch_size=32, steps=12_000))


@dataclass(frozen=True)
class DiffusionConfig:
    """The second stage: text encoder and U-Net in the latent space."""

    pack: Path
    out: Path
    autoencoder: Path
    """The `vae` directory that the first stage made."""
    init: Path | None = None
    """A pipeline directory whose text encoder, tokenizer and U-Net to start from."""
    everyday_weight: float = 4.0
    """How many times as often the names in ldm/everyday.txt are drawn as the others."""
    variants: int = 24
    """Placements of each drawing whose latents are computed beforehand."""
    caption_dropout: float = 0.1
    """Share of the captions left empty, for classifier-free guidance."""
    timestep_shift: float = 3.0
    """How much more often noisy timesteps are drawn than clean ones; 1 draws all alike."""
    seed: int = 0
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(batch_size=128, steps=60_000, warmup=500))


@dataclass(frozen=True)
class ClassifierConfig:
    """The judge of ldm.evaluate: a network that names drawings."""

    pack: Path
    out: Path
    everyday_only: bool = False
    """Only the names in ldm/everyday.txt, in place of all."""
    seed: int = 0
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(batch_size=64, steps=3000, warmup=100, learning_rate=2e-3, save_every=500)
    )


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune a model on captioned pictures."""

    init: str
    """A pipeline's directory or a hub id; ldm/weights is the bundled model."""
    data: Path
    """A folder of pictures, each with a caption in a .txt beside it or in metadata.jsonl."""
    out: Path = Path("finetuned")
    """Gets `pipeline` or `lora`, samples, and the state from which the same command on the same pictures goes on."""
    lora: int | None = None
    """The rank of low-rank adapters, in place of training the whole U-Net."""
    size: int | None = None
    """Pixels on a side that pictures are cropped and reduced to; the model's own if not given."""
    flip: bool = False
    """Mirror half of the pictures."""
    caption_dropout: float = 0.1
    timestep_shift: float = 1.0
    """As in the training from nothing; 1 draws all timesteps alike."""
    checkpointing: bool = False
    """Compute activations twice and save memory."""
    allow_download: bool = False
    seed: int = 0
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            batch_size=8, steps=400, warmup=20, learning_rate=2e-4, ema=0.98, save_every=200, log_every=10
        )
    )


STAGES: dict[str, Any] = {
    "autoencoder": AutoencoderConfig,
    "diffusion": DiffusionConfig,
    "classifier": ClassifierConfig,
    "finetune": FinetuneConfig,
}
Config = AutoencoderConfig | DiffusionConfig | ClassifierConfig | FinetuneConfig


def main(config: Config) -> None:
    if isinstance(config, AutoencoderConfig):
        from ldm.autoencoder import train_autoencoder

        train_autoencoder(config)
    elif isinstance(config, ClassifierConfig):
        from ldm.classifier import train_classifier

        train_classifier(config)
    elif isinstance(config, FinetuneConfig):
        from ldm.finetune import finetune

        finetune(config)
    else:
        from ldm.diffusion import train_diffusion

        train_diffusion(config)


def _from_arguments(arguments: list[str]) -> Config:
    if len(arguments) == 2 and arguments[0] == "--config":
        config: Config = from_json(Path(arguments[1]), **STAGES)
        return config
    import tyro

    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        arguments = ["finetune", *arguments]
    kinds = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in STAGES.items()]
    return parse_arguments(reduce(or_, kinds), "ldm.train", __doc__, arguments)


if __name__ == "__main__":
    try:
        main(_from_arguments(sys.argv[1:]))
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(told("ldm.train", error, "a smaller --loop.batch-size"))
