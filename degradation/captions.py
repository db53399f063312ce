"""Steps in words, for people; and words into steps, for the command line."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from degradation.plan import (
    STEP_NAMES,
    AnisotropicBlur,
    Blur,
    CameraNoise,
    Decimate,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Resize,
    Sharpen,
    SpeckleNoise,
    Step,
    step_from_dict,
)

Family = Literal["blur", "size", "noise", "camera", "jpeg"]
FAMILY_COLOURS: dict[Family, tuple[int, int, int]] = {
    "blur": (59, 110, 178),
    "size": (70, 148, 84),
    "noise": (222, 138, 24),
    "camera": (196, 62, 84),
    "jpeg": (132, 92, 178),
}


def describe(step: Step) -> tuple[Family, str]:
    """The family of the step's operation and a caption: ("blur", "Blur σ 1.31")."""
    match step:
        case Blur(sigma, size):
            return "blur", f"Blur σ {sigma:.2f}, {size} taps"
        case AnisotropicBlur(sigma_x, sigma_y, angle, size):
            return "blur", f"Blur σ {sigma_x:.2f} × {sigma_y:.2f} at {math.degrees(angle):.0f}°, {size} taps"
        case Sharpen(weight, radius, _):
            return "blur", f"Sharpen {weight:g}, radius {radius}"
        case Resize(height, width, interpolation):
            return "size", f"Resize to {width} × {height}, {interpolation}"
        case Decimate(factor, sigma, _):
            return "size", f"Blur σ {sigma:.2f}, every {_ordinal(factor)} pixel"
        case GaussianNoise(level, kind, _, _):
            return "noise", f"Noise {level:g}/255, {kind}"
        case SpeckleNoise(level, kind, _, _):
            return "noise", f"Speckle {level:g}/255, {kind}"
        case PoissonNoise(peak, grey, _):
            return "noise", f"Poisson, {peak:.0f} photons{', grey' if grey else ''}"
        case CameraNoise():
            return "camera", f"Camera noise, shot {step.shot:.2g}"
        case Jpeg(quality, subsampling):
            return "jpeg", f"JPEG quality {quality}, {subsampling}"
    raise TypeError(f"not a step: {step!r}")


def _ordinal(number: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(number, f"{number}th")


def parse_step(text: str) -> Step:
    """ "blur:sigma=2", "resize:height=64,width=96,interpolation=area", "poisson_noise:peak=100,grey=true".

    Fields left out take their default. Raises ValueError, naming what is known, for anything else.
    """
    name, _, rest = text.partition(":")
    if name not in STEP_NAMES:
        raise ValueError(f"no operation is called {name!r}; there are {', '.join(STEP_NAMES)}")
    types = {field.name: str(field.type) for field in dataclasses.fields(STEP_NAMES[name])}
    data: dict[str, Any] = {"op": name}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{text}: after the colon come fields as key=value, got {item!r}")
        if types.get(key, "").startswith("Matrix3"):
            raise ValueError(f"{text}: {key} cannot be given by hand; a plans file can hold it")
        data[key] = _parse_value(text, types.get(key, "str"), value)
    return step_from_dict(data)


def _parse_value(text: str, kind: str, value: str) -> Any:
    if kind == "bool":
        if value not in ("true", "false"):
            raise ValueError(f"{text}: {value!r} is neither true nor false")
        return value == "true"
    if kind not in ("int", "float"):
        return value
    try:
        return int(value) if kind == "int" else float(value)
    except ValueError:
        raise ValueError(f"{text}: {value!r} is no {'whole number' if kind == 'int' else 'number'}") from None
