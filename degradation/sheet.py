"""The contact sheet: a section for each picture, in it a card for each version of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from degradation import drawing
from degradation.captions import FAMILY_COLOURS, describe
from degradation.plan import Step

_MARGIN, _GAP, _PAD = 40, 20, 14
_LINE = 23  # between the baselines of a card's text
_PANEL = 320  # pixels: small pictures are enlarged to about this, …
_LARGEST_PANEL = 640  # … and large ones shrunk to this


@dataclass(frozen=True)
class Panel:
    """One version of a picture: float32 (h, w, 3) RGB in [0, 1], and what was done to make it."""

    title: str
    image: np.ndarray
    steps: tuple[Step, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A picture: its name, a line about it, the whole of it, the box (top, left, height, width) that
    the panels show (in pixels of ``whole``), and the panels; the first one has the full resolution."""

    name: str
    about: str
    whole: np.ndarray
    box: tuple[int, int, int, int]
    panels: tuple[Panel, ...]


def draw_sheet(sections: Sequence[Section], heading: str, footer: str = "") -> np.ndarray:
    """The sheet as uint8 (H, W, 3) RGB."""
    parts = [_draw_section(section) for section in sections]
    width = max(part.shape[1] for part in parts) + 2 * _MARGIN
    width = max(width, drawing.text_width(heading, 26, drawing.BOLD) + 2 * _MARGIN)
    footer_lines = drawing.wrap(footer, width - 2 * _MARGIN, 13) if footer else []
    height = 100 + sum(part.shape[0] + _MARGIN for part in parts) + 20 * len(footer_lines) + 24
    sheet = drawing.canvas(height, width)
    drawing.draw_text(sheet, _MARGIN, 58, heading, 26, drawing.BOLD)
    _draw_legend(sheet, sections, _MARGIN, 84)
    y = 112
    for part in parts:
        sheet[y : y + part.shape[0], _MARGIN : _MARGIN + part.shape[1]] = part
        y += part.shape[0] + _MARGIN
    for line in footer_lines:
        drawing.draw_text(sheet, _MARGIN, y, line, 13, colour=drawing.GREY)
        y += 20
    return sheet


def _draw_legend(sheet: np.ndarray, sections: Sequence[Section], x: int, baseline: int) -> None:
    used = {describe(s)[0] for section in sections for panel in section.panels for s in panel.steps}
    for family, colour in FAMILY_COLOURS.items():
        if family in used:
            drawing.draw_dot(sheet, x + 5, baseline - 5, colour)
            drawing.draw_text(sheet, x + 16, baseline, family, 14, colour=drawing.GREY)
            x += 16 + drawing.text_width(family, 14) + 18


def _draw_section(section: Section) -> np.ndarray:
    shown_height, shown_width = _panel_size(*section.panels[0].image.shape[:2])
    card_width = max(shown_width, 280)
    columns = _columns(len(section.panels), card_width)
    rows = [section.panels[i : i + columns] for i in range(0, len(section.panels), columns)]
    lines = [max(len(_caption_lines(panel, card_width)) for panel in row) for row in rows]
    heights = [shown_height + 44 + _LINE * count + (10 if count else 0) for count in lines]
    header = _draw_header(section, columns * (card_width + _GAP) - _GAP)
    height = header.shape[0] + sum(heights) + _GAP * len(rows)
    part = drawing.canvas(height, header.shape[1])
    part[: header.shape[0]] = header
    y = header.shape[0] + _GAP
    for row, card_height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            x = column * (card_width + _GAP)
            drawing.draw_card(part, x, y, card_width, card_height)
            picture = _enlarge(panel.image, shown_height, shown_width)
            drawing.paste(part, x + (card_width - shown_width) // 2, y, picture)
            _draw_captions(part, x, y + shown_height, card_width, panel)
        y += card_height + _GAP
    return part


def _draw_header(section: Section, width: int) -> np.ndarray:
    """The whole picture, small, with the box marked, and beside it name and line."""
    whole_height, whole_width = section.whole.shape[:2]
    ratio = min(96 / whole_height, 200 / whole_width)
    height, thumb_width = max(1, round(whole_height * ratio)), max(1, round(whole_width * ratio))
    header = drawing.canvas(96, width)
    thumbnail = np.rint(drawing.fit(section.whole, height, thumb_width) * 255).astype(np.uint8)
    top, left, box_height, box_width = (round(value * ratio) for value in section.box)
    if box_height * box_width < 0.9 * height * thumb_width:
        bottom, right = min(height, top + box_height) - 1, min(thumb_width, left + box_width) - 1
        inside = thumbnail[top : bottom + 1, left : right + 1].copy()
        thumbnail = (thumbnail * 0.55).astype(np.uint8)
        thumbnail[top : bottom + 1, left : right + 1] = inside
        thumbnail[[top, bottom], left : right + 1] = 255
        thumbnail[top : bottom + 1, [left, right]] = 255
    drawing.paste(header, 0, 0, thumbnail)
    x = thumb_width + 18
    name = drawing.ellipsis(section.name, width - x, 20, drawing.BOLD)
    drawing.draw_text(header, x, 24, name, 20, drawing.BOLD)
    for row, line in enumerate(drawing.wrap(section.about, width - x, 15)[:3]):
        drawing.draw_text(header, x, 50 + _LINE * row, line, 15, colour=drawing.GREY)
    return header


def _draw_captions(part: np.ndarray, x: int, y: int, card_width: int, panel: Panel) -> None:
    size = f"{panel.image.shape[1]} × {panel.image.shape[0]}"
    drawing.draw_text(part, x + _PAD, y + 29, panel.title, 17, drawing.BOLD)
    right = x + card_width - _PAD
    drawing.draw_text(part, right, y + 29, size, 14, colour=drawing.GREY, align="right")
    for row, (family, line) in enumerate(_caption_lines(panel, card_width)):
        baseline = y + 33 + _LINE * (row + 1)
        if family:
            drawing.draw_dot(part, x + _PAD + 5, baseline - 5, FAMILY_COLOURS[family])
        indent = 18 if panel.steps else 0
        drawing.draw_text(part, x + _PAD + indent, baseline, line, 15)


def _caption_lines(panel: Panel, card_width: int) -> list[tuple]:
    """(family or None for a continued line, text) for every line under a panel's title."""
    room = card_width - 2 * _PAD - 18
    lines: list[tuple] = [(None, line) for line in drawing.wrap(panel.note, room, 15) if line]
    for step in panel.steps:
        family, caption = describe(step)
        first, *others = drawing.wrap(caption, room, 15)
        lines += [(family, first), *((None, line) for line in others)]
    return lines


def _panel_size(height: int, width: int) -> tuple[int, int]:
    longest = max(height, width)
    ratio = max(1, _PANEL // longest) if longest <= _LARGEST_PANEL else _LARGEST_PANEL / longest
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _enlarge(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image at panel size, its pixels visible as squares of equal size where it is smaller."""
    if image.shape[0] <= height:
        return drawing.fit(image, height, width, pixelated=True)
    return drawing.fit(image, height, width)


def _columns(panels: int, card_width: int) -> int:
    """As many as fit a sheet of about 1,700 pixels, with the fewest places left empty in the last row."""
    most = max(2, min(5, 1720 // (card_width + _GAP)))
    choices = range(min(panels, max(2, most - 2)), min(panels, most) + 1)
    return max(choices, key=lambda columns: (-(math.ceil(panels / columns) * columns - panels), columns))
