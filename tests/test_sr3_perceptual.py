"""LPIPS and DISTS on networks with random weights, whose answers follow from their definitions."""

import numpy as np
import pytest
import torch

from sr3 import perceptual
from sr3.evaluate import measures
from sr3.perceptual import ALEXNET_FILE, DISTS_LAYERS, LPIPS_LAYERS, VGG16_FILE, AlexNet, distances

WIDTHS = (64, 192, 384, 256, 256)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Files as torchvision, lpips and DISTS_pytorch give them out, with random weights."""
    folder = tmp_path_factory.mktemp("networks")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = {"classifier.6.weight": torch.zeros(1)}
        torch.save(AlexNet().state_dict() | classifier, folder / ALEXNET_FILE)
        torch.save(perceptual.VGG16().state_dict() | classifier, folder / VGG16_FILE)
    torch.save({f"lin{i}.model.1.weight": torch.full((1, c, 1, 1), 1.0) for i, c in enumerate(WIDTHS)}, folder / "a")
    (folder / "a").rename(folder / LPIPS_LAYERS)
    torch.save({"alpha": torch.ones(1, 1475, 1, 1), "beta": torch.ones(1, 1475, 1, 1)}, folder / DISTS_LAYERS)
    return folder


@pytest.fixture(scope="module")
def picture():
    steps = np.add.outer(np.arange(80), 2 * np.arange(72))[..., None] * np.array([1, 2, 3])
    return (steps % 256).astype(np.uint8)


def test_equal_pictures_have_no_distance_and_worse_ones_more(networks, picture):
    noise = np.random.default_rng(0).normal(0, 1, picture.shape)
    little, much = (np.clip(picture + s * noise, 0, 255).astype(np.uint8) for s in (4, 40))
    for distance in distances(networks).values():
        assert distance(picture, picture) == pytest.approx(0, abs=1e-6)
        assert 0 < distance(picture, little) < distance(picture, much)
        assert distance(little, picture) == pytest.approx(distance(picture, little), rel=1e-5)


def test_lpips_is_twice_one_minus_the_cosine_at_each_layer(networks, picture):
    """With layers' weights of one: |a/|a| − b/|b||² = 2 − 2 cos(a, b), its mean over positions, summed over layers."""
    other = picture[::-1].copy()
    network = AlexNet()
    network.load_state_dict({k: v for k, v in torch.load(networks / ALEXNET_FILE).items() if k[0] == "f"})
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (perceptual.MEAN, perceptual.DEVIATION))
    with torch.no_grad():
        a, b = (network(((torch.tensor(p).movedim(2, 0) / 255 - mean) / deviation)[None]) for p in (picture, other))
        expected = sum(float((2 - 2 * torch.cosine_similarity(x, y)).mean()) for x, y in zip(a, b, strict=True))
    assert distances(networks)["LPIPS"](picture, other) == pytest.approx(expected, rel=1e-4)


def test_dists_of_constant_pictures_is_that_of_their_means(networks):
    """No variance: structure is 1 everywhere inside; the pictures' own channels differ by (2ab + c)/(a² + b² + c)."""
    weights = torch.load(networks / DISTS_LAYERS)
    only_pictures = torch.cat([torch.ones(3), torch.zeros(1472)])
    torch.save({"alpha": only_pictures, "beta": 0 * weights["beta"]}, networks / DISTS_LAYERS)
    black, grey = (np.full((64, 64, 3), v, np.uint8) for v in (51, 102))  # 0.2 and 0.4
    value = distances(networks)["DISTS"](black, grey)
    torch.save(weights, networks / DISTS_LAYERS)
    assert value == pytest.approx(1 - (2 * 0.2 * 0.4 + 1e-6) / (0.04 + 0.16 + 1e-6), abs=1e-5)


def test_only_networks_that_are_there_are_measured(networks, tmp_path):
    assert set(distances(networks)) == {"LPIPS", "DISTS"} <= set(measures(networks))
    assert distances(tmp_path) == {}
    for name in (ALEXNET_FILE, LPIPS_LAYERS):
        (tmp_path / name).write_bytes((networks / name).read_bytes())
    assert set(distances(tmp_path)) == {"LPIPS"}
    (tmp_path / ALEXNET_FILE).write_bytes(b"not weights")
    with pytest.raises(ValueError, match="is no file of network weights"):
        distances(tmp_path)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / ALEXNET_FILE)
    with pytest.raises(ValueError, match="holds no 'features"):
        distances(tmp_path)
    torch.save({name: torch.zeros(1) for name in AlexNet().state_dict()}, tmp_path / ALEXNET_FILE)
    with pytest.raises(ValueError, match="does not fit the network"):
        distances(tmp_path)
