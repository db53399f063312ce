"""A folder of one's own pictures with captions, in the layouts that the field uses."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
CAPTION_SUFFIXES = (".txt", ".caption")
CAPTION_KEYS = ("text", "caption", "prompt")
NAMED = 5  # faults that a message names; then it counts


@dataclass(frozen=True)
class Captioned:
    """A picture's file and what it shows."""

    path: Path
    caption: str

    def open(self) -> Image.Image:
        """The picture as it is meant to be seen, RGB, transparency on white. Raises ValueError if it cannot be read."""
        try:
            with Image.open(self.path) as file:
                upright = ImageOps.exif_transpose(file)
                if upright.mode.startswith("I"):
                    upright = _eight_bits(upright)
                if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                    upright = upright.convert("RGBA")
                    ground = Image.new("RGBA", upright.size, "white")
                    upright = Image.alpha_composite(ground, upright)
                return upright.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.path} cannot be read as a picture: {error}") from None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8, with alpha where one value is transparent: Pillow would clip it at 255."""
    values = np.asarray(picture)
    grey = Image.fromarray(np.round(np.clip(values / 257, 0, 255)).astype(np.uint8))
    key = picture.info.get("transparency")
    if key is not None:
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def read_captioned(folder: Path) -> list[Captioned]:
    """Every picture of a folder, in the order of their names, with its caption: from `metadata.jsonl` where there is
    one (`{"file_name": …, "text": …}` a line, as in Hugging Face's image folders), else from the file beside it that
    ends in .txt or .caption (as in kohya's scripts).

    Raises ValueError that names the pictures without a caption, the captions without a picture, and what is no
    picture: nothing is left out silently.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))})")
    listed = folder / "metadata.jsonl"
    faults: list[str] = []
    captions = _listed(listed, faults) if listed.is_file() else _beside(paths, faults)
    stray = [] if listed.is_file() else _stray(folder, paths)
    found = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        text = captions.pop(name if listed.is_file() else str(path), None)
        if text is None:
            faults.append(f"{name} has no caption")
        elif not text.strip():
            faults.append(f"{name} has an empty caption")
        else:
            found.append(Captioned(path, " ".join(text.split())))
            _check(found[-1], faults)
    faults += [f"{name} is captioned but not there" for name in captions]
    if stray:
        more = f" and {len(stray) - NAMED} more" if len(stray) > NAMED else ""
        accepted = ", ".join(sorted(SUFFIXES))
        faults.append(f"{', '.join(stray[:NAMED])}{more}: no picture of that name beside ({accepted})")
    if faults:
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise ValueError(f"{folder}: {'; '.join(faults[:NAMED])}{more}")
    return found


def _stray(folder: Path, paths: list[Path]) -> list[str]:
    """The files that look like captions of pictures that are not there, or are of a kind that is not read."""
    captioned = {path.with_suffix("") for path in paths}
    texts = [p for p in folder.rglob("*") if p.suffix.lower() in CAPTION_SUFFIXES and not p.name.startswith(".")]
    alone = [p for p in texts if p.with_suffix("") not in captioned and p.is_file()]
    return sorted(p.relative_to(folder).as_posix() for p in alone)


def _beside(paths: list[Path], faults: list[str]) -> dict[str, str]:
    captions = {}
    for path in paths:
        for suffix in CAPTION_SUFFIXES:
            beside = path.with_suffix(suffix)
            if beside.is_file():
                try:
                    captions[str(path)] = beside.read_text(encoding="utf-8-sig")
                except UnicodeDecodeError:
                    captions[str(path)] = ""
                    faults.append(f"{beside.name} is not UTF-8 text")
                break
    return captions


def _listed(file: Path, faults: list[str]) -> dict[str, str]:
    captions: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # splitlines would end one at U+2028 too
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(f"{file.name} line {number} is not JSON ({error.msg})")
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            faults.append(f"{file.name} line {number} has no file_name")
            continue
        text = next((entry[k] for k in CAPTION_KEYS if isinstance(entry.get(k), str)), None)
        if text is None:
            faults.append(f"{file.name} line {number} has none of {', '.join(CAPTION_KEYS)}")
            text = ""
        captions[entry["file_name"]] = text
    return captions


def _check(picture: Captioned, faults: list[str]) -> None:
    """Reads the header only."""
    try:
        with Image.open(picture.path):
            pass
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        faults.append(f"{picture.path.name} is not a picture")
