"""Enlarging a picture as its file holds it: grey stays grey, transparency and sixteen bits stay."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sr3.images import Picture, to_tensor, to_uint8, to_uint16, with_pixels
from sr3.model import SCALE
from sr3.pipeline import SR3Pipeline
from sr3.tiling import Tiling

FACTORS = (4, 16)
SECOND_PASS_AUG_LEVEL = 0.05
OnTile = Callable[[], None]


def _nothing() -> None:
    return None


def _one_grey(images: Tensor) -> Tensor:
    return images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def enlarge_pixels(
    pipeline: SR3Pipeline,
    pixels: Sequence[np.ndarray],
    steps: int,
    generators: Sequence[torch.Generator],
    aug_level: float = 0.0,
    consistency: int | None = None,
    tiling: Tiling | None = None,
    on_tile: OnTile = _nothing,
) -> list[np.ndarray]:
    """Pixels (H, W, C) as `Picture` holds them, enlarged four times: a batch of equal shape and type, with a generator
    for each.

    Grey goes through the network as three equal channels whose mean is kept. Transparency is enlarged by the
    network's faithful estimate, and colours premultiplied, so that nothing shines through from where they were
    invisible.
    """
    dtype, channels = pixels[0].dtype, pixels[0].shape[2]
    top = np.iinfo(dtype).max
    back = to_uint8 if dtype == np.uint8 else to_uint16
    transparent, grey = channels in (2, 4), channels < 3

    def run(values: Sequence[np.ndarray], steps: int) -> Tensor:
        three = [np.repeat(each, 3, axis=2) if each.shape[2] == 1 else each for each in values]
        return pipeline(
            to_tensor(three),
            steps,
            list(generators),
            aug_level,
            consistency,
            output_type="pt",
            tiling=tiling,
            on_tile=on_tile,
        ).images

    colours = [_premultiplied(each, top) for each in pixels] if transparent else pixels
    result = run(colours, steps)
    large = [each[..., : colours[0].shape[2]] for each in back(_one_grey(result) if grey else result)]
    if not transparent:
        return large
    covers = back(_one_grey(run([each[..., -1:] for each in pixels], 0)))
    return [_straight(each, cover[..., :1], top) for each, cover in zip(large, covers, strict=True)]


def _premultiplied(pixels: np.ndarray, top: int) -> np.ndarray:
    share = pixels[..., -1:].astype(np.float64) / top
    return np.round(pixels[..., :-1] * share).astype(pixels.dtype)


def _straight(colours: np.ndarray, cover: np.ndarray, top: int) -> np.ndarray:
    visible = np.maximum(cover.astype(np.float64) / top, 1 / top)
    straight = np.round(np.minimum(colours / visible, top)).astype(colours.dtype)
    return np.dstack([np.where(cover > 0, straight, 0), cover])


def evaluations(
    pipeline: SR3Pipeline, picture: Picture, factor: int, steps: int, tiling: Tiling | None = None
) -> list[int]:
    """How often each pass of `enlarge_batch` will call its `on_tile`."""
    height, width, channels = picture.pixels.shape
    totals = []
    for scale in (1, SCALE)[: 1 if factor == SCALE else 2]:
        colours = pipeline.evaluations(height * scale, width * scale, steps, tiling)
        cover = pipeline.evaluations(height * scale, width * scale, 0, tiling) if channels in (2, 4) else 0
        totals.append(colours + cover)
    return totals


def enlarge_batch(
    pipeline: SR3Pipeline,
    pictures: Sequence[Picture],
    seeds: Sequence[int],
    factor: int = 4,
    steps: int = 4,
    aug_level: float = 0.0,
    consistency: int | None = None,
    tiling: Tiling | None = None,
    on_tile: OnTile = _nothing,
) -> list[Picture]:
    """Pictures of one size, number of channels and depth, enlarged 4 or 16 times, with their profiles and EXIF.

    Each pass takes a child of a picture's seed, so that a picture is the same alone and in any batch, within a level
    of 255 as they show (a network's sums are ordered differently). Raises ValueError for another factor, or for
    unequal pictures.
    """
    if factor not in FACTORS:
        raise ValueError(f"factor is {factor}; it must be one of {', '.join(map(str, FACTORS))}")
    if len({(p.pixels.shape, p.pixels.dtype) for p in pictures}) != 1 or len(seeds) != len(pictures):
        raise ValueError("pictures of one batch must have one size, number of channels and depth, and a seed each")
    passes = 1 if factor == SCALE else 2
    children = [np.random.SeedSequence(seed).spawn(passes) for seed in seeds]
    pixels = [p.pixels for p in pictures]
    for index in range(passes):
        states = [int(each[index].generate_state(1, np.uint64)[0]) for each in children]
        generators = [torch.Generator().manual_seed(state) for state in states]
        level = aug_level if index == 0 else max(aug_level, SECOND_PASS_AUG_LEVEL)
        pixels = enlarge_pixels(pipeline, pixels, steps, generators, level, consistency, tiling, on_tile)
    return [with_pixels(picture, each) for picture, each in zip(pictures, pixels, strict=True)]


def enlarge(
    pipeline: SR3Pipeline,
    picture: Picture,
    factor: int = 4,
    steps: int = 4,
    seed: int = 0,
    aug_level: float = 0.0,
    consistency: int | None = None,
    tiling: Tiling | None = None,
    on_tile: OnTile = _nothing,
) -> Picture:
    """One picture through `enlarge_batch`. The same seed gives the same pixels."""
    return enlarge_batch(pipeline, [picture], [seed], factor, steps, aug_level, consistency, tiling, on_tile)[0]
