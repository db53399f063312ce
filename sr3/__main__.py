"""Enlarge pictures: `python -m sr3 photo.jpg -o big.png`."""

import itertools
import re
import secrets
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from degradation.arguments import interrupted, parse_arguments
from sr3.decoding import read
from sr3.encoding import check_format, check_writable, format_of, write
from sr3.images import SMALLEST_SIDE, VIEWS, ImageError, Picture

UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True)
class Options:
    image: tyro.conf.Positional[Path]
    """The picture to enlarge: PNG, JPEG, WebP, TIFF or BMP, of at least 8x8 pixels."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write: PNG, JPEG, WebP or TIFF. By default IMAGE_x4.png beside the picture."""
    factor: int = 4
    """4 or 16."""
    steps: int | Literal["auto"] = 4
    """0 gives the faithful picture; more add texture; auto chooses by size and device."""
    seed: int | None = None
    """The same seed gives the same picture. Drawn and reported if not given."""
    scheduler: str | None = None
    """DDIM, DDPM, DPMSolver++, Euler, LMS or UniPC, in place of the model's own."""
    aug_level: float = 0.0
    """Noise conditioning augmentation: how much of the picture's own noise to smooth away, 0 to 0.3."""
    consistency: int | None = None
    """How many times the result is made to reduce to the picture again; 0 leaves out its noise and blocks. If not
    given 0 for JPEG, WebP, with an --aug-level and for the second pass of 16 times, else 2."""
    model: Path | None = None
    """A pipeline directory, in place of the bundled weights."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    views: int = 1
    """Test-time augmentation: of how many views of the picture (itself, mirrored, turned; up to 8) the estimate is the
    mean. Closer to the original, a little softer, and slower: each takes an encoder's pass."""
    samples: int = 1
    """How many pictures to draw for --uncertainty; the first is the one written."""
    uncertainty: Path | None = None
    """Write here, as a grey picture, how much each pixel differs between the samples: white is a standard deviation
    of 8 levels of 255 or more."""
    tile: int | None = None
    """Pixels on a side, 192 or more, of the tiles that a picture is worked on in, in place of those that fit."""
    max_memory: str | None = None
    """At most so much memory (3GB, 900MiB) for the whole program, on a GPU for its tensors: a large picture is worked
    on region by region. If not given, most of what is free."""
    quality: int = 95
    """Of JPEG and WebP."""


