"""The second stage of the cascade: SR3, a diffusion model that makes a picture four times larger."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sr3.model import LowResEncoder, SR3UNet
    from sr3.pipeline import SR3Pipeline, load
    from sr3.tiling import Tiling

BUNDLED = Path(__file__).parent / "weights"
_HOMES = {
    "LowResEncoder": "sr3.model",
    "SR3UNet": "sr3.model",
    "SR3Pipeline": "sr3.pipeline",
    "load": "sr3.pipeline",
    "Tiling": "sr3.tiling",
}

__all__ = ["BUNDLED", "LowResEncoder", "SR3Pipeline", "SR3UNet", "Tiling", "load"]


def __getattr__(name: str) -> Any:
    """What needs torch, on first use: reading and writing pictures (`sr3.decoding`, `sr3.encoding`) does without."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sr3' has no attribute {name!r}")
