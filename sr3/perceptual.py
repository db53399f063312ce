"""Perceptual distances through classification networks whose weights the user has: LPIPS and DISTS.

Nothing is downloaded. A folder holds the files by the names under which their authors give them out: the backbones as
torchvision names them, the layers' weights as the packages `lpips` (weights/v0.1) and `DISTS_pytorch` do.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr3.mistakes import first_line

ALEXNET_FILE, LPIPS_LAYERS = "alexnet-owt-7be5be79.pth", "alex.pth"
VGG16_FILE, DISTS_LAYERS = "vgg16-397923af.pth", "weights.pt"
FILES = {"LPIPS": (ALEXNET_FILE, LPIPS_LAYERS), "DISTS": (VGG16_FILE, DISTS_LAYERS)}  # that each needs
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's networks take them
ALEXNET_LAYERS = (  # place among torchvision's features, channels, kernel, stride, padding
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
)
VGG16_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # places of the convolutions
VGG16_WIDTHS = (64, 128, 256, 512, 512)

Network = TypeVar("Network", bound=nn.Module)
Distance = Callable[[np.ndarray, np.ndarray], float]
"""Of two uint8 pictures (H, W, 3) of one size: 0 where they are equal, larger the more an eye tells them apart."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file. Raises ValueError where it is missing or holds anything else."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value.detach() for name, value in values.items()}
    except Exception as error:
        raise ValueError(f"{path} is no file of network weights: {first_line(error)}") from None


def _named(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Those tensors of a file. Raises ValueError, also where one is missing."""
    weights = read_weights(path)
    try:
        return {name: weights[name] for name in names}
    except KeyError as error:
        raise ValueError(f"{path} holds no {error}") from None


def _filled(network: Network, path: Path) -> Network:
    """The network with a file's weights. Raises ValueError for a file that does not fit."""
    try:
        network.load_state_dict(_named(path, network.state_dict()))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the network: {first_line(error)}") from None
    return network.eval().requires_grad_(False)


def _images(picture: np.ndarray) -> Tensor:
    """(1, 3, H, W) as torchvision's networks take it."""
    image = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
    return (image - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(DEVIATION).view(1, 3, 1, 1)


class AlexNet(nn.Module):
    """The activations of AlexNet's five convolutions (arXiv 1404.5997), with torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {str(place): nn.Conv2d(inner, outer, k, s, p) for place, inner, outer, k, s, p in ALEXNET_LAYERS}
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for layer in self.features.values():
            x = F.relu(layer(x))
            found.append(x)
            if len(found) <= 2:
                x = F.max_pool2d(x, 3, 2)
        return found


class VGG16(nn.Module):
    """The picture, and the activations at the end of VGG16's five stages (arXiv 1409.1556), between which DISTS pools
    by a Hanning window's L2 norm (arXiv 2004.07728, equation 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.features, inner = nn.ModuleDict(), 3
        for stage, outer in zip(VGG16_STAGES, VGG16_WIDTHS, strict=True):
            for place in stage:
                self.features[str(place)] = nn.Conv2d(inner, outer, 3, padding=1)
                inner = outer

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        window = torch.tensor([0.25, 0.5, 0.25])
        for number, stage in enumerate(VGG16_STAGES):
            if number:
                kernel = torch.outer(window, window).expand(x.shape[1], 1, 3, 3)
                x = (F.conv2d(x**2, kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()
            for place in stage:
                x = F.relu(self.features[str(place)](x))
            found.append(x)
        return found


def lpips(folder: Path) -> Distance:
    """LPIPS 0.1 on AlexNet (Zhang et al., arXiv 1801.03924, equation 1). Raises ValueError for unusable files."""
    network = _filled(AlexNet(), folder / ALEXNET_FILE)
    names = [f"lin{i}.model.1.weight" for i in range(len(ALEXNET_LAYERS))]
    layers = list(_named(folder / LPIPS_LAYERS, names).values())  # each (1, C, 1, 1)

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        total = 0.0
        # LPIPS's own scaling of [-1, 1] is ImageNet's of [0, 1].
        for a, b, weight in zip(network(_images(first)), network(_images(second)), layers, strict=True):
            unit_a, unit_b = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b))
            total += float(((unit_a - unit_b) ** 2 * weight).sum(1).mean())
        return total

    return distance


def dists(folder: Path) -> Distance:
    """DISTS on VGG16 (Ding et al., arXiv 2004.07728, equations 4 to 6). Raises ValueError for unusable files."""
    network = _filled(VGG16(), folder / VGG16_FILE)
    weights = _named(folder / DISTS_LAYERS, ("alpha", "beta"))
    alpha, beta = weights["alpha"].flatten(), weights["beta"].flatten()  # of 3 + 1472 channels
    total = alpha.sum() + beta.sum()

    def statistics(picture: np.ndarray) -> list[Tensor]:
        plain = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
        return [x[0].flatten(1) for x in (plain, *network(_images(picture)))]  # each (C, positions)

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        texture, structure = [], []
        for a, b in zip(statistics(first), statistics(second), strict=True):
            mean_a, mean_b = a.mean(1), b.mean(1)
            covariance = (a * b).mean(1) - mean_a * mean_b
            texture.append((2 * mean_a * mean_b + 1e-6) / (mean_a**2 + mean_b**2 + 1e-6))
            spread = a.var(1, correction=0) + b.var(1, correction=0)
            structure.append((2 * covariance + 1e-6) / (spread + 1e-6))
        similarity = alpha @ torch.cat(texture) + beta @ torch.cat(structure)
        return float(1 - similarity / total)

    return distance


def distances(folder: Path) -> dict[str, Distance]:
    """LPIPS and DISTS, whichever's files are in the folder. Raises ValueError for files that cannot be used."""
    makers = {"LPIPS": lpips, "DISTS": dists}
    return {n: make(folder) for n, make in makers.items() if all((folder / file).is_file() for file in FILES[n])}
