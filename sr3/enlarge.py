"""Enlarging a picture as its file holds it: grey stays grey, transparency and sixteen bits stay."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from sr3 import memory
from sr3.images import Picture, to_tensor, to_uint8, to_uint16, with_pixels
from sr3.model import SCALE
from sr3.pipeline import SR3Pipeline
from sr3.tiling import Tiling

FACTORS = (4, 16)
SECOND_PASS_AUG_LEVEL = 0.05
# Enlarged megapixels up to which --steps auto takes so many steps: about a minute on two cores, seconds on a GPU.
AUTO_STEPS = {"cpu": ((4, 4), (10, 2), (20, 1)), "gpu": ((64, 4), (256, 2), (1024, 1))}
SPREAD = 8  # bytes: a mean and a sum of squares
WHITE = 8  # levels of 255: the standard deviation that is white in a map of uncertainty
OnTile = Callable[[], None]


def _nothing() -> None:
    return None


def colours_of(channels: int) -> int:
    """How many of a picture's channels are not alpha."""
    return channels - (channels in (2, 4))


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
    max_memory: int | None = None,
    views: int = 1,
) -> list[np.ndarray]:
    """Pixels (H, W, C) as `Picture` holds them, enlarged four times: a batch of equal shape and type, with a generator
    for each.

    Grey goes through the network as three equal channels whose mean is kept. Transparency is enlarged by the
    network's faithful estimate, if it has one, and colours as they go on where they are invisible (`filled`), so that
    neither what was hidden there nor the edge itself shows in them.
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
            max_memory=max_memory,
            views=views,
        ).images

    colours = [filled(each, top) for each in pixels] if transparent else pixels
    result = run(colours, steps)
    large = [each[..., : colours[0].shape[2]] for each in back(_one_grey(result) if grey else result)]
    if not transparent:
        return large
    covers = back(_one_grey(run([each[..., -1:] for each in pixels], _cover_steps(pipeline, steps))))
    covers = [_settled(cover[..., :1], each[..., -1], top) for cover, each in zip(covers, pixels, strict=True)]
    return [np.dstack([np.where(cover > 0, each, 0), cover]) for each, cover in zip(large, covers, strict=True)]


def _cover_steps(pipeline: SR3Pipeline, steps: int) -> int:
    """How many steps transparency takes: none, but for the paper's models, which have no estimate."""
    return 0 if pipeline.estimates else steps


def filled(pixels: np.ndarray, top: int) -> np.ndarray:
    """The colours (H, W, C - 1) of pixels with alpha last; as far as one is more transparent than those next to it, it
    takes the colours around, smoothly (push-pull: Gortler et al., The Lumigraph, SIGGRAPH 1996). All zeros where
    nothing is visible."""
    values = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]  # (1, C, H, W)
    share = values[:, -1:] / top
    levels = [(values[:, :-1] * share, share)]
    kept = share / F.max_pool2d(share, 3, 1, 1).clamp(min=1e-9)  # what is as visible as all around it stays
    while max(share.shape) > 1:
        colour, share = (4 * F.avg_pool2d(each, 2, ceil_mode=True) for each in levels[-1])
        levels.append((colour / share.clamp(min=1), share.clamp(max=1)))
    colour, share = levels.pop()
    colour = colour / share.clamp(min=1e-9)
    for own, share in reversed(levels[1:]):
        colour = own + (1 - share) * F.interpolate(colour, share.shape[-2:], mode="bilinear")
    colour = torch.lerp(F.interpolate(colour, kept.shape[-2:], mode="bilinear"), values[:, :-1], kept)
    return colour[0].permute(1, 2, 0).round().numpy().astype(pixels.dtype)


def _settled(cover: np.ndarray, alpha: np.ndarray, top: int) -> np.ndarray:
    """The enlarged `cover` (4h, 4w, 1), but invisible or opaque where `alpha` (h, w) and what is next to it are: no
    ripples beside a hard edge."""
    near = sliding_window_view(np.pad(alpha, 1, mode="edge"), (3, 3))
    least, most = (
        np.kron(each, np.ones((SCALE, SCALE), each.dtype))[..., None] for each in (near.min((2, 3)), near.max((2, 3)))
    )
    return np.where(most == 0, 0, np.where(least == top, top, cover)).astype(cover.dtype)


