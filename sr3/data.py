"""Training data: a pack of crops, and degraded pairs drawn from it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from degradation import PRESETS, Plan, apply_plan, sample_plan, target


def save_pack(path: Path, crops: np.ndarray, manifest: list[dict[str, object]]) -> None:
    """Write uint8 RGB crops (N, S, S, 3) and where they come from as one safetensors file."""
    from safetensors.numpy import save_file

    from sr3.saving import open_to_others

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save_file({"crops": crops}, temporary, metadata={"manifest": json.dumps(manifest)})
    open_to_others(temporary)
    temporary.rename(path)


def load_pack(path: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """What `save_pack` wrote, or others without a manifest. Raises ValueError if the file is something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            if "crops" not in file.keys():  # noqa: SIM118
                raise ValueError(f"{path} is no pack of crops; python -m sr3.corpus makes one")
            described = file.get_slice("crops")
            shape, dtype = tuple(described.get_shape()), described.get_dtype()
            if dtype != "U8" or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or not shape[0]:
                raise ValueError(f"{path} has crops of {dtype} {shape}; they must be uint8 (N, S, S, 3)")
            return file.get_tensor("crops"), json.loads((file.metadata() or {}).get("manifest", "[]"))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


@dataclass(frozen=True)
class Mix:
    """How often each degradation preset is drawn, and noise conditioning augmentation."""

    bicubic: float = 0.6
    bsr_light: float = 0.25
    bsr: float = 0.15
    bsr_plus: float = 0.0
    augmented: float = 0.3
    """Share of the samples whose low_res gets noise of a level that the network is told."""
    largest_aug_level: float = 0.3

    def __post_init__(self) -> None:
        shares = self.presets()
        for name, share in shares.items():
            if not 0 <= share < math.inf:
                raise ValueError(f"mix.{name} is {share}; it must be 0 or more")
        if not sum(shares.values()):
            raise ValueError(f"one of mix.{', '.join(shares)} must be more than 0")
        if not 0 <= self.augmented <= 1:
            raise ValueError(f"mix.augmented is {self.augmented}; it must be from 0 to 1")
        if not 0 <= self.largest_aug_level < 1:
            raise ValueError(f"mix.largest_aug_level is {self.largest_aug_level}; it must be 0 or more and less than 1")

    def presets(self) -> dict[str, float]:
        return {
            "bicubic": self.bicubic,
            "bsr-light": self.bsr_light,
            "bsr": self.bsr,
            "bsr-plus": self.bsr_plus,
        }


@dataclass(frozen=True)
class SampleRecord:
    """All that a training sample was made from; `make_sample` makes it again."""

    crop: int
    top: int
    left: int
    turn: int
    """Quarter turns, plus 4 if mirrored."""
    plan: dict[str, Any]
    aug_level: float


def draw_record(key: tuple[int, int, int], crops: np.ndarray, size: int, mix: Mix) -> SampleRecord:
    """The record of sample (seed, epoch, index): every epoch visits every crop once, in a new order."""
    seed, epoch, index = key
    crop = int(np.random.default_rng([seed, epoch]).permutation(len(crops))[index])
    rng = np.random.default_rng([seed, epoch, index])
    room = crops.shape[1] - size + 1
    names, weights = zip(*mix.presets().items(), strict=True)
    preset = str(rng.choice(names, p=np.array(weights) / sum(weights)))
    plan = sample_plan(rng, PRESETS[preset], 4, (size, size))
    augmented = rng.random() < mix.augmented
    level = float(rng.uniform(0, mix.largest_aug_level)) if augmented else 0.0
    top, left = (int(v) for v in rng.integers(0, room, 2))
    return SampleRecord(crop, top, left, int(rng.integers(8)), plan.to_dict(), level)


def make_sample(record: SampleRecord, crops: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """low_res (size/4, size/4, 3) and high_res (size, size, 3), float32 RGB in [0, 1]."""
    picture = crops[record.crop, record.top : record.top + size, record.left : record.left + size]
    picture = np.rot90(picture, record.turn % 4)
    picture = picture[:, ::-1] if record.turn >= 4 else picture
    picture = np.ascontiguousarray(picture, dtype=np.float32) / 255
    plan = Plan.from_dict(record.plan)
    low_res = np.round(apply_plan(picture, plan) * 255) / 255  # as a file of 8 bits holds it
    return low_res.astype(np.float32), target(picture, plan)
