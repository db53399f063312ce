"""The first stage of the cascade: a text-to-image latent diffusion model, the bundled one or any of diffusers'."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.loading import ModelError, load

BUNDLED = Path(__file__).parent / "weights"

__all__ = ["BUNDLED", "ModelError", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `ModelError`, on first use: what prepares data needs no diffusers."""
    if name in ("load", "ModelError"):
        from ldm import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
