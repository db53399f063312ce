"""Build a pack of training crops: `python -m sr3.corpus --pack crops.safetensors [--folders FOLDER...]`.

Takes photographs, stamps and textures from Debian packages (with Debian's own client) and every picture below
`folders`, keeps some for evaluation by their hash if `held_out` says where, and cuts crops from the others.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from sr3.data import save_pack
from sr3.decoding import read, read_folder
from sr3.images import ImageError

LICENCES = {
    "plasma-workspace-wallpapers": "LGPL-3.0-or-later, CC-BY-SA-4.0",
    "mate-backgrounds": "CC-BY-SA-4.0, GPL-2.0-or-later",
    "lomiri-wallpapers-16.04": "CC-BY-SA-3.0",
    "lomiri-wallpapers-20.04": "CC-BY-SA-4.0",
    "ukui-wallpapers": "CC-BY-SA-4.0",
    "gnome-backgrounds": "CC-BY-SA-3.0",
    "mypaint-data-extras": "GPL-2.0-or-later",  # papers and canvases: textures
    "tuxpaint-stamps-default": "GPL-2.0-or-later",
    "supertuxkart-data": "CC-BY-SA-3.0, CC-BY-SA-4.0, CC-BY-3.0, CC-BY-4.0, CC0, GPL-2.0, GPL-3.0, public domain",
}
TEXTURES = ("supertuxkart-data",)  # games: of their pictures the large ones, but for the maps that shading reads
SHADING = re.compile(r"normal|nrm|gloss|mask|_nm?$", re.IGNORECASE)
SMALLEST_TEXTURE = 0.5  # of a picture; of a crop a fifth: in smooth regions noise must be seen through too
SMALLEST_SIDE = 64  # pixels: a smaller picture teaches and measures nothing
HALVED = 2_000_000  # pixels from which a picture is halved
PHOTOGRAPH = 150_000  # bytes from which a file is taken for a photograph or texture; a smaller one for a drawing


@dataclass(frozen=True)
class CorpusConfig:
    pack: Path
    """The file to write."""
    folders: tuple[Path, ...] = ()
    """More pictures: of photographs, or drawings that `python -m ldm.corpus --render` made."""
    packages: tuple[str, ...] = tuple(LICENCES)
    """Debian packages to take pictures from."""
    cache: Path = Path("~/.cache/sr3-cascade/debian")
    crops: int = 6000
    """As many at the most, an equal share for photographs, textures and drawings."""
    size: int = 192
    """Pixels on a side of each crop."""
    held_out: Path | None = None
    """A folder for the pictures kept for evaluation, cropped to at most 1024 x 768; without it none is kept."""
    seed: int = 0
    skip_bad: bool = False
    """Name unreadable files and go on, in place of stopping."""


@dataclass(frozen=True)
class Source:
    """One picture of the manifest."""

    file: str
    package: str
    version: str
    licence: str
    sha256: str
    held_out: bool
    crops: int = 0


def fetch(package: str, cache: Path) -> tuple[Path, str]:
    """The unpacked folder of a Debian package and its version. Raises RuntimeError where apt-get cannot help."""
    folder = cache / package
    if not folder.exists():
        if shutil.which("apt-get") is None:
            raise RuntimeError(f"apt-get is needed to fetch {package}; use --packages with nothing and --folders")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            command = ["apt-get", "download", "-q", package]
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"apt-get could not fetch {package}: {done.stderr.strip()[-300:]}")
            archive, unpacked = next(Path(temporary).glob("*.deb")), Path(temporary) / "unpacked"
            subprocess.run(["dpkg", "-x", archive, unpacked], check=True)
            (unpacked / "version").write_text(archive.name.split("_")[1].replace("%3a", ":"))
            try:
                unpacked.rename(folder)
            except OSError:
                if not folder.exists():  # else another program has fetched it meanwhile
                    raise
    return folder, (folder / "version").read_text()


def kind_of(path: Path, package: str) -> str | None:
    """photograph, texture or drawing; None for what else a game is made of."""
    large = path.stat().st_size > PHOTOGRAPH
    if package in TEXTURES:
        return "texture" if large and not SHADING.search(path.stem) else None
    return "photograph" if large else "drawing"


def is_held_out(digest: str, kind: str) -> bool:
    """Whether the picture of this SHA-256 is kept for evaluation: one photograph in six, one in twelve of others."""
    return int(digest, 16) % (6 if kind == "photograph" else 12) == 0


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """What tells near-copies of one picture apart: a normalised 8x8 grey version, (64,)."""
    small = cv2.resize(pixels.mean(axis=2), (8, 8), interpolation=cv2.INTER_AREA).ravel()
    return (small - small.mean()) / (small.std() + 1e-3)


def opaque_rgb(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (H, W, C) of any kind to RGB: alpha is put on white, or now and then on a colour."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[2] in (1, 2):
        pixels = np.dstack([pixels[..., :1]] * 3 + [pixels[..., 1:]])
    if pixels.shape[2] == 3:
        return pixels
    ground = np.full(3, 255.0) if rng.random() < 0.5 else rng.uniform(0, 255, 3).round()
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return np.round(pixels[..., :3] * alpha + ground * (1 - alpha)).astype(np.uint8)


def texture(crop: np.ndarray) -> float:
    """Mean size of the differences between neighbouring pixels, in levels of 255."""
    grey = cv2.transform(crop.astype(np.float32), np.ones((1, 3))) / 3  # equal to the mean, and much faster
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def corners(rows: int, columns: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """`count` different places of a grid, or all, in any order."""
    found: dict[tuple[int, int], None] = {}
    while len(found) < min(count, rows * columns):
        drawn = (rng.integers(0, n, count).tolist() for n in (rows, columns))
        found |= dict.fromkeys(zip(*drawn, strict=True))
    return list(found)[:count]


def cut(pixels: np.ndarray, size: int, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Up to `count` crops (size, size, 3), from twice as many places or all: half with the most texture, half any.

    Without the latter a network takes every blurred background for a degraded picture, and sharpens it.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < size:
        pixels = cv2.copyMakeBorder(pixels, 0, max(size - height, 0), 0, max(size - width, 0), cv2.BORDER_REFLECT_101)
        height, width = pixels.shape[:2]
    places = corners(height - size + 1, width - size + 1, 2 * count, rng)
    crops = [pixels[y : y + size, x : x + size] for y, x in places]
    any_kind, others = crops[: count // 2], crops[count // 2 :]
    textured = sorted(others, key=texture, reverse=True)[: count - len(any_kind)]
    return [crop.copy() for crop in any_kind + textured if texture(crop) > SMALLEST_TEXTURE / 5]


def packages_of(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Package, version and licence by style, from the manifest that ldm.corpus wrote; another's says nothing."""
    manifest = folder / "manifest.json"
    found = json.loads(manifest.read_text()) if manifest.is_file() else {}
    lines = found.items() if isinstance(found, dict) else ()
    return {k: (v[0], v[1], v[2]) for k, v in lines if isinstance(v, list) and [type(x) for x in v] == [str] * 3}


