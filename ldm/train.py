"""Train the bundled base model.

`python -m ldm.train autoencoder --pack drawings.safetensors --out run/autoencoder`, then
`python -m ldm.train diffusion --pack drawings.safetensors --autoencoder run/autoencoder/vae --out run/diffusion`.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from sr3.loop import LoopConfig


@dataclass(frozen=True)
class AutoencoderConfig:
    """The first stage: a KL autoencoder of the drawings."""

    pack: Path
    out: Path
    init: Path | None = None
    """A `vae` directory to start from."""
    decoder_only: bool = False
    """Freeze the encoder of `init`, so that its latents stay valid for an existing U-Net."""
    latent_channels: int = 12
    kl_weight: float = 1e-3
    """Of the Kullback-Leibler term in nats per latent number, against the mean absolute error."""
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
    everyday_only: bool = True
    variants: int = 24
    """Placements of each drawing whose latents are computed beforehand."""
    caption_dropout: float = 0.1
    """Share of the captions left empty, for classifier-free guidance."""
    snr_limit: float = 5.0
    """Min-SNR weighting's gamma (Hang et al., arXiv 2303.09556)."""
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


def _from_json(path: Path) -> AutoencoderConfig | DiffusionConfig:
    """A configuration from a file, for machines without tyro. Unknown keys are errors."""
    values = json.loads(path.read_text())
    kind = {"autoencoder": AutoencoderConfig, "diffusion": DiffusionConfig}[values.pop("stage")]
    paths = {"pack", "out", "autoencoder", "init"}
    values = {k: Path(v) if k in paths and v is not None else v for k, v in values.items()}
    defaults = kind(**{k: values[k] for k in values if k != "loop"})
    return dataclasses.replace(defaults, loop=dataclasses.replace(defaults.loop, **values.get("loop", {})))


def main(config: AutoencoderConfig | DiffusionConfig | ClassifierConfig) -> None:
    if isinstance(config, AutoencoderConfig):
        from ldm.autoencoder import train_autoencoder

        train_autoencoder(config)
    elif isinstance(config, ClassifierConfig):
        from ldm.classifier import train_classifier

        train_classifier(config)
    else:
        from ldm.diffusion import train_diffusion

        train_diffusion(config)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--config":
        main(_from_json(Path(sys.argv[2])))
    else:
        import tyro

        stage_one = Annotated[AutoencoderConfig, tyro.conf.subcommand("autoencoder")]
        stage_two = Annotated[DiffusionConfig, tyro.conf.subcommand("diffusion")]
        judge = Annotated[ClassifierConfig, tyro.conf.subcommand("classifier")]
        main(tyro.cli(stage_one | stage_two | judge, description=__doc__))
