"""Noise has the level, the kind and the distribution that it says."""

import numpy as np
import pytest

from degradation.noise import gaussian_field, gaussian_noise, poisson_noise, speckle_noise
from tests.degradation_measures import textured

MIXING = ((0.6, 0.2, -0.5), (0.1, 0.7, 0.2), (0.0, 0.3, 0.8))
GREY = np.full((200, 150, 3), 0.5, np.float32)


def rng():
    return np.random.default_rng(5)


@pytest.mark.parametrize("level", [1, 8, 25])
def test_gaussian_noise_has_its_level_in_each_colour_alone(level):
    added = (gaussian_noise(GREY, rng(), level) - GREY).reshape(-1, 3) * 255
    assert added.std(axis=0) == pytest.approx(level, rel=0.03)
    assert np.abs(added.mean(axis=0)).max() < 4 * level / np.sqrt(len(added))
    assert np.abs(np.corrcoef(added.T) - np.eye(3)).max() < 0.03


def test_grey_noise_is_the_same_in_all_colours():
    added = gaussian_noise(GREY, rng(), 10, "grey") - GREY
    assert np.abs(added - added[..., :1]).max() < 1e-6
    assert added.std() * 255 == pytest.approx(10, rel=0.03)


def test_correlated_noise_has_the_covariance_of_its_mixing():
    added = (gaussian_noise(GREY, rng(), 10, "correlated", MIXING) - GREY).reshape(-1, 3) * 25.5
    expected = np.array(MIXING) @ np.array(MIXING).T
    assert np.abs(np.cov(added.T) - expected).max() < 0.03


def test_speckle_grows_with_the_image():
    for value in (0.2, 0.8):
        flat = np.full((200, 150, 3), value, np.float32)
        added = speckle_noise(flat, rng(), 20) - flat
        assert added.std() * 255 == pytest.approx(20 * value, rel=0.03)
    black = np.zeros((8, 8, 3), np.float32)
    assert np.array_equal(speckle_noise(black, rng(), 25), black)


@pytest.mark.parametrize("grey", [False, True])
def test_poisson_noise_has_the_variance_of_counted_photons(grey):
    for value in (0.1, 0.7):
        flat = np.full((200, 150, 3), value, np.float32)
        noisy = poisson_noise(flat, rng(), 400, grey)
        assert noisy.mean() == pytest.approx(value, rel=0.01)
        assert noisy.std() == pytest.approx(np.sqrt(value / 400), rel=0.03)
        assert (np.abs(noisy - noisy[..., :1]).max() < 1e-6) == grey


def test_the_same_generator_gives_the_same_noise_and_the_image_is_not_changed():
    image = textured(0, 33, 47)
    before = image.copy()
    calls = (
        lambda r: gaussian_noise(image, r, 20),
        lambda r: gaussian_noise(image, r, 20, "grey"),
        lambda r: gaussian_noise(image, r, 20, "correlated", MIXING),
        lambda r: speckle_noise(image, r, 20),
        lambda r: poisson_noise(image, r, 100),
        lambda r: poisson_noise(image, r, 100, grey=True),
    )
    for call in calls:
        first = call(rng())
        assert np.array_equal(first, call(rng()))
        assert not np.array_equal(first, call(np.random.default_rng(6)))
        assert first.dtype == np.float32 and first.min() >= 0 and first.max() <= 1
        assert np.array_equal(image, before)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="pink"):
        gaussian_field(rng(), (4, 4, 3), "pink")
    with pytest.raises(ValueError, match="mixing"):
        gaussian_noise(GREY, rng(), 5, "correlated")
    with pytest.raises(ValueError, match="peak"):
        poisson_noise(GREY, rng(), 0)
