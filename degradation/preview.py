"""``python -m degradation.preview``: a sheet that shows what the degradation does to pictures."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import tyro

from degradation.arguments import interrupted, parse_arguments
from degradation.captions import parse_step
from degradation.draw import sample_plan
from degradation.drawing import legible
from degradation.gallery import Gallery, apply_by_hand, choose_sources, draw_gallery, replay_gallery
from degradation.images import find_images
from degradation.page import draw_page
from degradation.presets import Preset, find_preset
from degradation.records import read_records, write_bytes, write_records
from degradation.sheet import draw_sheet
from degradation.stats import draw_statistics

_MOST_IMAGES = 48  # on one sheet
_STATISTICS_SIDE = 256  # at most, of the pictures for which plans are drawn


@dataclass(frozen=True)
class Options:
    """Show what the degradation pipeline does to pictures: a contact sheet, with the plans beside it.

    Examples:
      python -m degradation.preview photo.jpg
      python -m degradation.preview photos/ --preset bsr-light --n 4 --seed 7 --out light.png
      python -m degradation.preview photo.jpg --op blur:sigma=2 --op jpeg:quality=30
      python -m degradation.preview --replay photo-bsr.plans.json
      python -m degradation.preview --stats 500 --preset bsr-plus
    """

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Pictures, and folders of pictures."""
    preset: str = "bsr"
    """bicubic, bsr-light, bsr, bsr-plus, or the JSON file of a preset of your own."""
    n: int = 6
    """How many degraded versions of each picture."""
    seed: int = 0
    """Plan i of picture j is drawn from the generator with the seed [seed, j, i], both counted from 0."""
    scale: int = 4
    """How many times smaller the pictures become."""
    crop: int = 320
    """Show this many pixels square, where there is most detail; 0 shows all of the picture."""
    max_side: int = 1280
    """Larger pictures are shrunk to this many pixels on their longer side first; 0 leaves them."""
    out: Path | None = None
    """The sheet: .png, .jpg or .webp. Default: PICTURE-PRESET.png in the current folder."""
    plans: Path | None = None
    """The plans. Default: beside the sheet, ending in .plans.json."""
    replay: Path | None = None
    """Repeat the plans in this file, on its pictures or on those named."""
    op: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Instead of drawn plans, this operation by hand; repeat it for several in a row."""
    stats: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Draw N plans and plot their distributions (without pictures: only that)."""
    html: bool = False
    """Also write a page, in one file, on which to flip between original and degraded."""
    skip_bad: bool = False
    """Name unreadable files and go on, in place of stopping."""
    show_preset: bool = False
    """Print the preset as JSON, to be changed and given back with --preset."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code. Every error is one line on stderr and the code 2."""
    try:
        run(parse_arguments(Options, "degradation.preview", arguments=arguments))
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return interrupted("degradation.preview")
    return 0


def run(options: Options) -> None:
    """Does what the options say, and prints the names of the files. Raises ValueError and OSError."""
    preset = _load_preset(options.preset)
    if options.show_preset:
        print(preset.to_json())
        return
    _check(options, preset)
    out = options.out or Path(_default_name(options, preset))
    _encode(out, np.zeros((8, 8, 3), np.uint8))  # a bad name fails before the work, not after it
    images, files = find_images(options.images), _name_files(options, out)
    _check_files(list(files.values()), [*images, *_other_inputs(options)])
    if _names_one(options) and not options.out:
        _check_other(out, options.images[0])
    if "statistics" in files:
        rng, side = np.random.default_rng(options.seed), _STATISTICS_SIDE // options.scale * options.scale
        plans = [sample_plan(rng, preset, options.scale, (side, side)) for _ in range(options.stats)]
        write_bytes(files["statistics"], _encode(files["statistics"], draw_statistics(plans, preset.name)))
        print(legible(f"statistics: {files['statistics']}"))
    if "sheet" not in files:
        return
    records, sections = _make_gallery(options, preset, images)
    heading, footer = _words(options, preset)
    write_bytes(files["sheet"], _encode(files["sheet"], draw_sheet(sections, heading, footer)))
    print(legible(f"sheet: {files['sheet']}"))
    write_records(files["plans"], records)
    print(legible(f"plans: {files['plans']}"))
    if "page" in files:
        write_bytes(files["page"], legible(draw_page(sections, heading)).encode())
        print(legible(f"page: {files['page']}"))


def _name_files(options: Options, out: Path) -> dict[str, Path]:
    """What is written, by its kind."""
    files: dict[str, Path] = {}
    with_pictures = bool(options.images or options.replay)
    if options.stats:
        files["statistics"] = out.with_name(f"{out.stem}-stats{out.suffix}") if with_pictures else out
    if with_pictures:
        files |= {"sheet": out, "plans": options.plans or out.with_suffix(".plans.json")}
    if with_pictures and options.html:
        files["page"] = out.with_suffix(".html")
    return files


