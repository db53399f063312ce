"""Presets: the probabilities and ranges from which a plan is drawn.

Source of the numbers: Zhang, Liang, Van Gool, Timofte, "Designing a Practical Degradation Model for
Deep Blind Image Super-Resolution", arXiv 2103.14006, and the released code of its authors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

Slot = Literal[
    "blur",  # half anisotropic, half isotropic Gaussian
    "downsample",  # by 1/U(1, 2f), or the shifted Gaussian and every f-th pixel
    "final_resize",  # to exactly the low-resolution size
    "rescale",  # up, keep or down
    "gaussian_noise",
    "poisson_noise",
    "speckle_noise",
    "camera_noise",
    "jpeg",
]
INTERPOLATIONS = ("linear", "cubic", "area", "bicubic")
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
BSR_SLOTS: tuple[Slot, ...] = (
    "blur",
    "blur",
    "downsample",
    "final_resize",
    "gaussian_noise",
    "jpeg",
    "camera_noise",
)
PLUS_NOISE: tuple[Slot, ...] = ("gaussian_noise", "poisson_noise", "speckle_noise", "camera_noise")


@dataclass(frozen=True)
class Preset:
    """What may happen to an image, how often and how strongly.

    Probabilities are in [0, 1]; ranges are (low, high), both ends included; noise levels are in
    1/255 of full scale. ``slots`` are drawn in a random order with probability
    ``shuffle_probability``, else as they stand (each run of noise slots shuffled within itself).
    "final_resize" always comes after every "downsample"; where it is no slot, it comes after all
    slots. A slot of a kind that has a probability of its own happens with that probability.

    Raises ValueError, naming the field, for a value that no plan could be drawn from.
    """

    name: str
    scales: tuple[int, ...] = (2, 4)
    slots: tuple[Slot, ...] = ()
    shuffle_probability: float = 1.0
    halve_probability: float = 0.25  # halve the image before all else; for scales of 4 and more
    blur_strength: float = 1.0  # multiplies both of the paper's ranges: 4 + f and 2 + 0.2 f
    kernel_sizes: tuple[int, int] = (7, 25)
    anisotropic_probability: float = 0.5
    resize_probability: float = 0.75  # downsample: by a resize, else by the shifted Gaussian
    interpolations: tuple[str, ...] = ("linear", "cubic", "area")
    final_interpolations: tuple[str, ...] = ("linear", "cubic", "area")
    rescale_probabilities: tuple[float, float, float] = (0.2, 0.1, 0.7)  # up, keep, down
    noise_levels: tuple[int, int] = (2, 25)
    noise_kind_probabilities: tuple[float, float, float] = (0.4, 0.4, 0.2)  # colour, grey, correlated
    poisson_probability: float = 0.1
    poisson_exponents: tuple[float, float] = (2.0, 4.0)  # photons at full scale: 10 to this power
    speckle_probability: float = 0.1
    camera_probability: float = 0.25
    jpeg_probability: float = 0.9
    jpeg_qualities: tuple[int, int] = (30, 95)
    jpeg_subsamplings: tuple[str, ...] = ("4:2:0",)
    final_jpeg: bool = True
    sharpen_probability: float = 0.0  # of sharpening the target before it is degraded

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_probability") and not 0 <= value <= 1:
                raise ValueError(f"preset {self.name}: {field.name} is {value}; it must be in [0, 1]")
            if field.name.endswith("_probabilities") and not _is_distribution(value):
                raise ValueError(f"preset {self.name}: {field.name} {value} must be three, ≥ 0, of sum 1")
        for name in ("kernel_sizes", "noise_levels", "poisson_exponents", "jpeg_qualities"):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1]:
                raise ValueError(f"preset {self.name}: {name} is {values}; it must be (low, high), low > 0")
        if self.kernel_sizes[0] % 2 == 0 or self.kernel_sizes[1] % 2 == 0:
            raise ValueError(f"preset {self.name}: kernel_sizes {self.kernel_sizes} must be odd")
        if self.jpeg_qualities[1] > 100:
            raise ValueError(f"preset {self.name}: jpeg_qualities {self.jpeg_qualities} must be in 1–100")
        if not 0 <= self.blur_strength < 1000:
            raise ValueError(f"preset {self.name}: blur_strength {self.blur_strength} must be ≥ 0 and moderate")
        self._check_names("scales", self.scales, (1, 2, 3, 4, 8))
        self._check_names("slots", self.slots, get_args(Slot), may_be_empty=True)
        self._check_names("interpolations", self.interpolations, INTERPOLATIONS)
        self._check_names("final_interpolations", self.final_interpolations, INTERPOLATIONS)
        self._check_names("jpeg_subsamplings", self.jpeg_subsamplings, SUBSAMPLINGS)
        if self.slots.count("final_resize") > 1:
            raise ValueError(f"preset {self.name}: slots has more than one final_resize")

    def _check_names(self, field: str, got: tuple, known: tuple, may_be_empty: bool = False) -> None:
        unknown = [item for item in got if item not in known]
        if unknown or not (got or may_be_empty):
            raise ValueError(f"preset {self.name}: {field} takes some of {known}, got {got}")

    def to_json(self) -> str:
        """This preset as a JSON object; ``from_json`` gives back an equal one."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> Preset:
        """The preset that a JSON object describes; fields left out keep their default.

        Raises ValueError for text that is not a JSON object, unknown keys and bad values.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a preset must be a JSON object: {error}") from error
        named = isinstance(data, dict) and isinstance(data.get("name"), str)
        if not named:
            raise ValueError("a preset must be a JSON object with a name")
        known = {field.name: field for field in dataclasses.fields(Preset)}
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ValueError(f"preset {data['name']}: unknown keys {unknown}; known are {sorted(known)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        for key, value in values.items():
            default = "" if key == "name" else known[key].default
            if not _like(value, default):
                raise ValueError(f"preset {data['name']}: {key} must be like {default!r}, got {value!r}")
        return Preset(**values)


def _is_distribution(value: tuple[float, ...]) -> bool:
    return len(value) == 3 and min(value) >= 0 and abs(sum(value) - 1) < 1e-9


def _like(value: Any, default: Any) -> bool:
    """Whether a value from JSON is of the default's type, whole numbers passing for floats."""
    if isinstance(default, tuple):
        item = default[0] if default else ""
        return isinstance(value, tuple) and all(_like(one, item) for one in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "bicubic": Preset(
            name="bicubic",
            scales=(2, 4, 8),
            halve_probability=0.0,
            final_interpolations=("bicubic",),
            final_jpeg=False,
        ),
        "bsr-light": Preset(
            name="bsr-light",
            scales=(2, 4, 8),
            slots=("blur", "downsample", "final_resize", "gaussian_noise", "jpeg"),
            blur_strength=0.25,
            kernel_sizes=(5, 7),
            resize_probability=0.8,
            noise_levels=(1, 2),
            jpeg_qualities=(80, 95),
        ),
        "bsr": Preset(name="bsr", slots=BSR_SLOTS),
        # Unlike the authors' code, this one too halves a quarter of the images first, and sharpens no target.
        "bsr-plus": Preset(
            name="bsr-plus",
            slots=("blur", "rescale", *PLUS_NOISE, "jpeg", "blur", "rescale", *PLUS_NOISE),
            shuffle_probability=0.5,
            camera_probability=0.1,
            jpeg_probability=1.0,
        ),
    }
)


def find_preset(preset: Preset | str) -> Preset:
    """The preset itself, or the one of that name. Raises ValueError naming those that exist."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"no preset is called {preset!r}; there are {', '.join(PRESETS)}")
    return PRESETS[preset]
