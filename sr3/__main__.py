"""Enlarge pictures: `python -m sr3 photo.jpg -o big.png`."""

import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sr3.images import ImageError, encode, format_of, read, write


@dataclass(frozen=True)
class Options:
    image: tyro.conf.Positional[Path]
    """The picture to enlarge: PNG, JPEG, WebP, TIFF or BMP, of at least 8x8 pixels."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The file to write: PNG, JPEG, WebP or TIFF. By default IMAGE_x4.png beside the picture."""
    factor: int = 4
    """4 or 16."""
    steps: int = 4
    """0 gives the faithful picture; more add texture."""
    seed: int | None = None
    """The same seed gives the same picture. Drawn and reported if not given."""
    scheduler: str | None = None
    """DDIM, DDPM, DPMSolver++, Euler, LMS or UniPC, in place of the model's own."""
    aug_level: float = 0.0
    """Noise conditioning augmentation: how much of the picture's own noise to smooth away, 0 to 0.3."""
    consistency: int | None = None
    """How many times the result is made to reduce to the picture again: 2 if not given, 0 for a picture whose noise
    and blocks you do not want to keep."""
    model: Path | None = None
    """A pipeline directory, in place of the bundled weights."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    tile: int = 256
    """Pixels on a side of the tiles that a large picture is worked on in; smaller takes less memory."""
    quality: int = 95
    """Of JPEG and WebP."""


def check(options: Options) -> Path:
    """The file to write. Raises ValueError for options that no picture could be made with."""
    if options.factor not in (4, 16):
        raise ValueError(f"--factor is {options.factor}; it must be 4 or 16")
    if not 0 <= options.steps <= 1000:
        raise ValueError(f"--steps is {options.steps}; it must be between 0 and 1000")
    if not 0 <= options.aug_level < 1:
        raise ValueError(f"--aug-level is {options.aug_level}; it must be at least 0 and less than 1")
    if options.consistency is not None and not 0 <= options.consistency <= 100:
        raise ValueError(f"--consistency is {options.consistency}; it must be between 0 and 100")
    if not 1 <= options.quality <= 100:
        raise ValueError(f"--quality is {options.quality}; it must be between 1 and 100")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise ValueError(f"--seed is {options.seed}; it must be between 0 and 2^63 - 1")
    out = options.out or options.image.with_name(f"{options.image.stem}_x{options.factor}.png")
    format_of(out)
    if not out.parent.is_dir():
        raise ImageError(f"{out.parent} is not a folder")
    return out


def run(options: Options) -> None:
    """Read, enlarge, write; one line at the end says what was done."""
    out = check(options)
    picture = read(options.image)
    height, width, _ = picture.pixels.shape
    from diffusers.utils.logging import disable_progress_bar
    from tqdm import tqdm

    from sr3.enlarge import enlarge
    from sr3.pipeline import load
    from sr3.schedulers import with_scheduler
    from sr3.tiling import Tiling

    tiling = Tiling(options.tile, min(48, (options.tile - 1) // 2))
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    disable_progress_bar()
    pipeline = load(options.model, options.device)
    if options.scheduler:
        pipeline = with_scheduler(pipeline, options.scheduler)
    encode(type(picture)(picture.pixels[:1, :1]), format_of(out))  # can this format hold such a picture?
    started = time.perf_counter()
    with tqdm(unit="tile", delay=2, leave=False) as bar:
        settings = (options.factor, options.steps, seed, options.aug_level, options.consistency)
        large = enlarge(pipeline, picture, *settings, tiling, bar.update)
    write(large, out, options.quality, {"sr3": f"steps {options.steps}, seed {seed}, factor {options.factor}"})
    tall, wide = large.pixels.shape[:2]
    seconds = time.perf_counter() - started
    print(f"{out}: {width}x{height} to {wide}x{tall}, steps {options.steps}, seed {seed}, {seconds:.1f} s")


def main() -> int:
    options = tyro.cli(Options, prog="python -m sr3", description=__doc__)
    try:
        run(options)
    except ValueError as error:
        print(f"sr3: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
