"""The one place that loads basicsr: single files of it, lazily, when a measure, a peer or a test asks for them.

Importing the package itself would scan and import all of it, and needs torchvision with a module that torchvision no
longer has, and Python's distutils. The few functions of those that the files wanted here use are given to them.
"""

import importlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF = 0x01306B47  # ncnn's tag of weights of 16 bits


def folder() -> Path | None:
    """Where basicsr is installed; None without it."""
    package = importlib.util.find_spec("basicsr")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(next(iter(package.submodule_search_locations)))


def load(name: str) -> ModuleType | None:
    """A module of basicsr ("data.degradations") without the packages around it; None without basicsr."""
    root = folder()
    if root is None:
        return None
    with _stand_ins(root):
        return importlib.import_module(f"basicsr.{name}")


@contextmanager
def _stand_ins(root: Path) -> Iterator[None]:
    """Empty packages in basicsr's place while one of its files is executed, and what the files take from elsewhere."""
    import scipy.ndimage

    given: dict[str, dict[str, Any]] = {
        "torchvision": {},
        "torchvision.transforms": {},
        "torchvision.transforms.functional_tensor": {"rgb_to_grayscale": _rgb_to_grayscale},
        "scipy.ndimage.filters": {"convolve": scipy.ndimage.convolve},
        "basicsr.archs.arch_util": {
            "default_init_weights": lambda *modules, **options: None,
            "make_layer": _make_layer,
            "pixel_unshuffle": F.pixel_unshuffle,
        },
    }
    packages = ["basicsr", *(f"basicsr.{p}" for p in ("archs", "data", "metrics", "utils"))]
    kept = {name: module for name, module in sys.modules.items() if name in given or name.split(".")[0] == "basicsr"}
    for name in kept:
        del sys.modules[name]
    for name in packages:
        module = sys.modules[name] = ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    for name, values in given.items():
        module = sys.modules[name] = ModuleType(name)
        vars(module).update(values)
    try:
        utils = vars(sys.modules["basicsr.utils"])
        utils["get_root_logger"] = logging.getLogger
        utils["bgr2ycbcr"] = importlib.import_module("basicsr.utils.color_util").bgr2ycbcr
        yield
    finally:
        for name in [n for n in sys.modules if n in given or n.split(".")[0] == "basicsr"]:
            del sys.modules[name]
        sys.modules.update(kept)


def _rgb_to_grayscale(image: Tensor, num_output_channels: int = 1) -> Tensor:
    """torchvision's: (…, 3, H, W) → (…, 1, H, W), repeated if three channels are asked for."""
    red, green, blue = image.unbind(dim=-3)
    grey = (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)
    return grey.expand(image.shape) if num_output_channels == 3 else grey


def _make_layer(block: Callable[..., nn.Module], count: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(*(block(**options) for _ in range(count)))


def niqe() -> Callable[[np.ndarray], float | None] | None:
    """NIQE (Mittal et al., IEEE SPL 20(3), 2013) by basicsr's code and parameters, of uint8 RGB (H, W, 3) with sides
    of at least 200 pixels, on luminance without a border of 4; None without basicsr. Lower is better. It has no value
    (None) for a picture with fewer than two blocks of 96 pixels that are not flat."""
    module = load("metrics.niqe")
    if module is None:
        return None

    def measure(picture: np.ndarray) -> float | None:
        try:
            with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
                warnings.simplefilter("ignore", RuntimeWarning)
                value = float(module.calculate_niqe(picture[..., ::-1], crop_border=4))
        except np.linalg.LinAlgError:
            return None
        return value if np.isfinite(value) else None

    return measure


def rrdbnet() -> nn.Module | None:
    """The untrained network of Real-ESRGAN x4plus, RGB (N, 3, h, w) in [0, 1] to (N, 3, 4h, 4w); None without
    basicsr."""
    module = load("archs.rrdbnet_arch")
    return None if module is None else module.RRDBNet(3, 3, scale=4, num_feat=64, num_block=23, num_grow_ch=32).eval()


def from_ncnn(network: nn.Module, weights: Path) -> nn.Module:
    """Fill the convolutions of `network`, in the order in which they are defined, from an ncnn .bin of nothing but
    convolutions: for each a tag, weights of 16 or 32 bits padded to four bytes, a bias of 32 bits.

    Raises ValueError where the file is too short or too long for the network.
    """
    data = np.fromfile(weights, np.uint8)
    place = 0

    def take(count: int, kind: str) -> np.ndarray:
        nonlocal place
        size = count * np.dtype(kind).itemsize
        if place + size > len(data):
            raise ValueError(f"{weights} is too short for this network")
        values = data[place : place + size].view(kind)
        place += -(-size // 4) * 4
        return values

    with torch.no_grad():
        for layer in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
            kind = "<f2" if int(take(1, "<u4")[0]) == HALF else "<f4"
            layer.weight.copy_(
                torch.from_numpy(take(layer.weight.numel(), kind).astype(np.float32)).view_as(layer.weight)
            )
            layer.bias.copy_(torch.from_numpy(take(layer.bias.numel(), "<f4").copy()))  # type: ignore[union-attr]
    if place != len(data):
        raise ValueError(f"{weights} is too long for this network")
    return network
