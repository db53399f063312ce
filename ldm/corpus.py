"""Build the corpus of named drawings: `python -m ldm.corpus --pack drawings.safetensors`.

Fetches eight sets of emoji drawings and their names as npm packages, and Tux Paint's stamps as Debian's, renders them,
and packs them as one safetensors file that `ldm.train` reads on any machine.
"""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ldm import stamps
from ldm.captions import HUES, STYLES, Drawing
from ldm.data import FACTOR, reduced, save_pack

NAMES_PACKAGE = "emojibase-data"
VERSIONS = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/openmoji": "1.2.29",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    NAMES_PACKAGE: "17.0.0",
}
KEPT_GROUPS = {0, 3, 4, 5, 6, 7}  # faces, animals, food, travel, activities, objects; no people, symbols, flags


@dataclass(frozen=True)
class CorpusConfig:
    pack: Path | None = None
    """The file to write, for ldm.train."""
    render: Path | None = None
    """A folder to write the drawings to as PNG files with a manifest, for sr3.corpus."""
    cache: Path = Path("~/.cache/sr3-cascade/npm")
    """Where the packages of npm are kept."""
    stamps: Path | None = Path("~/.cache/sr3-cascade/debian")
    """Where Debian's package of stamps is kept, which takes apt-get to fetch; None for no stamps."""
    size: int = 64
    """Pixels on a side of each drawing; a pack's must be a multiple of 8."""
    everyday_only: bool = False
    """Only the names in ldm/everyday.txt (a small file that travels)."""


def fetch(package: str, version: str, cache: Path) -> tuple[Path, dict[str, str]]:
    """The unpacked folder of an npm package, and its line of the manifest. Downloads it once.

    Raises RuntimeError if npm is missing or cannot get the package, and for an archive that cannot be unpacked.
    """
    folder = cache / f"{package.replace('@', '').replace('/', '-')}-{version}"
    archive = folder.with_suffix(folder.suffix + ".tgz")
    if not archive.exists():
        if shutil.which("npm") is None:
            raise RuntimeError("npm is needed to fetch the drawings: install Node.js")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            command = ["npm", "pack", "--silent", f"{package}@{version}"]
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"npm could not fetch {package}@{version}: {done.stderr.strip()[-300:]}")
            next(Path(temporary).glob("*.tgz")).rename(archive)
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            try:
                with tarfile.open(archive) as tar:
                    tar.extractall(temporary, filter="data")
                (Path(temporary) / "package").rename(folder)
            except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
                if not folder.exists():  # else another program has unpacked it meanwhile
                    why = " ".join(str(error).split())
                    raise RuntimeError(
                        f"{archive} cannot be unpacked ({why}); delete it to have it fetched again"
                    ) from None
    described = json.loads((folder / "package.json").read_text())
    info = folder / "info.json"
    licence = json.loads(info.read_text())["license"]["spdx"] if info.exists() else described["license"]
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return folder, {"package": package, "version": version, "licence": licence, "sha256": digest}