def files(config: CorpusConfig) -> Iterator[tuple[Path, str, str, str]]:
    """Every picture: path, package, version, licence."""
    for package in config.packages:
        folder, version = fetch(package, config.cache.expanduser())
        licence = LICENCES.get(package, "see the package's copyright file")
        for path in read_folder(folder):
            yield path, package, version, licence
    for folder in config.folders:
        known = packages_of(folder)
        for path in read_folder(folder):
            if config.held_out and path.resolve().is_relative_to(config.held_out.resolve()):
                continue  # kept by a corpus before: what is held out is not trained on
            package, version, licence = known.get(path.name.split("__")[0], (folder.name, "", "see the folder"))
            yield path, package, version, licence


def sharp(pixels: np.ndarray) -> np.ndarray:
    """Large pictures halved, which removes the blocks of their JPEG compression and makes edges sharp."""
    if pixels.shape[0] * pixels.shape[1] < HALVED:
        return pixels
    return cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def collect(config: CorpusConfig) -> tuple[list[np.ndarray], list[Source], list[str]]:
    """Crops, the manifest, and the names of files that could not be read. Prints how many pictures are left out, and
    why."""
    listed = [(kind, *line) for line in files(config) if (kind := kind_of(line[0], line[1]))]
    counts = Counter(kind for kind, *_ in listed)
    quota = {kind: max(config.crops // (len(counts) * count), 1) for kind, count in counts.items()}
    cuts: list[list[np.ndarray]] = []
    kinds: list[str] = []
    sources: list[Source] = []
    seen: list[np.ndarray] = []
    bad: list[str] = []
    left_out: Counter[str] = Counter()
    for kind, path, package, version, licence in tqdm(listed, unit="picture", mininterval=5):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        rng = np.random.default_rng([config.seed, int(digest, 16)])  # the same whatever other pictures there are
        try:
            pixels = sharp(opaque_rgb(read(data, max_pixels=200_000_000).pixels, rng))
        except ImageError as error:
            bad.append(f"{path}: {error}")
            continue
        mark = thumbnail(pixels)
        reason = unfit(pixels, mark, [] if kind == "drawing" else seen)
        if path.stem.startswith("screenshot") and package in config.packages:
            reason = "screenshots of packages"
        if reason:
            left_out[reason] += 1
            continue
        if kind != "drawing":
            seen.append(mark)
        held_out = config.held_out is not None and is_held_out(digest, kind)
        if held_out and config.held_out:
            keep(pixels, config.held_out / kind / f"{digest[:8]}__{path.stem[:100]}.png")
        cuts.append([] if held_out else cut(pixels, config.size, quota[kind], rng))
        left_out["without texture"] += not (held_out or cuts[-1])
        kinds.append(kind)
        sources.append(Source(path.name, package, version, licence, digest, held_out))
    taken = within(cuts, kinds, [source.sha256 for source in sources], config.crops)
    sources = [replace(source, crops=len(crops)) for source, crops in zip(sources, taken, strict=True)]
    left_out[f"beyond {config.crops} crops"] = sum(bool(was) and not now for was, now in zip(cuts, taken, strict=True))
    reasons = [f"{count} {reason}" for reason, count in sorted(left_out.items()) if count]
    if reasons:
        print(f"{left_out.total()} pictures left out: {', '.join(reasons)}", file=sys.stderr)
    return [crop for crops in taken for crop in crops], sources, bad


def unfit(pixels: np.ndarray, mark: np.ndarray, seen: Sequence[np.ndarray]) -> str | None:
    """Why a picture with this `thumbnail` is of no use beside those with the thumbnails `seen`; None where it is."""
    if min(pixels.shape[:2]) < SMALLEST_SIDE:
        return f"under {SMALLEST_SIDE} pixels"
    if seen and np.max(np.stack(seen) @ mark) > 0.97 * mark.size:
        return "near-copies"
    return "without texture" if texture(pixels) < SMALLEST_TEXTURE else None


def within(
    cuts: Sequence[list[np.ndarray]], kinds: Sequence[str], digests: Sequence[str], most: int
) -> list[list[np.ndarray]]:
    """Of the crops of each picture those that make `most` altogether, an equal share for each kind: the pictures of the
    smallest digests come first, whatever their names."""
    every = Counter(dict.fromkeys(kinds, max(most // max(len(set(kinds)), 1), 1)))
    taken: list[list[np.ndarray]] = [[] for _ in cuts]
    for i in sorted(range(len(cuts)), key=lambda i: digests[i]):
        taken[i] = cuts[i][: min(every[kinds[i]], most)]
        every[kinds[i]] -= len(taken[i])
        most -= len(taken[i])
    return taken


def keep(pixels: np.ndarray, path: Path) -> None:
    """Write the middle of a picture, at most 1024 x 768 and of sides divisible by 16, for evaluation. Raises ValueError
    where that cannot be."""
    height, width = (min(n, m) // 16 * 16 for n, m in zip(pixels.shape[:2], (768, 1024), strict=True))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels[top : top + height, left : left + width, ::-1]):
        raise ValueError(f"{path} cannot be written")


def build(config: CorpusConfig) -> None:
    """Write the pack. Raises ValueError for files that cannot be read and where no crop is left."""
    if min(config.crops, config.size) < 1:
        raise ValueError(f"crops is {config.crops} and size {config.size}; both must be 1 or more")
    crops, sources, bad = collect(config)
    for line in bad:
        print(line, file=sys.stderr)
    if bad and not config.skip_bad:
        raise ValueError(f"{len(bad)} files could not be read; --skip-bad goes on without them")
    if not crops:
        raise ValueError("no picture that crops could be cut from")
    order = np.random.default_rng(config.seed).permutation(len(crops))
    save_pack(config.pack, np.stack([crops[i] for i in order]), manifest(sources))
    kept = sum(s.held_out for s in sources)
    print(f"{config.pack}: {len(crops)} crops of {len(sources) - kept} pictures; {kept} pictures held out")


def main(config: CorpusConfig) -> int:
    try:
        build(config)
    except (ValueError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"sr3.corpus: {error}", file=sys.stderr)
        return 2
    return 0


def manifest(sources: Sequence[Source]) -> list[dict[str, object]]:
    return [asdict(source) for source in sources]


if __name__ == "__main__":
    from degradation.arguments import run_command

    sys.exit(run_command(main, CorpusConfig, "sr3.corpus", __doc__))
