"""The one place that loads basicsr: single files of it, when a test asks for them.

Importing the package itself would scan and import all of it, and needs torchvision with a module that
torchvision no longer has. The files wanted here need of it one function, which is given to them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

_ALIAS = "torchvision.transforms.functional_tensor"


def load(path: str) -> ModuleType | None:
    """The file at ``path`` inside basicsr ("data/degradations.py") as a module; None without basicsr."""
    package = importlib.util.find_spec("basicsr")
    if package is None or not package.submodule_search_locations:
        return None
    file = Path(next(iter(package.submodule_search_locations))) / path
    spec = importlib.util.spec_from_file_location(f"_basicsr_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    names = (_ALIAS, "torchvision.transforms", "torchvision")
    before = {name: sys.modules.get(name) for name in names}
    alias = ModuleType(_ALIAS)
    alias.rgb_to_grayscale = _rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules.update({name: alias if name == _ALIAS else ModuleType(name) for name in names})
    try:
        spec.loader.exec_module(module)
    finally:
        for name, was in before.items():
            sys.modules.pop(name)
            if was is not None:
                sys.modules[name] = was
    return module


def _rgb_to_grayscale(image: torch.Tensor, num_output_channels: int = 1) -> torch.Tensor:
    """torchvision's: (…, 3, H, W) → (…, 1, H, W), repeated if three channels are asked for."""
    red, green, blue = image.unbind(dim=-3)
    grey = (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)
    return grey.expand(image.shape) if num_output_channels == 3 else grey