def _other_inputs(options: Options) -> list[Path]:
    """The files that are read beside the pictures that are named."""
    inputs = [Path(options.preset)] if options.preset.endswith(".json") else []
    if options.replay:
        sources = [] if options.images else [Path(record.source.path) for record in read_records(options.replay)]
        inputs += [options.replay, *sources, *(options.replay.parent / source for source in sources)]
    return inputs


def _check_files(outputs: list[Path], inputs: list[Path]) -> None:
    """Raises ValueError where something would be written over what is read, or over something else that is written."""
    taken = {os.path.realpath(path) for path in inputs}  # Path.resolve raises RuntimeError for links in a circle
    for path in outputs:
        if os.path.realpath(path) in taken:
            raise ValueError(f"{path}: it is read too, or written twice; give --out and --plans other names")
        taken.add(os.path.realpath(path))


def _check_other(out: Path, image: Path) -> None:
    """Raises ValueError where a sheet of this name was made of another picture, as its plans tell, or they are none."""
    plans = out.with_suffix(".plans.json")
    for record in read_records(plans) if plans.exists() else ():
        if os.path.realpath(record.source.path) != os.path.realpath(image):
            raise ValueError(f"{out} was made of {record.source.path}; give --out another name for {image}")


def _check(options: Options, preset: Preset) -> None:
    if not (options.images or options.replay or options.stats):
        raise ValueError("no picture is named (python -m degradation.preview --help tells more)")
    if options.scale not in preset.scales:
        raise ValueError(f"preset {preset.name} allows the scales {preset.scales}, got {options.scale}")
    if options.replay and options.op:
        raise ValueError("--replay and --op exclude each other")
    if options.replay and options.skip_bad:
        raise ValueError("--replay and --skip-bad exclude each other")
    if not 1 <= options.n <= 100:
        raise ValueError(f"--n is in 1–100, got {options.n}")
    if not 0 <= options.stats <= 1_000_000:
        raise ValueError(f"--stats is in 0–1000000, got {options.stats}")
    for name in ("crop", "max_side", "seed"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} is not negative, got {getattr(options, name)}")


def _make_gallery(options: Options, preset: Preset, images: list[Path]) -> Gallery:
    images = thin_out(images)
    if options.replay:
        return replay_gallery(options.replay, images)
    steps = tuple(parse_step(text) for text in options.op)
    multiple = 1 if steps else options.scale
    sources = choose_sources(images, options.crop, options.max_side, multiple, options.skip_bad)
    if steps:
        return apply_by_hand(sources, steps)
    return draw_gallery(sources, preset, options.scale, options.n, options.seed)


def thin_out(images: list[Path]) -> list[Path]:
    """At most as many as a sheet shows, evenly spaced; if that leaves some out, stderr says so."""
    if len(images) <= _MOST_IMAGES:
        return images
    print(f"{len(images)} pictures; the sheet shows {_MOST_IMAGES} of them, evenly spaced", file=sys.stderr)
    return [images[i * len(images) // _MOST_IMAGES] for i in range(_MOST_IMAGES)]


def _words(options: Options, preset: Preset) -> tuple[str, str]:
    """The sheet's heading and its last line."""
    made_by = "Made by python -m degradation.preview. Small pictures are enlarged by repeating their pixels."
    if options.replay:
        return f"Degradation, repeated from {options.replay.name}", made_by
    if options.op:
        return "Degradation by hand", made_by
    heading = f"Degradation: preset {preset.name}, scale {options.scale}, seed {options.seed}"
    return heading, f"{made_by} Plan i of picture j, counted from 0, is drawn with the seed [{options.seed}, j, i]."


def _load_preset(name: str) -> Preset:
    """A preset by its name, or from a JSON file."""
    if not name.endswith(".json"):
        return find_preset(name)
    try:
        return Preset.from_json(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _default_name(options: Options, preset: Preset) -> str:
    if options.replay:
        return f"{options.replay.name.removesuffix('.json').removesuffix('.plans')}-replay.png"
    if not options.images:
        return f"stats-{preset.name}.png"
    first = options.images[0].stem if _names_one(options) else "sheet"
    return f"{first}-{'by-hand' if options.op else preset.name}.png"


def _names_one(options: Options) -> bool:
    """Whether the default name is that of the only picture."""
    return len(options.images) == 1 and not options.images[0].is_dir() and not options.replay


def _encode(path: Path, sheet: np.ndarray) -> bytes:
    """The sheet as a file of the kind that the path's suffix names."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{path}: a sheet is a .png, .jpg or .webp file")
    done, data = cv2.imencode(path.suffix.lower(), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not done:
        size = f"{sheet.shape[1]}x{sheet.shape[0]} pixels"
        raise ValueError(f"{path}: the sheet is of {size}, more than such a file holds; write a .png or less")
    return data.tobytes()


if __name__ == "__main__":
    sys.exit(main())
