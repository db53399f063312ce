"""The first stage of the cascade: a text-to-image latent diffusion model, the bundled one or any of diffusers'."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.loading import ModelError, load

BUNDLED = Path(__file__).parent / "weights"

__all__ = ["BUNDLED", "ModelError", "load"]


def _asked_for(record: logging.LogRecord) -> bool:
    """Not what transformers says, when diffusers imports it, of image processors that nobody here uses."""
    return "requires torchvision (not installed); falling back" not in record.getMessage()


logging.getLogger("transformers.utils.import_utils").addFilter(_asked_for)


def __getattr__(name: str) -> Any:
    """`load` and `ModelError`, on first use: what prepares data needs no diffusers."""
    if name in ("load", "ModelError"):
        from ldm import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