def parse_size(text: str) -> int:
    """Bytes of "3GB", "900 MiB", "1.5g" or a plain number. Raises ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", text.upper())
    if found is None:
        raise ValueError(f"{text!r} is no amount of memory; write it like 3GB or 900MiB")
    return int(float(found[1]) * UNITS[found[2] or ""])


def check(options: Options) -> Path:
    """The file to write. Raises ValueError for options that no picture could be made with."""
    if options.factor not in (4, 16):
        raise ValueError(f"--factor is {options.factor}; it must be 4 or 16")
    if options.steps != "auto" and not 0 <= options.steps <= 999:
        raise ValueError(f"--steps is {options.steps}; it must be auto, or between 0 and 999")
    if (options.samples > 1) != (options.uncertainty is not None) or not 1 <= options.samples <= 100:
        raise ValueError(f"--samples is {options.samples}; with --uncertainty it must be 2 to 100, else 1")
    if options.uncertainty and options.steps == 0:
        raise ValueError("--uncertainty needs --steps of 1 or more")
    if not 0 <= options.aug_level < 1:
        raise ValueError(f"--aug-level is {options.aug_level}; it must be at least 0 and less than 1")
    if options.consistency is not None and not 0 <= options.consistency <= 100:
        raise ValueError(f"--consistency is {options.consistency}; it must be between 0 and 100")
    if not 1 <= options.quality <= 100:
        raise ValueError(f"--quality is {options.quality}; it must be between 1 and 100")
    if not 1 <= options.views <= VIEWS:
        raise ValueError(f"--views is {options.views}; it must be between 1 and {VIEWS}")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise ValueError(f"--seed is {options.seed}; it must be between 0 and 2^63 - 1")
    if options.max_memory is not None:
        parse_size(options.max_memory)
    if options.tile is not None:
        from sr3.memory import SMALLEST_TILE

        if options.tile < SMALLEST_TILE:
            reason = "the network looks beyond smaller tiles, and they would show"
            raise ValueError(f"--tile is {options.tile}; it must be at least {SMALLEST_TILE}: {reason}")
    out = options.out or options.image.with_name(f"{options.image.stem}_x{options.factor}.png")
    files = [out] if options.uncertainty is None else [out, options.uncertainty]
    for file in files:
        format_of(file)
        check_writable(file)
    if len({file.resolve() for file in (options.image, *files)}) <= len(files):
        raise ImageError(f"{out}: the picture and what is written must be different files")
    return out


def run(options: Options) -> None:
    """Read, enlarge, write; one line at the end says what was done."""
    out = check(options)
    picture = read(options.image)
    check_format(picture, format_of(out), options.factor)
    if options.uncertainty:
        check_format(
            Picture(np.zeros_like(picture.pixels[..., :1], np.uint8)), format_of(options.uncertainty), options.factor
        )
    height, width, channels = picture.pixels.shape
    if min(height, width) < SMALLEST_SIDE:
        raise ImageError(f"{options.image} is {width}x{height}; both sides must be at least {SMALLEST_SIDE} pixels")
    from diffusers.utils.logging import disable_progress_bar
    from tqdm import tqdm

    from sr3 import memory
    from sr3.enlarge import SPREAD, auto_steps, colours_of, enlarge, spread
    from sr3.metrics import consistency
    from sr3.model import SCALE
    from sr3.pipeline import load
    from sr3.schedulers import with_scheduler

    most = parse_size(options.max_memory) if options.max_memory else None
    tiling = memory.pieces(options.tile) if options.tile else None
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    disable_progress_bar()
    pipeline = load(options.model, options.device)
    if options.scheduler:
        pipeline = with_scheduler(pipeline, options.scheduler)
    auto = auto_steps(height, width, options.factor, pipeline.device.type)
    steps = max(auto, int(options.samples > 1)) if options.steps == "auto" else options.steps
    if options.uncertainty and most:  # the first picture and what the map is made of, while the others are drawn
        held = height * width * options.factor**2 * (picture.pixels[:1, :1].nbytes + SPREAD * colours_of(channels))
        small = options.factor // SCALE
        pipeline.plan(small * height, small * width, 1, tiling, most - held - memory.KEPT)
    started = time.perf_counter()
    with tqdm(unit="tile", delay=2, leave=False) as bar:

        def draw(seed: int) -> Picture:
            times = picture.consistency(options.consistency)
            settings = (options.factor, steps, seed, options.aug_level, times, tiling, bar.update, most, options.views)
            return enlarge(pipeline, picture, *settings)

        large = draw(seed)
        write(large, out, options.quality, {"sr3": _how(options, steps, seed)})
        if options.uncertainty:
            others = (draw((seed + i) % 2**63).pixels for i in range(1, options.samples))
            grey = spread(itertools.chain([large.pixels], others))
            write(Picture(grey), options.uncertainty, options.quality, {"sr3": f"{options.samples} samples"})
    tall, wide = large.pixels.shape[:2]
    done = f"{out}: {width}x{height} to {wide}x{tall}, steps {steps}, seed {seed}"
    kept = f"consistency {consistency(picture.pixels, large.pixels):.2f}"
    print(f"{done}, {kept}, {time.perf_counter() - started:.1f} s")


def _how(options: Options, steps: int, seed: int) -> str:
    """What makes the same picture again, of the same file."""
    default = Options(options.image)
    said = {"steps": steps, "seed": seed, "factor": options.factor}
    for name in ("scheduler", "aug_level", "consistency", "model", "views"):
        if (value := getattr(options, name)) != getattr(default, name):
            said[name] = value
    return ", ".join(f"{name} {value}" for name, value in said.items())


def main() -> int:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # what is wrong with a picture is told in one line
            run(parse_arguments(Options, "sr3", __doc__))
    except KeyboardInterrupt:
        return interrupted("sr3")
    except ValueError as error:
        print(f"sr3: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        from sr3 import memory

        if not memory.is_out_of_memory(error):
            raise
        print("sr3: out of memory; a smaller picture or factor takes less", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