def read_everyday() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Label -> other words in English, and in Chinese, from ldm/everyday.txt."""
    lines = (Path(__file__).parent / "everyday.txt").read_text().splitlines()
    found = {}
    for label, _, words in (line.partition(":") for line in lines if line and not line.startswith("#")):
        english, _, chinese = words.partition("|")
        found[label] = _words(english), _words(chinese)
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def is_held_out(label: str, style: str) -> bool:
    """Whether this (name, style) pair is kept for evaluation: one in twenty, by its hash."""
    return int(hashlib.sha256(f"{label}/{style}".encode()).hexdigest(), 16) % 20 == 0


def _names(folder: Path) -> list[Drawing]:
    """One record a name, without a style, in the order of emojibase."""
    chinese = {e["hexcode"]: e for e in json.loads((folder / "zh" / "data.json").read_text())}
    everyday = read_everyday()
    drawings = []
    for entry in json.loads((folder / "en" / "data.json").read_text()):
        clock_face = "o’clock" in entry["label"] or entry["label"].endswith("-thirty")
        common = entry.get("group") in KEPT_GROUPS and not clock_face
        if not common and entry["label"] not in everyday:
            continue
        words, words_zh = everyday.get(entry["label"], ((), ()))
        zh = chinese.get(entry["hexcode"], {"label": "", "tags": []})
        drawings.append(
            Drawing(
                label=entry["label"],
                style="",
                words=words,
                tags=tuple(entry.get("tags", ())),
                label_zh=zh["label"],
                tags_zh=tuple(zh.get("tags", ())),
                words_zh=words_zh,
                everyday=entry["label"] in everyday,
            )
        )
    missing = set(everyday) - {d.label for d in drawings}
    if missing:
        raise ValueError(f"everyday.txt names what {NAMES_PACKAGE} does not: {sorted(missing)}")
    return drawings


def _slug(name: str) -> str:
    return "".join(c for c in name.lower().replace("ñ", "n").replace("’", "") if c.isalnum())


def svg_of(icons: dict[str, Any], name: str) -> str:
    """The named icon of an iconify set as an SVG document."""
    icon = icons["icons"][name]
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def render(svg: str, size: int) -> np.ndarray:
    """An SVG document as uint8 RGBA (size, size, 4), not premultiplied, centred."""
    import resvg_py

    side = size * (4 if size <= 128 else 2)  # then reduced by area
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
    return reduced(np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA")), size)


def single_hue(drawing: np.ndarray) -> str | None:
    """The name of the one hue that a drawing (H, W, 4) uint8 has, or None if it has several or none."""
    hue, saturation, value = cv2.split(cv2.cvtColor(np.ascontiguousarray(drawing[..., :3]), cv2.COLOR_RGB2HSV))
    opaque = drawing[..., 3] > 128
    coloured = opaque & (saturation > 90) & (value > 90)
    if coloured.sum() < 0.45 * max(opaque.sum(), 1):
        return None
    angles = hue[coloured] * (np.pi / 90)
    mean = np.angle(np.exp(1j * angles).mean()) * (90 / np.pi)
    apart = np.abs((hue[coloured] - mean + 90) % 180 - 90)
    if (apart < 12).mean() < 0.85 or np.median(value[coloured]) < 140:
        return None
    distance = {name: abs((mean - centre + 90) % 180 - 90) for name, centre in HUES.items()}
    return min(distance, key=distance.__getitem__)


def _emoji(names: list[Drawing], cache: Path) -> Iterator[tuple[Drawing, str]]:
    """The record and the SVG document of each name in each set that draws it."""
    for style in STYLES:
        if style == stamps.PACKAGE:
            continue
        folder, _ = fetch(f"@iconify-json/{style}", VERSIONS[f"@iconify-json/{style}"], cache)
        icons = json.loads((folder / "icons.json").read_text())
        found = {_slug(name): name for name in icons["icons"]}
        found |= {_slug(name): alias["parent"] for name, alias in icons.get("aliases", {}).items() if len(alias) == 1}
        for name in names:
            icon = found.get(_slug(name.label), "")
            if icon in icons["icons"]:
                yield replace(name, style=style), svg_of(icons, icon)


def drawings(config: CorpusConfig) -> Iterator[tuple[Drawing, np.ndarray]]:
    """Every named drawing of every style: its record and its picture, uint8 RGBA (size, size, 4)."""
    cache = config.cache.expanduser()
    names = _names(fetch(NAMES_PACKAGE, VERSIONS[NAMES_PACKAGE], cache)[0])
    sources = [(_emoji(names, cache), render)]
    if config.stamps:
        sources.append((stamps.read_stamps(stamps.fetch(config.stamps.expanduser())[0], names), stamps.render))
    labels = {name.label for name in names}  # only of these are other styles seen
    for documents, draw in sources:
        for record, svg in documents:
            if config.everyday_only and not record.everyday:
                continue
            picture = draw(svg, config.size)
            if picture[..., 3].mean() >= 8:
                held_out = record.label in labels and is_held_out(record.label, record.style)
                yield replace(record, held_out=held_out, hue=single_hue(picture)), picture


def write_folder(folder: Path, config: CorpusConfig, manifest: list[dict[str, str]]) -> int:
    """Every drawing as FOLDER/style__label.png, and manifest.json: style -> package, version, licence. Returns their
    number; raises OSError for one that cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = {m["package"].split("/")[-1]: (m["package"], m["version"], m["licence"]) for m in manifest}
    (folder / "manifest.json").write_text(json.dumps(lines, indent=1))
    written: Counter[str] = Counter()
    for record, picture in drawings(config):
        name = f"{record.style}__{_slug(record.label)}"
        written[name] += 1
        again = f"-{written[name]}" if written[name] > 1 else ""  # some things have several stamps
        file = folder / f"{name}{again}.png"
        _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA))
        try:
            file.write_bytes(png.tobytes())  # cv2.imwrite does not say that a disk is full
        except OSError as error:
            raise OSError(f"{file} cannot be written: {error.strerror}") from None
    return written.total()


def build(config: CorpusConfig) -> None:
    """Write what is asked for. Raises RuntimeError as `fetch` does, and ValueError or OSError where nothing is asked
    for or what is cannot be written."""
    cache = config.cache.expanduser()
    if config.pack is None and config.render is None:
        raise ValueError("nothing to do: give --pack FILE, --render FOLDER, or both")
    if config.size < 1:
        raise ValueError(f"size is {config.size}; it must be 1 or more")
    if config.pack and config.size % FACTOR:
        raise ValueError(f"size is {config.size}; a pack's must be a multiple of {FACTOR}")
    if config.pack:
        if config.pack.is_dir():
            raise ValueError(f"{config.pack} is a folder; the pack is a file")
        config.pack.parent.mkdir(parents=True, exist_ok=True)
    manifest = [fetch(package, version, cache)[1] for package, version in VERSIONS.items()]
    if config.stamps:
        manifest.append(stamps.fetch(config.stamps.expanduser())[1])
    if config.render:
        print(f"{config.render}: {write_folder(config.render, config, manifest)} drawings")
    if config.pack is None:
        return
    records, pictures = zip(*drawings(config), strict=True)
    save_pack(config.pack, np.stack(pictures), list(records), manifest)
    everyday, styles = sum(r.everyday for r in records), len({r.style for r in records})
    print(f"{config.pack}: {len(records)} drawings, {everyday} of everyday names, {styles} styles")


def main(config: CorpusConfig) -> int:
    try:
        build(config)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"ldm.corpus: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    from degradation.arguments import run_command

    sys.exit(run_command(main, CorpusConfig, "ldm.corpus", __doc__))
