"""Measure a model and its peers on held-out pictures: `python -m sr3.evaluate --data FOLDER --peers bicubic`."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar

from degradation import PRESETS, crop_to_multiple, degrade
from sr3 import reference, sets
from sr3.decoding import read, read_folder
from sr3.encoding import check_writable, format_of
from sr3.images import LOSSY, SMALLEST_SIDE, SUFFIXES, VIEWS, ImageError
from sr3.metrics import consistency, ms_ssim, psnr, ssim, ssimulacra2
from sr3.mistakes import told
from sr3.model import SCALE
from sr3.peers import Upscaler, check_peer, peer
from sr3.perceptual import FILES, distances
from sr3.pipeline import CONSISTENCY, SR3Pipeline, load
from sr3.report import MOST_ROWS, peak_memory, table, write_sheet
from sr3.schedulers import with_scheduler

SMALLEST_PERCEPTUAL = 64  # AlexNet has no fifth layer below
SMALLEST_NIQE = 2 * 96 + 2 * SCALE  # two of its blocks


@dataclass(frozen=True)
class EvaluateConfig:
    data: Path
    """A folder of originals."""
    low_res: Path | None = None
    """A folder of their low-resolution versions, named like them (an ending x4 may be added), in place of a
    degradation."""
    degradation: str = "bicubic"
    """bicubic, bsr-light, bsr or bsr-plus; not with --low-res."""
    steps: tuple[int, ...] = (0, 4)
    peers: tuple[str, ...] = ("bicubic",)
    """bicubic, lanczos, encoder (no step, no projection), realesrgan (x4plus, through ncnn), realesrgan-torch, a
    .safetensors file that spandrel loads, the folder of a diffusers upscaler."""
    schedulers: tuple[str, ...] = ()
    """Compare these at each number of steps, in place of the model's own."""
    model: Path | None = None
    """A pipeline directory, in place of the bundled weights."""
    networks: Path | None = None
    """A folder of classification networks' weights, for LPIPS, DISTS, and FID, KID, precision and recall over patches:
    those whose files are there (sr3.perceptual and sr3.sets say their names)."""
    consistency: int | None = None
    """How many times SR3's results are projected: if not given 2 for bicubic input and for --low-res without JPEG or
    WebP files, else 0."""
    aug_level: float = 0.0
    views: int = 1
    """Of how many views of the picture SR3's estimate is the mean: test-time augmentation."""
    device: str = "auto"
    limit: int | None = None
    """Only the first so many pictures."""
    max_side: int = 512
    """Originals are cropped to the middle square of at most so many pixels on a side."""
    match: str = ""
    """Only pictures whose file name contains this."""
    seed: int = 0
    sheet: Path | None = None
    """Write crops side by side here, labelled: the original, low_res, each peer and each number of steps."""
    out: Path | None = None
    """Write the table, each picture's values and the settings as JSON here."""
    markdown: Path | None = None
    """Write the table as Markdown here."""


class Pair(NamedTuple):
    name: str
    low_res: np.ndarray
    """uint8 (h, w, 3)."""
    original: np.ndarray
    """uint8 (4h, 4w, 3)."""


def check(config: EvaluateConfig) -> None:
    """Raises ValueError for what would fail only after the work, or leave out without a word; says what is left out."""
    if not config.steps or min(config.steps) < 0:
        raise ValueError("--steps must be numbers from 0 up")
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"--limit is {config.limit}; it must be 1 or more")
    if not 1 <= config.views <= VIEWS:
        raise ValueError(f"--views is {config.views}; it must be between 1 and {VIEWS}")
    if config.max_side < SCALE * SMALLEST_SIDE:
        raise ValueError(f"--max-side is {config.max_side}; it must be at least {SCALE * SMALLEST_SIDE}")
    if config.low_res and config.degradation != "bicubic":
        raise ValueError(f"--degradation {config.degradation} is not for pairs: leave it out with --low-res")
    for name in config.peers:
        check_peer(name)
    if config.sheet:
        format_of(config.sheet)
    for file in filter(None, (config.sheet, config.out, config.markdown)):
        check_writable(file)
    if config.networks:
        check_networks(config.networks)


