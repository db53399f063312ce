"""Enlarging a picture as its file holds it: grey stays grey, transparency and sixteen bits stay."""

from collections.abc import Callable

import numpy as np
import torch

from sr3.images import Picture, to_tensor, to_uint8, to_uint16, with_pixels
from sr3.model import SCALE
from sr3.pipeline import SR3Pipeline
from sr3.tiling import Tiling

FACTORS = (4, 16)
SECOND_PASS_AUG_LEVEL = 0.05


def enlarge_pixels(
    pipeline: SR3Pipeline,
    pixels: np.ndarray,
    steps: int,
    generator: torch.Generator,
    aug_level: float = 0.0,
    consistency: int | None = None,
    tiling: Tiling | None = None,
    on_tile: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Pixels (H, W, C) as `Picture` holds them, enlarged four times.

    Grey goes through the network as three equal channels whose mean is kept. Transparency is enlarged by the
    network's faithful estimate, and colours premultiplied, so that nothing shines through from where they were
    invisible.
    """
    top = np.iinfo(pixels.dtype).max
    back = to_uint8 if pixels.dtype == np.uint8 else to_uint16
    colours, alpha = (pixels[..., :-1], pixels[..., -1:]) if pixels.shape[2] in (2, 4) else (pixels, None)
    if alpha is not None:
        share = alpha.astype(np.float64) / top
        colours = np.round(colours * share).astype(pixels.dtype)
    three = np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else colours

    def run(values: np.ndarray, steps: int) -> torch.Tensor:
        return pipeline(
            to_tensor(values),
            steps,
            generator,
            aug_level,
            consistency,
            output_type="pt",
            tiling=tiling,
            on_tile=on_tile,
        ).images

    result = run(three, steps)
    if colours.shape[2] == 1:
        result = result.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    large = back(result)[0][..., : colours.shape[2]]
    if alpha is None:
        return large
    cover = back(run(np.repeat(alpha, 3, axis=2), 0).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1))[0][..., :1]
    visible = np.maximum(cover.astype(np.float64) / top, 1 / top)
    straight = np.round(np.minimum(large / visible, top)).astype(pixels.dtype)
    return np.dstack([np.where(cover > 0, straight, 0), cover])


def enlarge(
    pipeline: SR3Pipeline,
    picture: Picture,
    factor: int = 4,
    steps: int = 4,
    seed: int = 0,
    aug_level: float = 0.0,
    consistency: int | None = None,
    tiling: Tiling | None = None,
    on_tile: Callable[[], None] = lambda: None,
) -> Picture:
    """A picture enlarged 4 or 16 times, with its colour profile and EXIF. The same seed gives the same pixels.

    Each pass takes a child of the seed. Raises ValueError for another factor.
    """
    if factor not in FACTORS:
        raise ValueError(f"factor is {factor}; it must be one of {', '.join(map(str, FACTORS))}")
    pixels = picture.pixels
    for index, child in enumerate(np.random.SeedSequence(seed).spawn(1 if factor == SCALE else 2)):
        generator = torch.Generator().manual_seed(int(child.generate_state(1, np.uint64)[0]))
        level = aug_level if index == 0 else max(aug_level, SECOND_PASS_AUG_LEVEL)
        pixels = enlarge_pixels(pipeline, pixels, steps, generator, level, consistency, tiling, on_tile)
    return with_pixels(picture, pixels)
