"""Pictures of every kind, enlarged: grey stays grey, transparency and sixteen bits stay."""

import numpy as np
import pytest

import sr3
from sr3.enlarge import WHITE, auto_steps, enlarge, enlarge_batch, evaluations, filled, spread
from sr3.images import Picture
from sr3.presets import PRESETS, build
from sr3.tiling import Tiling


@pytest.fixture(scope="module")
def bundled():
    return sr3.load(device="cpu")


def noise(channels: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (12, 16, channels), dtype, endpoint=True)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_and_depth_stay(small_pipeline, channels, dtype):
    picture = Picture(noise(channels, dtype), icc=b"profile", exif=b"exif")
    large = enlarge(small_pipeline, picture, steps=1, seed=3)
    assert large.pixels.shape == (48, 64, channels) and large.pixels.dtype == dtype
    assert (large.icc, large.exif) == (b"profile", b"exif")
    assert np.array_equal(large.pixels, enlarge(small_pipeline, picture, steps=1, seed=3).pixels)


def test_sixteen_bits_agree_with_eight(small_pipeline):
    eight = noise(3)
    small = enlarge(small_pipeline, Picture(eight), steps=2).pixels
    deep = enlarge(small_pipeline, Picture(eight.astype(np.uint16) * 257), steps=2).pixels
    assert np.abs(small.astype(float) - deep / 257).max() <= 1


def test_what_is_invisible_does_not_shine_through(small_pipeline):
    """Two pictures that differ only where alpha is zero become the same picture."""
    first = noise(4)
    first[..., 3] = 255
    first[:6, :, 3] = 0
    second = first.copy()
    second[:6, :, :3] = 255 - second[:6, :, :3]
    results = [enlarge(small_pipeline, Picture(p), steps=1).pixels for p in (first, second)]
    assert np.array_equal(*results)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("colour", [(120,), (180, 30, 40)])
def test_hard_edges_of_transparency_have_no_lines_beside_them(bundled, colour, steps):
    picture = np.zeros((48, 48, len(colour) + 1), np.uint8)
    picture[12:36, 12:36] = (*colour, 255)
    large = enlarge(bundled, Picture(picture), steps=steps, seed=1).pixels.astype(int)
    cover = large[..., -1]
    assert np.abs(large[..., :-1] - colour)[cover > 0].max() <= 4
    assert (cover[52:140, 52:140] == 255).all(), "a pixel of the small picture from the edge"
    cover[44:148, 44:148] = 0
    assert not cover.any()


def test_colours_go_on_where_they_are_invisible():
    shades = np.linspace(0, 60000, 31)[:, None] * np.ones(20)
    picture = np.dstack([shades, 60000 - shades, np.full_like(shades, 65535)]).astype(np.uint16)
    assert np.array_equal(filled(picture, 65535), picture[..., :2]), "all of it is visible"
    hidden = picture.copy()
    hidden[5:25, 4:16] = (9999, 1, 0)
    assert np.abs(filled(hidden, 65535) - picture[..., :2].astype(float)).max() < 12000
    hidden = picture.copy()
    hidden[15, 10] = (65535, 65535, 655)
    assert np.abs(filled(hidden, 65535) - picture[..., :2].astype(float)).max() < 2000, "a hundredth of its own"
    assert not filled(np.full((9, 7, 2), (200, 0), np.uint8), 255).any(), "none of it is"


@pytest.mark.parametrize("alpha", [16, 128, 192, 255])
def test_what_is_equally_transparent_keeps_its_colours(alpha):
    pixels = noise(4)
    pixels[..., 3] = alpha
    assert np.array_equal(filled(pixels, 255), pixels[..., :3])


def test_thin_lines_on_a_transparent_ground_keep_their_colour():
    pixels = np.full((16, 16, 4), (40, 60, 200, 51), np.uint8)
    pixels[8] = (230, 200, 30, 51)
    assert np.array_equal(filled(pixels, 255), pixels[..., :3])
    pixels[7], pixels[9] = 0, 0  # nothing around it is seen
    assert np.array_equal(filled(pixels, 255)[8], pixels[8, :, :3])


