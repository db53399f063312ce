"""What many plans look like: distributions of kernels, noise, qualities, sizes and order, on a sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from degradation import charts, drawing
from degradation.captions import FAMILY_COLOURS
from degradation.drawing import Colour
from degradation.plan import (
    AnisotropicBlur,
    Blur,
    CameraNoise,
    Decimate,
    GaussianNoise,
    Jpeg,
    Plan,
    Resize,
    SpeckleNoise,
    step_name,
)

_BLUE, _GREEN, _ORANGE = FAMILY_COLOURS["blur"], FAMILY_COLOURS["size"], FAMILY_COLOURS["noise"]
_RED, _PURPLE = FAMILY_COLOURS["camera"], FAMILY_COLOURS["jpeg"]
_GREYISH: Colour = (150, 154, 160)
_COLUMNS, _GAP, _MARGIN = 3, 20, 40


def draw_statistics(plans: Sequence[Plan], name: str) -> np.ndarray:
    """Twelve charts of the plans' steps: a sheet, uint8 (H, W, 3) RGB. ``name`` stands in the heading."""
    parts = [
        _operations(plans),
        _order(plans),
        _kernels(plans),
        _kernel_sizes(plans),
        _decimation(plans),
        _interpolations(plans),
        _sizes(plans),
        _noise(plans),
        _camera(plans),
        _qualities(plans),
        _kinds(plans),
        _lengths(plans),
    ]
    rows = -(-len(parts) // _COLUMNS)
    width = 2 * _MARGIN + _COLUMNS * (charts.WIDTH + _GAP) - _GAP
    sheet = drawing.canvas(90 + rows * (charts.HEIGHT + _GAP) + _MARGIN - _GAP, width)
    heading = f"{len(plans):,} plans of the preset {name}, scale {plans[0].scale}"
    size = f"for pictures of {plans[0].size[1]} × {plans[0].size[0]} pixels"
    drawing.draw_text(sheet, _MARGIN, 58, heading, 26, drawing.BOLD)
    drawing.draw_text(sheet, width - _MARGIN, 58, size, 15, colour=drawing.GREY, align="right")
    for i, part in enumerate(parts):
        row, column = divmod(i, _COLUMNS)
        x, y = _MARGIN + column * (charts.WIDTH + _GAP), 84 + row * (charts.HEIGHT + _GAP)
        drawing.paste(sheet, x, y, part)
    return sheet


def _steps(plans: Sequence[Plan], kind: type) -> list:
    return [step for plan in plans for step in plan.steps if isinstance(step, kind)]


def _names(plans: Sequence[Plan]) -> list[str]:
    return [name for name, _ in Counter(step_name(s) for plan in plans for s in plan.steps).most_common()]


def _operations(plans: Sequence[Plan]) -> np.ndarray:
    shares = {
        name: sum(any(step_name(s) == name for s in plan.steps) for plan in plans) / len(plans)
        for name in _names(plans)
    }
    return charts.bars("Operations", "share of plans that have it at least once", shares, _GREYISH)


def _order(plans: Sequence[Plan]) -> np.ndarray:
    names = _names(plans)
    counts = np.zeros((len(names), max(len(plan.steps) for plan in plans)))
    for plan in plans:
        for position, step in enumerate(plan.steps):
            counts[names.index(step_name(step)), position] += 1
    return charts.heatmap("Order", "how often each is the 1st, 2nd, … step", names, counts, (60, 64, 72))


def _kernels(plans: Sequence[Plan]) -> np.ndarray:
    points = {
        "anisotropic": [(step.sigma_x, step.sigma_y) for step in _steps(plans, AnisotropicBlur)],
        "isotropic": [(step.sigma, step.sigma) for step in _steps(plans, Blur)],
    }
    axes = ("σ along the first axis", "second axis")
    return charts.scatter("Blur kernels", "σ in pixels", points, (_BLUE, _ORANGE), axes)


def _kernel_sizes(plans: Sequence[Plan]) -> np.ndarray:
    sizes = Counter(step.size for kind in (Blur, AnisotropicBlur) for step in _steps(plans, kind))
    shares = {f"{size} × {size}": count / sizes.total() for size, count in sorted(sizes.items())}
    return charts.bars("Blur kernel sizes", "share of kernels; always odd", shares, _BLUE)


def _decimation(plans: Sequence[Plan]) -> np.ndarray:
    values = {"sigma": [step.sigma for step in _steps(plans, Decimate)]}
    title, about = "Shifted Gaussian before decimation", "instead of a resize"
    return charts.histogram(title, about, values, (_GREEN,), "σ in pixels")


def _interpolations(plans: Sequence[Plan]) -> np.ndarray:
    methods = Counter(step.interpolation for step in _steps(plans, Resize))
    shares = {name: count / methods.total() for name, count in sorted(methods.items())}
    return charts.bars("Interpolation", "share of resizes", shares, _GREEN)


def _sizes(plans: Sequence[Plan]) -> np.ndarray:
    smallest = [
        min([step.height for step in plan.steps if isinstance(step, Resize)], default=plan.size[0]) for plan in plans
    ]
    final = plans[0].size[0] // plans[0].scale
    about = f"fewest rows on the way; the result has {final}"
    return charts.histogram("Smallest size", about, {"height": smallest}, (_GREEN,), "pixels")


def _noise(plans: Sequence[Plan]) -> np.ndarray:
    values = {
        "Gaussian": [step.level for step in _steps(plans, GaussianNoise)],
        "speckle": [step.level for step in _steps(plans, SpeckleNoise)],
    }
    return charts.histogram("Noise", "standard deviation", values, (_ORANGE, _RED), "level in 1/255")


def _camera(plans: Sequence[Plan]) -> np.ndarray:
    points = {"": [(np.log10(s.shot), np.log10(s.read)) for s in _steps(plans, CameraNoise)]}
    axes = ("log₁₀ of shot noise", "read noise")
    return charts.scatter("Camera sensor noise", "variance = shot · x + read", points, (_RED,), axes)


def _qualities(plans: Sequence[Plan]) -> np.ndarray:
    last = [plan.steps[-1].quality for plan in plans if plan.steps and isinstance(plan.steps[-1], Jpeg)]
    middle = [step.quality for plan in plans for step in plan.steps[:-1] if isinstance(step, Jpeg)]
    values = {"on the way": middle, "at the end": last}
    return charts.histogram("JPEG", "quality", values, (_PURPLE, (196, 176, 222)), "quality")


def _kinds(plans: Sequence[Plan]) -> np.ndarray:
    kinds = Counter(step.kind for step in _steps(plans, GaussianNoise))
    shares = {kind: kinds[kind] / kinds.total() for kind in ("colour", "grey", "correlated") if kinds[kind]}
    return charts.bars("Kinds of Gaussian noise", "share of noise steps", shares, _ORANGE)


def _lengths(plans: Sequence[Plan]) -> np.ndarray:
    values = {"steps": [float(len(plan.steps)) for plan in plans]}
    return charts.histogram("Length", "steps in a plan", values, (_GREYISH,), "steps")
