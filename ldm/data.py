"""The pack of named drawings, and pictures with captions drawn from it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ldm.captions import GROUNDS, HUES, Drawing

FACTOR = 8  # pixels a latent, along each side


def save_pack(path: Path, pictures: np.ndarray, records: Sequence[Drawing], manifest: list[dict[str, str]]) -> None:
    """Write uint8 RGBA pictures (N, S, S, 4), their records and where they come from as one safetensors file."""
    from safetensors.numpy import save_file

    from sr3.saving import open_to_others

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    metadata = {"records": json.dumps([asdict(r) for r in records]), "manifest": json.dumps(manifest)}
    save_file({"pictures": pictures}, temporary, metadata=metadata)
    open_to_others(temporary)
    temporary.rename(path)


def load_pack(path: Path) -> tuple[np.ndarray, list[Drawing], list[dict[str, str]]]:
    """What `save_pack` wrote. Raises ValueError if the file is something else, or S no multiple of FACTOR."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            if "pictures" not in file.keys() or "records" not in metadata:  # noqa: SIM118
                raise ValueError(f"{path} is no pack of drawings; python -m ldm.corpus makes one")
            pictures = file.get_tensor("pictures")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    square = pictures.ndim == 4 and pictures.shape[1] == pictures.shape[2] and pictures.shape[1] % FACTOR == 0
    if pictures.dtype != np.uint8 or not square or pictures.shape[3] != 4:
        raise ValueError(
            f"{path} has pictures of {pictures.shape} {pictures.dtype}; they must be uint8 (N, S, S, 4), S a multiple "
            f"of {FACTOR}"
        )
    tuples = {"words", "tags", "tags_zh", "words_zh"}
    listed: list[dict[str, Any]] = json.loads(metadata["records"])
    for record in listed:
        record.update({k: tuple(record.get(k, ())) for k in tuples})
    records = [Drawing(**record) for record in listed]
    return pictures, records, json.loads(metadata["manifest"])


@dataclass(frozen=True)
class Placement:
    """How one drawing is put on a ground: every random choice of a training picture."""

    ground: str
    colour: str | None
    """The colour that the caption states; the drawing's hue is turned to it."""
    flip: bool
    scale: float
    shift: tuple[float, float]
    """Of the drawing's free room to the right and below, from 0 to 1."""


PLAIN = Placement("white", None, False, 1.0, (0.5, 0.5))


def sample_placement(rng: np.random.Generator, drawing: Drawing) -> Placement:
    """Draw a placement: mostly white ground, the natural colour, the whole size. A small model learns things before
    their variations, so these are few."""
    ground = "white" if rng.random() < 0.7 else str(rng.choice([g for g in GROUNDS if g != "white"]))
    colour = None
    if drawing.hue and rng.random() < 0.4:
        colour = drawing.hue if rng.random() < 0.4 else str(rng.choice(list(HUES)))
    flip = bool(rng.random() < 0.1)
    scale = 1.0 if rng.random() < 0.7 else float(rng.uniform(0.85, 1.0))
    return Placement(ground, colour, flip, scale, (0.5, 0.5))


def turn_hue(picture: np.ndarray, source: str, target: str) -> np.ndarray:
    """RGBA uint8 with all hues turned by the angle from one named hue to another."""
    hsv = cv2.cvtColor(np.ascontiguousarray(picture[..., :3]), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + int(HUES[target] - HUES[source])) % 180
    return np.dstack([cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), picture[..., 3]])


def reduced(picture: np.ndarray, size: int) -> np.ndarray:
    """RGBA uint8 (H, W, 4), not premultiplied, as (size, size, 4), by area."""
    alpha = picture[..., 3:].astype(np.float32) / 255
    small = cv2.resize(np.dstack([picture[..., :3] * alpha, alpha]), (size, size), interpolation=cv2.INTER_AREA)
    colour = small[..., :3] / np.maximum(small[..., 3:], 1e-6)
    return np.round(np.dstack([colour, 255 * small[..., 3:]])).clip(0, 255).astype(np.uint8)


def place(picture: np.ndarray, drawing: Drawing, placement: Placement) -> np.ndarray:
    """Put an RGBA drawing (S, S, 4) on its ground: uint8 RGB (S, S, 3)."""
    size = picture.shape[0]
    if placement.colour and drawing.hue and placement.colour != drawing.hue:
        picture = turn_hue(picture, drawing.hue, placement.colour)
    if placement.flip:
        picture = picture[:, ::-1]
    inner = round(size * placement.scale)
    alpha = picture[..., 3:].astype(np.float32) / 255
    premultiplied = np.dstack([picture[..., :3] * alpha, alpha])
    small = cv2.resize(premultiplied, (inner, inner), interpolation=cv2.INTER_AREA)
    left, top = (round((size - inner) * s) for s in placement.shift)
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = GROUNDS[placement.ground]
    window = canvas[top : top + inner, left : left + inner]
    window *= 1 - small[..., 3:]
    window += small[..., :3]
    return np.round(canvas).clip(0, 255).astype(np.uint8)