def test_a_model_without_an_estimate_enlarges_transparency_too():
    paper = build(PRESETS["sr3-paper-tiny"])
    picture = Picture(noise(4))
    assert enlarge(paper, picture, steps=2).pixels.shape == (48, 64, 4)
    calls = []
    enlarge(paper, picture, steps=2, on_tile=lambda: calls.append(1))
    assert [len(calls)] == evaluations(paper, picture, 4, 2)


def test_sixteen_times_is_two_passes(small_pipeline):
    assert enlarge(small_pipeline, Picture(noise(3)), 16, steps=1).pixels.shape == (192, 256, 3)


def test_other_factors_are_refused(small_pipeline):
    with pytest.raises(ValueError, match="factor is 3; it must be one of 4, 16"):
        enlarge(small_pipeline, Picture(noise(3)), 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_spread_is_the_standard_deviation_over_the_samples(dtype):
    unit = np.iinfo(dtype).max // 255
    drawn = np.random.default_rng(0).integers(0, 40, (5, 6, 7, 3)).astype(dtype) * dtype(unit)
    expected = np.sqrt((drawn / unit).var(axis=0, ddof=1).mean(-1, keepdims=True)) * (255 / WHITE)
    assert np.array_equal(spread(drawn), np.round(np.minimum(expected, 255)).astype(np.uint8))
    assert not spread(drawn[:1].repeat(3, axis=0)).any()
    with pytest.raises(ValueError, match="1 pictures have no spread"):
        spread(drawn[:1])


@pytest.mark.parametrize("colours", [1, 3])
def test_alpha_has_no_share_in_the_spread(colours):
    samples = [np.random.default_rng(i).integers(100, 150, (6, 5, colours), np.uint8) for i in range(4)]
    cover = np.full((6, 5, 1), 200, np.uint8)
    assert np.array_equal(spread(samples), spread(np.dstack([each, cover]) for each in samples))


def test_steps_are_fewer_for_larger_pictures_and_slower_devices():
    sizes = (64, 256, 512, 1024, 4000, 20_000)
    cpu, gpu = ([auto_steps(n, n, 4, device) for n in sizes] for device in ("cpu", "cuda"))
    assert cpu[0] == gpu[0] == 4 and cpu[-1] == 0
    assert cpu == sorted(cpu, reverse=True) and gpu == sorted(gpu, reverse=True)
    assert all(slow <= fast for slow, fast in zip(cpu, gpu, strict=True)) and cpu != gpu


def seen(pixels: np.ndarray) -> np.ndarray:
    """Levels as they show: of colours their share that is not transparent."""
    share = pixels[..., -1:] / 255 if pixels.shape[2] in (2, 4) else 1
    return np.dstack([pixels[..., :-1] * share, pixels[..., -1:]]).astype(float)


@pytest.mark.parametrize("channels", [2, 3])
def test_a_picture_is_the_same_alone_and_in_a_batch(small_pipeline, channels):
    pictures = [Picture(np.roll(noise(channels), i, axis=0), icc=bytes([i])) for i in range(3)]
    options = {"factor": 16, "steps": 2, "aug_level": 0.1}
    together = enlarge_batch(small_pipeline, pictures, [5, 6, 7], **options)
    for picture, seed, large in zip(pictures, (5, 6, 7), together, strict=True):
        alone = enlarge(small_pipeline, picture, seed=seed, **options)
        assert np.abs(seen(large.pixels) - seen(alone.pixels)).max() <= 2  # a level from each of the two passes
        assert large.icc == picture.icc
    assert not np.array_equal(together[0].pixels, together[1].pixels)


def test_unequal_pictures_share_no_batch(small_pipeline):
    with pytest.raises(ValueError, match="must have one size"):
        enlarge_batch(small_pipeline, [Picture(noise(3)), Picture(noise(1))], [1, 2])
    with pytest.raises(ValueError, match="a seed each"):
        enlarge_batch(small_pipeline, [Picture(noise(3))], [1, 2])


@pytest.mark.parametrize(("channels", "factor", "steps"), [(3, 4, 0), (4, 4, 2), (1, 16, 1)])
def test_evaluations_are_counted_before(small_pipeline, channels, factor, steps):
    told = []
    tiling = Tiling(24, 8)
    picture = Picture(noise(channels))
    enlarge(small_pipeline, picture, factor, steps, tiling=tiling, on_tile=lambda: told.append(1))
    assert sum(evaluations(small_pipeline, picture, factor, steps, tiling)) == len(told)
