"""Tux Paint's stamps that are drawn in vectors, each named by the sentence that comes with it."""

import hashlib
import io
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.captions import Drawing
from ldm.data import reduced
from sr3.corpus import LICENCES
from sr3.corpus import fetch as fetch_debian

PACKAGE = "tuxpaint-stamps-default"  # and the style
LEFT_OUT = {"people", "military", "symbols"}  # as the emoji's groups are
SENTENCE = re.compile(r"(?:An?|Some) ((?:[\w’'-]+ ?){1,5})[.!]")
CHINESE = re.compile(r"^zh_CN\.utf8=\s*(?:一[个只座把辆张条朵块件顶双些副片杯艘支台])?([^。！，、；\n]+)", re.MULTILINE)


def fetch(cache: Path) -> tuple[Path, dict[str, str]]:
    """The folder of the stamps, and its line of the manifest. Raises RuntimeError where apt-get cannot help."""
    if not (cache / PACKAGE).exists() and shutil.which("apt-get") is None:
        raise RuntimeError("apt-get is needed to fetch the stamps; --stamps None leaves them out")
    folder, version = fetch_debian(PACKAGE, cache)
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.svg")):
        digest.update(path.read_bytes())
    line = {"package": PACKAGE, "version": version, "licence": LICENCES[PACKAGE], "sha256": digest.hexdigest()}
    return folder, line


def name_of(text: str) -> tuple[str, str] | None:
    """English and Chinese name of a stamp from its texts; None where the English one is no name ("Eat your bread!").

    The Chinese one is empty where there is none.
    """
    found = SENTENCE.match(text)
    if found is None or " is " in found[1]:
        return None
    chinese = CHINESE.search(text)
    return found[1].strip(), chinese[1].strip() if chinese else ""


def read_stamps(folder: Path, names: Sequence[Drawing]) -> Iterator[tuple[Drawing, str]]:
    """The record and the SVG document of each stamp with a name. One that is among `names` has their words and tags."""
    known = {name.label.lower(): name for name in names}
    known |= {word: name for name in names for word in name.words if word not in known}
    for path in sorted(folder.rglob("*.svg")):
        described = path.with_suffix(".txt")
        if path.relative_to(folder / "usr/share/tuxpaint/stamps").parts[0] in LEFT_OUT or not described.exists():
            continue
        named = name_of(described.read_text(encoding="utf-8"))
        if named is None:
            continue
        label, chinese = named
        record = known.get(label.lower()) or Drawing(label, "", label_zh=chinese)
        yield replace(record, style=PACKAGE), path.read_text(encoding="utf-8")


def render(svg: str, size: int) -> np.ndarray:
    """A stamp without the empty page around it as uint8 RGBA (size, size, 4), not premultiplied, centred. Raises
    ValueError for a document that says no size."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=8 * size, dpi=96)
    large = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
    rows, columns = (np.flatnonzero(large[..., 3].any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((size, size, 4), np.uint8)
    large = large[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    tall, wide = large.shape[:2]
    side = round(max(tall, wide) * 1.06)
    above, left = (side - tall) // 2, (side - wide) // 2
    return reduced(np.pad(large, ((above, side - tall - above), (left, side - wide - left), (0, 0))), size)