def check_networks(folder: Path) -> None:
    """Raises ValueError where no measure's networks are in the folder; says on stderr which are left out."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    needed = {**FILES, "FID, KID, precision and recall": (sets.INCEPTION,)}
    missing = {m: [f for f in files if not (folder / f).is_file()] for m, files in needed.items()}
    if all(missing.values()):
        names = "; ".join(f"{', '.join(files)} for {measure}" for measure, files in needed.items())
        raise ValueError(f"{folder} holds no measure's networks: they are {names}")
    if any(missing.values()):
        lines = [f"{measure} for want of {', '.join(files)}" for measure, files in missing.items() if files]
        print(f"left out: {'; '.join(lines)}", file=sys.stderr)


def rgb(path: Path) -> np.ndarray:
    """uint8 (H, W, 3); of a grey picture its one channel three times. Raises ImageError for alpha and sixteen bits."""
    pixels = read(path).pixels
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
        raise ImageError(f"{path} is neither RGB nor grey, of 8 bits a channel; pictures to compare must be")
    return pixels if pixels.shape[2] == 3 else pixels.repeat(3, axis=2)


def middle(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle square of at most `side` pixels on a side."""
    height, width = (min(n, side) for n in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def partner(path: Path, folder: Path, found: dict[str, Path]) -> Path:
    """The low-resolution file of an original, by its name. Raises ImageError without one."""
    for stem in (path.stem, f"{path.stem}x{SCALE}", f"{path.stem}_x{SCALE}"):
        if stem in found:
            return found[stem]
    raise ImageError(f"{folder} holds no {path.stem} or {path.stem}x{SCALE} for {path.name}")


def pairs(config: EvaluateConfig) -> list[Pair]:
    """low_res and original of each picture. Raises ValueError for an unknown degradation, and ImageError for pairs
    that do not fit."""
    if config.degradation not in PRESETS:
        raise ValueError(f"degradation is {config.degradation!r}; it must be one of {', '.join(PRESETS)}")
    files = read_folder(config.low_res) if config.low_res else []
    known = {p.stem: p for p in files}
    if len(known) < len(files):
        raise ImageError(f"{config.low_res} holds several pictures of one name")
    made = []
    for index, path in enumerate([p for p in read_folder(config.data) if config.match in p.name][: config.limit]):
        original = rgb(path)
        if config.low_res:
            low_res = rgb(partner(path, config.low_res, known))
            tall, wide = (SCALE * n for n in low_res.shape[:2])
            if not (0 <= original.shape[0] - tall < SCALE and 0 <= original.shape[1] - wide < SCALE):
                raise ImageError(f"{path.name} is {original.shape[:2]}, its low_res {low_res.shape[:2]}: not {SCALE}x")
            low_res = middle(low_res, config.max_side // SCALE)
            top, left = (SCALE * ((n // SCALE - m) // 2) for n, m in zip((tall, wide), low_res.shape, strict=False))
            original = original[top : top + SCALE * low_res.shape[0], left : left + SCALE * low_res.shape[1]]
        else:
            original = crop_to_multiple(middle(original, config.max_side), SCALE)
            rng = np.random.default_rng([config.seed, index])
            degraded, _ = degrade(original.astype(np.float32) / 255, rng, config.degradation)
            low_res = np.round(degraded * 255).astype(np.uint8)
        if min(low_res.shape[:2]) < SMALLEST_SIDE:
            tall, wide = low_res.shape[:2]
            raise ImageError(
                f"{path}: its low_res is {wide}x{tall}; both sides must be at least {SMALLEST_SIDE} pixels"
            )
        made.append(Pair(path.relative_to(config.data).as_posix(), low_res, original))
    if not made:
        raise ValueError(f"no picture in {config.data} has {config.match!r} in its name")
    return made


def short_names(peers: Sequence[str]) -> dict[str, str]:
    """Peers by the last part of their path, or by the whole where two would be called the same."""
    last = [Path(p).name for p in peers]
    return {name if last.count(name) == 1 else whole: whole for name, whole in zip(last, peers, strict=True)}


def projections(config: EvaluateConfig) -> int:
    """How many times SR3's results are projected: as `python -m sr3` would, which knows a lossy file by its format."""
    if config.consistency is not None:
        return config.consistency
    clean = config.degradation == "bicubic" and not config.aug_level
    if config.low_res:
        clean = clean and not any(SUFFIXES.get(p.suffix.lower()) in LOSSY for p in read_folder(config.low_res))
    return CONSISTENCY if clean else 0


def upscalers(pipeline: SR3Pipeline, config: EvaluateConfig) -> dict[str, Upscaler]:
    """What is compared, by name."""
    times = projections(config)

    def at(pipeline: SR3Pipeline, steps: int) -> Upscaler:
        def run(low_res: np.ndarray) -> np.ndarray:
            draw = torch.Generator().manual_seed(config.seed)
            return pipeline(low_res, steps, draw, config.aug_level, times, views=config.views).images[0]

        return run

    sampled = {f", {name}": with_scheduler(pipeline, name) for name in config.schedulers} or {"": pipeline}
    named = {f"sr3, {n} steps{name}": at(p, n) for name, p in sampled.items() for n in config.steps}
    return {n: peer(p, pipeline, config.device, config.seed) for n, p in short_names(config.peers).items()} | named


def measures(networks: Path | None) -> dict[str, Callable[[Pair, np.ndarray], float | None]]:
    """Each measure of a pair and a result; None where the picture is too small for it."""
    found: dict[str, Callable[[Pair, np.ndarray], float | None]] = {
        "PSNR": lambda pair, result: psnr(pair.original, result),
        "SSIM": lambda pair, result: ssim(pair.original, result),
        "MS-SSIM": lambda pair, result: ms_ssim(pair.original, result),
        "SSIMULACRA 2": lambda pair, result: ssimulacra2(pair.original, result),
        "consistency": lambda pair, result: consistency(pair.low_res, result),
        "colour shift": lambda pair, result: float(np.abs(result.mean((0, 1)) - pair.low_res.mean((0, 1))).max()),
    }
    niqe = reference.niqe()
    if niqe is None:
        print("NIQE is left out: basicsr is not installed", file=sys.stderr)
    else:
        found["NIQE"] = lambda pair, result: niqe(result) if min(result.shape[:2]) >= SMALLEST_NIQE else None
    for name, distance in (distances(networks) if networks else {}).items():
        found[name] = (
            lambda pair, result, distance=distance: (  # type: ignore[misc]
                distance(pair.original, result) if min(result.shape[:2]) >= SMALLEST_PERCEPTUAL else None
            )
        )
    return found


def of_sets(originals: Sequence[np.ndarray], results: Sequence[np.ndarray], networks: Path) -> dict[str, float]:
    """FID and its kin between the patches of all originals and of all results; nothing without Inception's weights."""
    if not (networks / sets.INCEPTION).is_file():
        return {}
    both = [[patch for picture in side for patch in sets.patches(picture)] for side in (originals, results)]
    real, made = (sets.inception_features(side, networks / sets.INCEPTION) for side in both)
    return sets.compare(real, made, "") | {"patches": len(made)}


def check_patches(originals: Sequence[np.ndarray], networks: Path) -> None:
    """Raises ValueError where `of_sets` would have too little to compare."""
    found = sum(len(sets.patches(picture)) for picture in originals)
    if (networks / sets.INCEPTION).is_file() and found < sets.LEAST:
        side = f"{sets.PATCH}×{sets.PATCH}"
        raise ValueError(
            f"the pictures hold {found} patches of {side} pixels; FID and its kin need at least {sets.LEAST}: "
            f"add pictures, or take {sets.INCEPTION} out of {networks}"
        )


def evaluate(config: EvaluateConfig) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, dict[str, float]]]]:
    """Mean of each measure over the pictures, by upscaler; and each picture's values, by upscaler and name."""
    check(config)
    pictures = pairs(config)
    if config.networks:
        check_patches([p.original for p in pictures], config.networks)
    pipeline = load(config.model, config.device)
    pipeline.set_progress_bar_config(disable=True)
    taken = measures(config.networks)
    compared = upscalers(pipeline, config)
    values: dict[str, dict[str, dict[str, float]]] = {}
    of_set: dict[str, dict[str, float]] = {}
    shown: dict[str, dict[str, np.ndarray]] = {}
    for pair in pictures[:MOST_ROWS] if config.sheet else ():
        enlarged = cv2.resize(pair.low_res, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)
        shown[pair.name] = {"original": pair.original, "low_res": enlarged}
    for name, upscale in compared.items():
        upscale(pictures[0].low_res)  # the first call allocates and plans
        values[name], results = {}, []
        for pair in pictures:
            started = time.perf_counter()
            result, peak = peak_memory(lambda pair=pair, upscale=upscale: upscale(pair.low_res))  # type: ignore[misc]
            seconds = time.perf_counter() - started
            scores = {m: f(pair, result) for m, f in taken.items()}
            each = {m: v for m, v in scores.items() if v is not None}
            megapixels = result.shape[0] * result.shape[1] / 1e6
            values[name][pair.name] = each | {"s/MP": seconds / megapixels, "peak MB": peak}
            if config.networks:
                results.append(result)
            if pair.name in shown:
                shown[pair.name][name] = result
        if config.networks:
            of_set[name] = of_sets([p.original for p in pictures], results, config.networks)
    if config.sheet:
        write_sheet(config.sheet, list(shown.items()))
    return {name: each | of_set.get(name, {}) for name, each in mean(values).items()}, values


def mean(values: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each upscaler's measures over the pictures of which all upscalers have them, which are the same then; of the
    peak the largest."""
    scores = [each for pictures in values.values() for each in pictures.values()]
    found: dict[str, dict[str, float]] = {name: {} for name in values}
    for measure in dict.fromkeys(m for each in scores for m in each):
        whole = [p for p in next(iter(values.values())) if all(measure in each[p] for each in values.values())]
        for name, pictures in values.items() if whole else ():
            column = [pictures[p][measure] for p in whole]
            found[name][measure] = float(max(column) if measure == "peak MB" else np.mean(column))
    return found


def main() -> int:
    from degradation.arguments import parse_arguments

    try:
        config = parse_arguments(EvaluateConfig, "sr3.evaluate", __doc__)
        disable_progress_bar()
        results, values = evaluate(config)
        print(table(results))
        if config.markdown:
            config.markdown.write_text(table(results) + "\n")
        if config.out:
            asked = asdict(config) | {"consistency": projections(config)}
            settings = {k: str(v) if isinstance(v, Path) else v for k, v in asked.items()}
            config.out.write_text(json.dumps({"settings": settings, "mean": results, "pictures": values}, indent=1))
    except (Exception, KeyboardInterrupt) as error:
        return told("sr3.evaluate", error, "a smaller --max-side")
    return 0


if __name__ == "__main__":
    sys.exit(main())
