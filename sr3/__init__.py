"""The second stage of the cascade: SR3, a diffusion model that makes a picture four times larger."""

from pathlib import Path

from sr3.model import LowResEncoder, SR3UNet
from sr3.pipeline import SR3Pipeline, load
from sr3.tiling import Tiling

BUNDLED = Path(__file__).parent / "weights"

__all__ = ["BUNDLED", "LowResEncoder", "SR3Pipeline", "SR3UNet", "Tiling", "load"]
