"""A plan: every choice of one degradation, drawn, as plain data that survives JSON exactly."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Any, Literal

Matrix3 = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
NoiseKind = Literal["colour", "grey", "correlated"]


@dataclass(frozen=True)
class Blur:
    """Isotropic Gaussian: sigma in pixels, an odd kernel of size × size taps."""

    sigma: float
    size: int = 25


@dataclass(frozen=True)
class AnisotropicBlur:
    """Gaussian with sigmas (pixels) along two axes, the first at angle radians from x towards y (down)."""

    sigma_x: float
    sigma_y: float
    angle: float = 0.0
    size: int = 25


@dataclass(frozen=True)
class Resize:
    """To height × width pixels by linear, cubic, area, or (antialiased) bicubic interpolation."""

    height: int
    width: int
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class Decimate:
    """Gaussian blur shifted for the stride, then every factor-th pixel."""

    factor: int
    sigma: float
    size: int = 25


@dataclass(frozen=True)
class GaussianNoise:
    """Level in 1/255. ``mixing`` M, for kind "correlated": covariance between the colours M Mᵀ."""

    level: float
    kind: NoiseKind = "colour"
    seed: int = 0
    mixing: Matrix3 | None = None


@dataclass(frozen=True)
class PoissonNoise:
    """Photon noise with ``peak`` photons at full scale, drawn per colour or from the grey image."""

    peak: float
    grey: bool = False
    seed: int = 0


@dataclass(frozen=True)
class SpeckleNoise:
    """Gaussian noise multiplied by the image; fields as in GaussianNoise."""

    level: float
    kind: NoiseKind = "colour"
    seed: int = 0
    mixing: Matrix3 | None = None


@dataclass(frozen=True)
class CameraNoise:
    """Sensor noise of variance ``shot · x + read`` in raw values x; see degradation.camera."""

    shot: float
    read: float
    red_gain: float = 2.1
    blue_gain: float = 1.7
    digital_gain: float = 1.25
    camera_matrix: Matrix3 = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    pattern: str = "RGGB"
    seed: int = 0


@dataclass(frozen=True)
class Jpeg:
    """JPEG with a quality of 1–100 and a chroma subsampling of 4:4:4, 4:2:2 or 4:2:0."""

    quality: int
    subsampling: str = "4:2:0"


@dataclass(frozen=True)
class Sharpen:
    """Unsharp masking; radius in pixels (the Gaussian's kernel), threshold in 1/255."""

    weight: float = 0.5
    radius: int = 51
    threshold: float = 10.0


Step = (
    Blur
    | AnisotropicBlur
    | Resize
    | Decimate
    | GaussianNoise
    | PoissonNoise
    | SpeckleNoise
    | CameraNoise
    | Jpeg
    | Sharpen
)

STEP_NAMES: dict[str, type] = {
    "blur": Blur,
    "anisotropic_blur": AnisotropicBlur,
    "resize": Resize,
    "decimate": Decimate,
    "gaussian_noise": GaussianNoise,
    "poisson_noise": PoissonNoise,
    "speckle_noise": SpeckleNoise,
    "camera_noise": CameraNoise,
    "jpeg": Jpeg,
    "sharpen": Sharpen,
}
_NAME_OF = {kind: name for name, kind in STEP_NAMES.items()}


@dataclass(frozen=True)
class Plan:
    """What is done to an image of ``size`` (height, width) to make it ``scale`` times smaller.

    ``sharpen``, if any, is applied to the target itself, before the steps.
    """

    preset: str
    scale: int
    size: tuple[int, int]
    steps: tuple[Step, ...]
    sharpen: Sharpen | None = None

    def to_json(self) -> str:
        """This plan as a JSON object; ``from_json`` gives back an equal one."""
        return json.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """This plan as plain dictionaries, lists, numbers and strings."""
        sharpen = step_to_dict(self.sharpen) if self.sharpen else None
        steps = [step_to_dict(step) for step in self.steps]
        return {
            "preset": self.preset,
            "scale": self.scale,
            "size": list(self.size),
            "sharpen": sharpen,
            "steps": steps,
        }

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that ``to_json`` wrote. Raises ValueError for anything else, saying what is wrong."""
        try:
            return Plan.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"a plan must be a JSON object: {error}") from error

    @staticmethod
    def from_dict(data: Any) -> Plan:
        """The plan that ``to_dict`` gave. Raises ValueError for anything else, saying what is wrong."""
        keys = {"preset", "scale", "size", "sharpen", "steps"}
        if not isinstance(data, dict) or set(data) != keys:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"a plan is an object with the keys {sorted(keys)}, got {got}")
        size = data["size"]
        if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size)):
            raise ValueError(f"a plan's size is [height, width], got {size!r}")
        good = type(data["scale"]) is int and data["scale"] > 0 and isinstance(data["steps"], list)
        if not good:
            raise ValueError("a plan's scale is a whole number from 1 up and its steps are a list")
        sharpen = step_from_dict(data["sharpen"]) if data["sharpen"] is not None else None
        if sharpen is not None and not isinstance(sharpen, Sharpen):
            raise ValueError(f"a plan's sharpen is a sharpen step or null, got {data['sharpen']!r}")
        steps = tuple(step_from_dict(step) for step in data["steps"])
        return Plan(str(data["preset"]), data["scale"], (size[0], size[1]), steps, sharpen)


def step_name(step: Step) -> str:
    """The name under which a step is written: "blur", "gaussian_noise", …"""
    return _NAME_OF[type(step)]


def step_to_dict(step: Step) -> dict[str, Any]:
    """The step as plain data: its name under "op", and its fields."""
    return {"op": step_name(step), **dataclasses.asdict(step)}


def step_from_dict(data: Any) -> Step:
    """The step that ``step_to_dict`` gave.

    Raises ValueError, naming it, for an unknown operation, field or kind of value.
    """
    if not isinstance(data, dict) or data.get("op") not in STEP_NAMES:
        raise ValueError(f"a step is an object whose op is one of {', '.join(STEP_NAMES)}; got {data!r}")
    kind = STEP_NAMES[data["op"]]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key == "op":
            continue
        if key not in fields:
            raise ValueError(f"{data['op']} has no field {key!r}; it has {', '.join(fields)}")
        values[key] = _checked(data["op"], fields[key], value)
    missing = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise ValueError(f"{data['op']} needs {', '.join(missing)}")
    return kind(**values)


def _checked(op: str, field: dataclasses.Field, value: Any) -> Any:
    """A field's value from JSON: lists become tuples; a value of another type is refused."""
    annotation = str(field.type)
    if annotation == "bool":
        good = isinstance(value, bool)
    elif annotation == "int":
        good = isinstance(value, int) and not isinstance(value, bool)
    elif annotation == "float":
        good = _is_number(value)
    elif annotation.startswith("Matrix3"):
        good = (value is None and "None" in annotation) or _is_matrix(value)
        value = tuple(tuple(row) for row in value) if good and value is not None else value
    else:
        good = isinstance(value, str)
    if not good:
        raise ValueError(f"{op}: {field.name} must be {annotation}, got {value!r}")
    return value


def _is_matrix(value: Any) -> bool:
    rows = isinstance(value, list | tuple) and len(value) == 3
    return rows and all(isinstance(r, list | tuple) and len(r) == 3 and all(map(_is_number, r)) for r in value)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number: JSON as Python reads it has NaN and Infinity too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
