"""A folder of one's own pictures with captions, in the layouts that the field uses."""

import hashlib
import json
import posixpath
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
OTHER_SUFFIXES = {".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".tif", ".tiff"}  # pictures, not read
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
    one (`{"file_name": …, "text": …}` a line, as in Hugging Face's image folders; one picture may have several lines),
    else from the file beside it that ends in .txt or .caption (as in kohya's scripts).

    Raises ValueError that names the pictures without a caption or with two files of them, the captions without a
    picture, what is no picture, and pictures of kinds that are not read: nothing is left out silently.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    paths, unread = _with_suffix(folder, SUFFIXES), _with_suffix(folder, OTHER_SUFFIXES)
    if not paths and not unread:
        raise ValueError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))})")
    listed = folder / "metadata.jsonl"
    faults: list[str] = []
    captions = _listed(listed, faults) if listed.is_file() else _beside(paths, faults)
    stray = [] if listed.is_file() else _stray(folder, paths + unread)
    found = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        texts = captions.pop(name if listed.is_file() else str(path), [])
        if not texts:
            faults.append(f"{name} has no caption")
        for text in texts:
            if not text.strip():
                faults.append(f"{name} has an empty caption")
            else:
                found.append(Captioned(path, " ".join(text.split())))
                _check(found[-1], faults)
    names = [path.relative_to(folder).as_posix() for path in unread]
    faults += [f"{name} is captioned but not there" for name in captions if name not in names]
    for what, files in (("pictures of this kind are not read", names), ("no picture of that name beside", stray)):
        if files:
            more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
            faults.append(f"{', '.join(files[:NAMED])}{more}: {what} ({', '.join(sorted(SUFFIXES))})")
    if faults:
        more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise ValueError(f"{folder}: {'; '.join(faults[:NAMED])}{more}")
    return found


def digests(folder: Path, pictures: Sequence[Captioned]) -> dict[str, str]:
    """Of each picture of a folder, by its name there, a digest of its file and its captions."""
    found: dict[str, Any] = {}
    for picture in pictures:
        name = picture.path.relative_to(folder).as_posix()
        if name not in found:
            found[name] = hashlib.sha256(picture.path.read_bytes())
        found[name].update(ascii(picture.caption).encode())
    return {name: digest.hexdigest()[:16] for name, digest in found.items()}


def _with_suffix(folder: Path, suffixes: Collection[str]) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith("."))


def _stray(folder: Path, paths: list[Path]) -> list[str]:
    """The files that look like captions of pictures that are not there."""
    captioned = {path.with_suffix("") for path in paths}
    alone = [p for p in _with_suffix(folder, CAPTION_SUFFIXES) if p.with_suffix("") not in captioned and p.is_file()]
    return [p.relative_to(folder).as_posix() for p in alone]


def _beside(paths: list[Path], faults: list[str]) -> dict[str, list[str]]:
    captions = {}
    for path in paths:
        beside = [file for suffix in CAPTION_SUFFIXES if (file := path.with_suffix(suffix)).is_file()]
        if len(beside) > 1:
            faults.append(f"{path.name} has two captions, {' and '.join(file.name for file in beside)}")
        for file in beside[:1]:
            try:
                captions[str(path)] = [file.read_text(encoding="utf-8-sig")]
            except UnicodeDecodeError:
                captions[str(path)] = [""]
                faults.append(f"{file.name} is not UTF-8 text")
    return captions


def _listed(file: Path, faults: list[str]) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = defaultdict(list)
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
        captions[posixpath.normpath(entry["file_name"])].append(text)
    return captions


def _check(picture: Captioned, faults: list[str]) -> None:
    """Reads the header only."""
    try:
        with Image.open(picture.path):
            pass
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        faults.append(f"{picture.path.name} is not a picture")
