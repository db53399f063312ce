"""Distances between sets of pictures, on features (N, D): FID, KID, precision and recall. For both networks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity names them
NEIGHBOURS = 3  # of precision and recall
LEAST = NEIGHBOURS + 1  # features of each set that `compare` needs
PATCH = 128  # pixels on a side of the parts of pictures of any size that are compared as a set


def _both(real: np.ndarray, made: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray]:
    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise ValueError(f"features must be (N, D) with one D; they are {real.shape} and {made.shape}")
    if min(len(real), len(made)) < least:
        raise ValueError(f"{len(real)} and {len(made)} features; at least {least} of each are needed")
    return real.astype(np.float64), made.astype(np.float64)


def frechet_distance(real: np.ndarray, made: np.ndarray) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) (Heusel et al., arXiv 1706.08500, equation 6): FID where the features are
    Inception's. It falls with the number of pictures: compare only at the same number."""
    a, b = _both(real, made, 2)
    first, second = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    # The trace of the root is the sum of the roots of the eigenvalues, none negative but for rounding.
    root = np.sqrt(np.linalg.eigvals(first @ second).astype(np.complex128)).real.sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * root)


def kernel_distance(
    real: np.ndarray, made: np.ndarray, rng: np.random.Generator, subsets: int = 100, size: int = 1000
) -> float:
    """The unbiased squared maximum mean discrepancy with the kernel (x·y/D + 1)³, the mean over random subsets
    (Bińkowski et al., arXiv 1801.01401, section 4): KID where the features are Inception's. Zero is expected of equal
    distributions, whatever the number; it can be a little negative."""
    a, b = _both(real, made, 2)
    size = min(size, len(a), len(b))
    values = []
    for _ in range(1 if size == len(a) == len(b) else subsets):
        x, y = (each[rng.choice(len(each), size, replace=False)] for each in (a, b))
        xx, yy, xy = (((p @ q.T) / a.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
        values.append(within / (size * (size - 1)) - 2 * xy.mean())
    return float(np.mean(values))


def precision_recall(real: np.ndarray, made: np.ndarray, k: int = NEIGHBOURS) -> tuple[float, float]:
    """The share of `made` within the k-nearest-neighbour balls of `real`, and the other way round (Kynkäänniemi et
    al., arXiv 1904.06991, equations 1 and 2)."""
    a, b = (torch.from_numpy(each) for each in _both(real, made, k + 1))
    apart = torch.cdist(a, b)  # (real, made)
    radius_real, radius_made = (torch.cdist(x, x).kthvalue(k + 1, dim=1).values for x in (a, b))
    precision = (apart <= radius_real[:, None]).any(0)
    recall = (apart <= radius_made[None, :]).any(1)
    return float(precision.double().mean()), float(recall.double().mean())


def inception_features(pictures: Sequence[np.ndarray], weights: Path, batch: int = 16) -> np.ndarray:
    """The 2048 features of FID's Inception for uint8 RGB pictures of one size, through torch-fidelity, whose converted
    weights (`INCEPTION`) must lie at `weights`.

    Raises ValueError where the package or the file is missing, or the file holds more than tensors.
    """
    if not weights.is_file():
        raise ValueError(f"{weights} does not exist; it must be torch-fidelity's Inception weights")
    try:
        torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity would run whatever it pickles
    except Exception as error:
        raise ValueError(f"{weights} holds more than tensors, or is no file of them: {type(error).__name__}") from None
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"Inception's features need torch-fidelity: pip install '.[inception]' ({error})") from None
    extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    parts = []
    for start in range(0, len(pictures), batch):
        images = torch.from_numpy(np.stack(pictures[start : start + batch])).permute(0, 3, 1, 2)
        with torch.no_grad():
            parts.append(extractor(images)[0].numpy())
    return np.concatenate(parts)


def patches(picture: np.ndarray, side: int = PATCH) -> list[np.ndarray]:
    """The whole squares of `side` pixels that a picture (H, W, 3) is cut into: none if it is smaller."""
    rows, columns = (n // side for n in picture.shape[:2])
    cut = [(side * r, side * c) for r in range(rows) for c in range(columns)]
    return [picture[top : top + side, left : left + side] for top, left in cut]


def compare(real: np.ndarray, made: np.ndarray, prefix: str) -> dict[str, float]:
    """The measures of two sets of features, by name."""
    precision, recall = precision_recall(real, made)
    return {
        f"{prefix}FID": frechet_distance(real, made),
        f"{prefix}KID x1000": 1000 * kernel_distance(real, made, np.random.default_rng(0)),
        f"{prefix}precision": precision,
        f"{prefix}recall": recall,
    }