def evaluations(
    pipeline: SR3Pipeline, picture: Picture, factor: int, steps: int, tiling: Tiling | None = None
) -> list[int]:
    """How often each pass of `enlarge_batch` will call its `on_tile`."""
    height, width, channels = picture.pixels.shape
    totals = []
    for scale in (1, SCALE)[: 1 if factor == SCALE else 2]:
        colours = pipeline.evaluations(height * scale, width * scale, steps, tiling)
        extra = _cover_steps(pipeline, steps)
        cover = pipeline.evaluations(height * scale, width * scale, extra, tiling) if channels in (2, 4) else 0
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
    max_memory: int | None = None,
    views: int = 1,
) -> list[Picture]:
    """Pictures of one size, number of channels and depth, enlarged 4 or 16 times, with their profiles and EXIF.

    Each pass takes a child of a picture's seed, so that a picture is the same alone and in any batch, within two
    levels of 255 as they show (a network's sums are ordered differently; the service has them ordered alike on a CPU).
    `consistency` of None leaves the second pass of 16 times unprojected: the ripples of the first would come back.
    Raises ValueError for another factor, for unequal pictures, and where memory is too small for the last pass.
    """
    if factor not in FACTORS:
        raise ValueError(f"factor is {factor}; it must be one of {', '.join(map(str, FACTORS))}")
    if len({(p.pixels.shape, p.pixels.dtype) for p in pictures}) != 1 or len(seeds) != len(pictures):
        raise ValueError("pictures of one batch must have one size, number of channels and depth, and a seed each")
    passes = 1 if factor == SCALE else 2
    if passes == 2:  # what has no room then is told before minutes of the first pass
        height, width = (SCALE * side for side in pictures[0].pixels.shape[:2])
        pipeline.plan(height, width, len(pictures), tiling, max_memory and max_memory - memory.KEPT)
    children = [np.random.SeedSequence(seed).spawn(passes) for seed in seeds]
    pixels = [p.pixels for p in pictures]
    for index in range(passes):
        states = [int(each[index].generate_state(1, np.uint64)[0]) for each in children]
        generators = [torch.Generator().manual_seed(state) for state in states]
        level = aug_level if index == 0 else max(aug_level, SECOND_PASS_AUG_LEVEL)
        settings = (level, consistency, tiling, on_tile, max_memory, views)
        pixels = enlarge_pixels(pipeline, pixels, steps, generators, *settings)
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
    max_memory: int | None = None,
    views: int = 1,
) -> Picture:
    """One picture through `enlarge_batch`. The same seed gives the same pixels."""
    settings = (factor, steps, aug_level, consistency, tiling, on_tile, max_memory, views)
    return enlarge_batch(pipeline, [picture], [seed], *settings)[0]


def auto_steps(height: int, width: int, factor: int, device: str) -> int:
    """How many steps are worth their time for a picture of height x width on a device of this type: 4, 2, 1 or 0."""
    megapixels = height * width * factor**2 / 1e6
    limits = AUTO_STEPS["cpu" if device == "cpu" else "gpu"]
    return next((steps for most, steps in limits if megapixels <= most), 0)


def spread(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Standard deviation of each pixel over two pictures or more, uint8 or uint16 (H, W, C) of one size, as a grey
    picture uint8 (H, W, 1): the root of the mean variance over the channels, 255 for `WHITE` levels of 255 and more.
    Alpha, which no step draws, has no share in it.

    One picture is held at a time (Welford, Technometrics 4(3), 1962), and `SPREAD` bytes for each number of one.
    """
    count, top = 0, 255
    mean: np.ndarray = np.zeros(1, np.float32)
    squares: np.ndarray = np.zeros(1, np.float32)
    for pixels in pictures:
        count, top = count + 1, np.iinfo(pixels.dtype).max
        values = pixels[..., : colours_of(pixels.shape[2])].astype(np.float32)
        change = values - mean
        mean = mean + change / count
        values -= mean
        values *= change
        squares = squares + values
        del pixels, values, change  # not held while the next one is drawn
    if count < 2:
        raise ValueError(f"{count} pictures have no spread; it takes 2 or more")
    deviation = np.sqrt(np.mean(squares, axis=2, keepdims=True) / (count - 1)) * (255 / top)
    return np.round(np.minimum(deviation * (255 / WHITE), 255)).astype(np.uint8)
