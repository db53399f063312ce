"""Enlarging a picture as its file holds it: grey stays grey, transparency and sixteen bits stay."""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from sr3.images import Picture, to_tensor, to_uint8, to_uint16, with_pixels
from sr3.model import SCALE
from sr3.pipeline import SR3Pipeline
from sr3.tiling import Tiling

FACTORS = (4, 16)
SECOND_PASS_AUG_LEVEL = 0.05
# Enlarged megapixels up to which --steps auto takes so many steps: about a minute on two cores, seconds on a GPU.
AUTO_STEPS = {"cpu": ((4, 4), (10, 2), (20, 1)), "gpu": ((64, 4), (256, 2), (1024, 1))}
WHITE = 32  # levels of 255: the standard deviation that is white in a map of uncertainty


def enlarge_pixels(
    pipeline: SR3Pipeline,
    pixels: np.ndarray,
    steps: int,
    generator: torch.Generator,
    aug_level: float = 0.0,
    consistency: int | None = None,
    tiling: Tiling | None = None,
    on_tile: Callable[[], None] = lambda: None,
    max_memory: int | None = None,
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
            max_memory=max_memory,
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
    max_memory: int | None = None,
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
        pixels = enlarge_pixels(pipeline, pixels, steps, generator, level, consistency, tiling, on_tile, max_memory)
    return with_pixels(picture, pixels)


def auto_steps(height: int, width: int, factor: int, device: str) -> int:
    """How many steps are worth their time for a picture of height x width on a device of this type: 4, 2, 1 or 0."""
    megapixels = height * width * factor**2 / 1e6
    limits = AUTO_STEPS["cpu" if device == "cpu" else "gpu"]
    return next((steps for most, steps in limits if megapixels <= most), 0)


def spread(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Standard deviation of each pixel over two pictures or more, uint8 or uint16 (H, W, C) of one size, as a grey
    picture uint8 (H, W, 1): the root of the mean variance over the channels, 255 for `WHITE` levels of 255 and more.

    One picture is held at a time (Welford, Technometrics 4(3), 1962).
    """
    count, top = 0, 255
    mean: np.ndarray = np.zeros(1, np.float32)
    squares: np.ndarray = np.zeros(1, np.float32)
    for pixels in pictures:
        count, top = count + 1, np.iinfo(pixels.dtype).max
        change = pixels.astype(np.float32) - mean
        mean = mean + change / count
        squares = squares + change * (pixels - mean)
    if count < 2:
        raise ValueError(f"{count} pictures have no spread; it takes 2 or more")
    deviation = np.sqrt(np.mean(squares, axis=2, keepdims=True) / (count - 1)) * (255 / top)
    return np.round(np.minimum(deviation * (255 / WHITE), 255)).astype(np.uint8)
