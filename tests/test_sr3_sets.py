"""Distances between sets where their answer is known, and the patches that are compared as a set."""

import pickle

import numpy as np
import pytest

from sr3.sets import frechet_distance, inception_features, kernel_distance, patches, precision_recall

RNG = np.random.default_rng


def test_frechet_distance_of_two_gaussians():
    """|Δμ|² + Σ (σ₁ − σ₂)² along each axis, where both are aligned; 0 of a set with itself."""
    deviations, shift = np.array([1.0, 2.0, 0.5]), np.array([1.0, 0.0, -2.0])
    a = RNG(0).normal(size=(100_000, 3)) * deviations
    b = RNG(1).normal(size=(100_000, 3)) * (deviations + 1) + shift
    assert frechet_distance(a, b) == pytest.approx(5 + 3, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    turn = np.linalg.qr(RNG(2).normal(size=(3, 3)))[0]
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_kernel_distance_is_unbiased():
    pairs = [(RNG(i).normal(size=(200, 4)), RNG(99 - i).normal(size=(200, 4))) for i in range(20)]
    values = [kernel_distance(a, b, RNG(0)) for a, b in pairs]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20**0.5


def test_kernel_distance_of_two_gaussians():
    """In one dimension the features of (xy + 1)³ are √3 x, √3 x² and x³: their means differ by those of N(m, 1) and
    N(0, 1), which are m, m² and m³ + 3m."""
    m = 0.7
    a, b = RNG(0).normal(size=(20_000, 1)), RNG(1).normal(size=(20_000, 1)) + m
    expected = 3 * m**2 + 3 * m**4 + (m**3 + 3 * m) ** 2
    assert kernel_distance(a, b, RNG(0), subsets=20) == pytest.approx(expected, rel=0.15)


def test_precision_and_recall_of_known_sets():
    square = RNG(0).uniform(size=(400, 2))
    half = RNG(1).uniform(size=(400, 2)) * [0.5, 1]
    precision, recall = precision_recall(square, half)
    assert precision > 0.85 and 0.45 < recall < 0.62
    assert precision_recall(square, square) == (1.0, 1.0)
    assert precision_recall(square, square + 10) == (0.0, 0.0)
    # One made point far out, with its neighbours far away, has a ball that holds everything: recall, not precision.
    line = np.array([[0.0], [1], [2], [3], [100]])
    assert precision_recall(line[:4], line + 0.0, k=3) == (0.8, 1.0)


def test_measures_refuse_what_they_cannot_compare():
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 2\)"):
        frechet_distance(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="at least 4"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


def test_inception_weights_must_be_local_and_only_tensors(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        inception_features([], tmp_path / "none.pth")
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="holds more than tensors"):
        inception_features([], tmp_path / "bad.pth")


def test_patches_are_whole_and_of_one_size():
    picture = np.arange(300 * 260 * 3, dtype=np.uint32).reshape(300, 260, 3)
    cut = patches(picture, 128)
    assert [p.shape for p in cut] == [(128, 128, 3)] * 4
    assert cut[3][0, 0, 0] == picture[128, 128, 0]
    assert patches(picture[:127], 128) == [] == patches(picture[:, :127], 128)
