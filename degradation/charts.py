"""Small charts on the canvas of ``drawing``: each fills a card of a given size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from degradation import drawing
from degradation.drawing import Colour

WIDTH, HEIGHT = 460, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 20, 68, 46


def card(title: str, about: str = "") -> np.ndarray:
    """An empty chart with its title and a line about it."""
    chart = drawing.canvas(HEIGHT, WIDTH)
    drawing.draw_card(chart, 0, 0, WIDTH, HEIGHT)
    drawing.draw_text(chart, 18, 30, title, 17, drawing.BOLD)
    drawing.draw_text(chart, 18, 50, about, 13, colour=drawing.GREY)
    return chart


def histogram(
    title: str, about: str, values: Mapping[str, Sequence[float]], colours: Sequence[Colour], unit: str
) -> np.ndarray:
    """Stacked histograms, one colour for each series; about 24 bins, or one for each whole number."""
    chart = card(title, about)
    everything = [value for series in values.values() for value in series]
    if not everything:
        return _nothing(chart)
    edges = _bins(everything)
    counts = [np.histogram(series, edges)[0] for series in values.values()]
    top = max(1, int(np.sum(counts, axis=0).max()))
    _axes(chart, (edges[0], edges[-1]), (0, top), unit, "count")
    base = np.zeros(len(edges) - 1)
    for count, colour in zip(counts, colours, strict=False):
        for i in range(len(count)):
            x0, x1 = (_x(edge, edges[0], edges[-1]) for edge in (edges[i], edges[i + 1]))
            y0, y1 = (_y(value, 0, top) for value in (base[i] + count[i], base[i]))
            if count[i]:
                cv2.rectangle(chart, (x0 + 1, y0), (max(x0 + 1, x1 - 1), y1 - 1), colour, -1)
        base += count
    if len(values) > 1:
        _legend(chart, list(values), colours)
    return chart


def bars(title: str, about: str, shares: Mapping[str, float], colour: Colour) -> np.ndarray:
    """Horizontal bars of shares in [0, 1], each with its name and its percentage."""
    chart = card(title, about)
    if not shares:
        return _nothing(chart)
    name_width = max(drawing.text_width(name, 13) for name in shares)
    left, right = 18 + name_width + 10, WIDTH - 60
    pitch = min(26, (HEIGHT - _TOP - 14) // len(shares))
    for row, (name, share) in enumerate(shares.items()):
        y = _TOP + 8 + row * pitch
        drawing.draw_text(chart, 18, y + 13, name, 13)
        end = left + round((right - left) * min(1, share))
        cv2.rectangle(chart, (left, y + 1), (right, y + pitch - 9), drawing.PAPER, -1)
        if end > left:
            cv2.rectangle(chart, (left, y + 1), (end, y + pitch - 9), colour, -1)
        drawing.draw_text(chart, WIDTH - 18, y + 13, f"{share:.0%}", 13, align="right")
    return chart


def scatter(
    title: str,
    about: str,
    points: Mapping[str, Sequence[tuple[float, float]]],
    colours: Sequence[Colour],
    labels: tuple[str, str],
) -> np.ndarray:
    """Points of one colour for each series."""
    chart = card(title, about)
    everything = np.array([point for series in points.values() for point in series])
    if not len(everything):
        return _nothing(chart)
    low, high = everything.min(axis=0), everything.max(axis=0)
    low = np.where(low > 0, 0 * low, low)
    high = np.maximum(high, low + 1e-9)
    _axes(chart, (low[0], high[0]), (low[1], high[1]), *labels)
    for series, colour in zip(points.values(), colours, strict=False):
        for x, y in series:
            drawing.draw_dot(chart, _x(x, low[0], high[0]), _y(y, low[1], high[1]), colour, 3)
    if len(points) > 1:
        _legend(chart, list(points), colours)
    return chart


def heatmap(title: str, about: str, names: Sequence[str], shares: np.ndarray, colour: Colour) -> np.ndarray:
    """A row for each name, a column for each position; the darker, the larger the share."""
    chart = card(title, about)
    if not names:
        return _nothing(chart)
    left = 18 + max(drawing.text_width(name, 13) for name in names) + 10
    pitch_x = (WIDTH - left - 18) // shares.shape[1]
    pitch_y = min(26, (HEIGHT - _TOP - 34) // len(names))
    paint = np.array(colour) - 255.0
    for row, name in enumerate(names):
        y = _TOP + 8 + row * pitch_y
        drawing.draw_text(chart, 18, y + pitch_y // 2 + 5, name, 13)
        for column in range(shares.shape[1]):
            strength = math.sqrt(shares[row, column] / max(shares.max(), 1e-9))
            x = left + column * pitch_x
            chart[y : y + pitch_y - 2, x : x + pitch_x - 2] = (
                np.array(drawing.PAPER) if strength == 0 else 255 + paint * (0.12 + 0.88 * strength)
            )
    for column in range(shares.shape[1]):
        x = left + column * pitch_x + pitch_x // 2
        y = _TOP + 22 + len(names) * pitch_y
        drawing.draw_text(chart, x, y, str(column + 1), 12, colour=drawing.GREY, align="middle")
    return chart


def _nothing(chart: np.ndarray) -> np.ndarray:
    drawing.draw_text(
        chart, WIDTH // 2, HEIGHT // 2 + 20, "none in these plans", 14, colour=drawing.GREY, align="middle"
    )
    return chart


def _bins(values: Sequence[float]) -> np.ndarray:
    low, high = min(values), max(values)
    if all(float(value).is_integer() for value in values):
        step = max(1, math.ceil((high - low + 1) / 40))
        return np.arange(low, high + 2 * step, step) - 0.5
    return np.linspace(min(0, low), high if high > low else low + 1, 25)


def _axes(
    chart: np.ndarray, x_range: tuple[float, float], y_range: tuple[float, float], x_name: str, y_name: str
) -> None:
    for value in _ticks(*y_range):
        y = _y(value, *y_range)
        cv2.line(chart, (_LEFT, y), (WIDTH - _RIGHT, y), drawing.LINE, 1)
        drawing.draw_text(chart, _LEFT - 8, y + 4, f"{value:g}", 12, colour=drawing.GREY, align="right")
    for value in _ticks(*x_range):
        x = _x(value, *x_range)
        cv2.line(chart, (x, HEIGHT - _BOTTOM), (x, HEIGHT - _BOTTOM + 4), drawing.GREY, 1)
        label = f"{value:g}"
        drawing.draw_text(chart, x, HEIGHT - _BOTTOM + 18, label, 12, colour=drawing.GREY, align="middle")
    cv2.line(chart, (_LEFT, HEIGHT - _BOTTOM), (WIDTH - _RIGHT, HEIGHT - _BOTTOM), drawing.GREY, 1)
    drawing.draw_text(chart, WIDTH - _RIGHT, HEIGHT - 11, x_name, 12, colour=drawing.GREY, align="right")
    drawing.draw_text(chart, 18, _TOP + 9, y_name, 12, colour=drawing.GREY)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between low and high."""
    rough = max(high - low, 1e-12) / 5
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _legend(chart: np.ndarray, names: Sequence[str], colours: Sequence[Colour]) -> None:
    x = WIDTH - 18 - sum(drawing.text_width(name, 13) + 28 for name in names) + 12
    for name, colour in zip(names, colours, strict=False):
        drawing.draw_dot(chart, x + 5, 25, colour)
        drawing.draw_text(chart, x + 15, 30, name, 13)
        x += drawing.text_width(name, 13) + 28


def _x(value: float, low: float, high: float) -> int:
    return _LEFT + round((WIDTH - _RIGHT - _LEFT) * (value - low) / (high - low))


def _y(value: float, low: float, high: float) -> int:
    return HEIGHT - _BOTTOM - round((HEIGHT - _BOTTOM - _TOP - 18) * (value - low) / (high - low))
