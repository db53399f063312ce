"""Text, cards and dots on uint8 (H, W, 3) RGB canvases, by OpenCV (its fonts know most scripts)."""

from __future__ import annotations

import functools

import cv2
import numpy as np

Colour = tuple[int, int, int]
INK: Colour = (29, 31, 36)
GREY: Colour = (112, 116, 124)
LINE: Colour = (226, 224, 219)
CARD: Colour = (255, 255, 255)
PAPER: Colour = (244, 243, 239)
REGULAR, BOLD = 400, 600


@functools.cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def canvas(height: int, width: int) -> np.ndarray:
    """An empty sheet of paper."""
    return np.full((height, width, 3), PAPER, np.uint8)


def legible(text: str) -> str:
    """The text with ? for what UTF-8 cannot say, as in a file name of other bytes: OpenCV 5 crashes on it."""
    return text.encode("utf-8", "replace").decode()


def text_width(text: str, size: int, weight: int = REGULAR) -> int:
    """How many pixels wide the text is."""
    _, _, width, _ = cv2.getTextSize((10_000, 100), legible(text), (0, 0), _font(), size, weight)
    return int(width)


def draw_text(
    sheet: np.ndarray,
    x: int,
    baseline: int,
    text: str,
    size: int = 15,
    weight: int = REGULAR,
    colour: Colour = INK,
    align: str = "left",
) -> None:
    """One line of text on the sheet; x is its left end, its middle or its right end ("right")."""
    shift = {"left": 0.0, "middle": 0.5, "right": 1.0}[align] * text_width(text, size, weight)
    cv2.putText(sheet, legible(text), (round(x - shift), baseline), colour, _font(), size, weight)


def wrap(text: str, width: int, size: int, weight: int = REGULAR) -> list[str]:
    """The text in lines of at most ``width`` pixels (a longer word is cut with an ellipsis)."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or text_width(longer, size, weight) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [ellipsis(line, width, size, weight) for line in lines]


def ellipsis(text: str, width: int, size: int, weight: int = REGULAR) -> str:
    """The text, its middle left out where it would be more than ``width`` pixels wide."""
    kept = len(text)
    shown = text
    while kept > 2 and text_width(shown, size, weight) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


def draw_card(sheet: np.ndarray, x: int, y: int, width: int, height: int, radius: int = 10) -> None:
    """A white card with round corners and a thin border."""
    _round_rectangle(sheet, x, y, width, height, radius, LINE)
    _round_rectangle(sheet, x + 1, y + 1, width - 2, height - 2, radius - 1, CARD)


def _round_rectangle(sheet: np.ndarray, x: int, y: int, width: int, height: int, radius: int, colour: Colour) -> None:
    left, right, top, bottom = x + radius, x + width - radius - 1, y + radius, y + height - radius - 1
    cv2.rectangle(sheet, (left, y), (right, y + height - 1), colour, -1)
    cv2.rectangle(sheet, (x, top), (x + width - 1, bottom), colour, -1)
    for corner in ((left, top), (right, top), (left, bottom), (right, bottom)):
        cv2.circle(sheet, corner, radius, colour, -1, cv2.LINE_AA)


def draw_dot(sheet: np.ndarray, x: int, y: int, colour: Colour, radius: int = 5) -> None:
    """A filled circle around (x, y)."""
    cv2.circle(sheet, (x, y), radius, colour, -1, cv2.LINE_AA)


def paste(sheet: np.ndarray, x: int, y: int, picture: np.ndarray) -> None:
    """Float (h, w, 3) in [0, 1] or uint8 onto the sheet, its top left corner at (x, y)."""
    pixels = picture if picture.dtype == np.uint8 else np.rint(picture * 255).astype(np.uint8)
    sheet[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels


def fit(picture: np.ndarray, height: int, width: int, pixelated: bool = False) -> np.ndarray:
    """The picture at height × width: enlarged with its pixels visible, or shrunk by averaging."""
    method = cv2.INTER_NEAREST if pixelated else cv2.INTER_AREA
    return cv2.resize(picture, (width, height), interpolation=method)
