"""The shared path of uploaded pictures: batches, progress, stopping, defaults."""

import json

import numpy as np
import pytest

from service.describe import sr_hash, versions
from service.requests import OutOfMemory
from service.settings import Settings
from service.upscale import Progress, UpscaleOptions, Upscaler
from sr3.images import Picture
from sr3.pipeline import SR3Pipeline


def picture(seed: int, channels: int = 3) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (12, 16, channels), np.uint8), icc=bytes([seed]))


@pytest.fixture
def upscaler(small_pipeline: SR3Pipeline) -> Upscaler:
    return Upscaler(small_pipeline, Settings(sr_steps=2))


def test_progress_ends_at_its_total_where_memory_is_short(upscaler: Upscaler, monkeypatch) -> None:
    monkeypatch.setattr("sr3.memory.free_memory", lambda device: 14_000_000)
    told: list[Progress] = []
    large = Picture(np.random.default_rng(0).integers(0, 256, (200, 140, 3), np.uint8))
    upscaler.upscale([large], [1], UpscaleOptions(4, steps=0), told.append)
    assert told[0].step == 0 and told[-1].step == told[-1].steps
    assert len(told) > 1 + told[-1].steps  # it was cut into more pieces than foreseen


def test_where_there_is_no_room_it_is_out_of_memory(upscaler: Upscaler, monkeypatch) -> None:
    monkeypatch.setattr("sr3.memory.free_memory", lambda device: 0)
    with pytest.raises(OutOfMemory, match="is the least for a picture of 16x12 to 64x48"):
        upscaler.upscale([picture(0)], [1], UpscaleOptions())


def test_a_batch_gives_what_each_seed_gives_alone(upscaler: Upscaler) -> None:
    options = UpscaleOptions(16, steps=1)
    together = upscaler.upscale([picture(1), picture(2)], [7, 8], options)
    for large, one, seed in zip(together, (picture(1), picture(2)), (7, 8), strict=True):
        alone = upscaler.upscale([one], [seed], options)[0]
        assert large.pixels.shape == (192, 256, 3)
        assert np.abs(large.pixels.astype(int) - alone.pixels).max() <= 1
        assert large.icc == one.icc


@pytest.mark.parametrize(
    ("factor", "size", "free"), [(4, (200, 140), 160_000_000), (16, (50, 35), 160_000_000)], ids=["x4", "x16"]
)
def test_a_batch_that_would_be_cut_otherwise_than_its_pictures_alone_has_no_room(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, factor: int, size: tuple[int, int], free: int
) -> None:
    large = [Picture(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)) for seed in (1, 2)]
    options, told = UpscaleOptions(factor, steps=0), list[Progress]()
    alone = [upscaler.upscale([each], [7], options)[0].pixels for each in large]
    monkeypatch.setattr("sr3.memory.free_memory", lambda device: free)
    with pytest.raises(OutOfMemory, match="2 pictures"):
        upscaler.upscale(large, [7, 7], options, told.append)
    assert not told  # nothing is begun
    for each, expected in zip(large, alone, strict=True):
        assert np.array_equal(upscaler.upscale([each], [7], options)[0].pixels, expected)
    monkeypatch.setattr("sr3.memory.free_memory", lambda device: 2 * free)
    assert len(upscaler.upscale(large, [7, 7], options)) == 2


def test_uploads_are_not_smoothed_and_take_the_servers_steps(upscaler: Upscaler) -> None:
    plain = upscaler.upscale([picture(1)], [7], UpscaleOptions())[0].pixels
    named = upscaler.upscale([picture(1)], [7], UpscaleOptions(steps=2, aug_level=0.0))[0].pixels
    assert np.array_equal(plain, named)
    for other in (
        UpscaleOptions(steps=0),
        UpscaleOptions(aug_level=0.2),
        UpscaleOptions(scheduler="Euler"),
        UpscaleOptions(views=2),
    ):
        assert not np.array_equal(plain, upscaler.upscale([picture(1)], [7], other)[0].pixels)


def test_progress_names_each_pass_and_ends_whole(upscaler: Upscaler) -> None:
    seen: list[Progress] = []
    upscaler.upscale([picture(1, 4)], [7], UpscaleOptions(16, steps=1), seen.append)
    first = [p for p in seen if p.stage == "x4"]
    assert list(dict.fromkeys(p.step for p in first)) == list(range(first[0].steps + 1))
    assert [p.stage for p in seen] == ["x4"] * len(first) + ["x16"] * (len(seen) - len(first))
    assert seen[-1].step == seen[-1].steps


def test_raising_ends_the_work_at_once(upscaler: Upscaler) -> None:
    seen: list[Progress] = []

    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 3:
            raise Enough

    with pytest.raises(Enough):
        upscaler.upscale([picture(1)], [7], UpscaleOptions(), stop)
    assert len(seen) == 3


def test_back_projections_are_told_of_and_can_be_ended(upscaler: Upscaler) -> None:
    told: list[Progress] = []

    class Enough(Exception):
        pass

    def count(consistency: int, most: int = 10**6) -> int:
        def stop(progress: Progress) -> None:
            told.append(progress)
            if len(told) > most:
                raise Enough

        told.clear()
        upscaler.upscale([picture(1)], [7], UpscaleOptions(steps=0, consistency=consistency), stop)
        return len(told)

    without = count(0)
    assert count(100) == without + 100
    assert told[without:] == [Progress("x4", 1, 1)] * 100
    with pytest.raises(Enough):
        count(100, without + 1)
    heard = len(told)
    upscaler.upscale([picture(1)], [7], UpscaleOptions(steps=0, consistency=100))
    assert len(told) == heard  # nobody listens any more


def test_what_cannot_be_done_is_a_value_error(upscaler: Upscaler) -> None:
    with pytest.raises(ValueError, match="must have one size"):
        upscaler.upscale([picture(1), picture(2, 1)], [1, 2], UpscaleOptions())
    with pytest.raises(ValueError, match="scheduler is 'no'"):
        upscaler.upscale([picture(1)], [1], UpscaleOptions(scheduler="no"))


def test_a_result_says_how_it_was_made(upscaler: Upscaler) -> None:
    text = upscaler.metadata(picture(1), 7, UpscaleOptions(16, scheduler="Euler", views=2))
    made = json.loads(text["settings"])
    assert (made["seed"], made["upscale"], made["sr_steps"], made["sr_sampler"]) == (7, 16, 2, "Euler")
    assert (made["sr_model"], made["sr_hash"]) == ("bundled", sr_hash(Settings()))
    assert made["versions"] == versions() and made["views"] == 2
    assert "Seed: 7, Size: 16x12, Hires upscale: 16, Hires steps: 2, Hires upscaler: SR3 bundled" in text["parameters"]


@pytest.mark.parametrize(
    ("asked", "format", "expected"), [(None, "JPEG", 0), (None, "WEBP", 0), (None, "PNG", None), (3, "JPEG", 3)]
)
def test_a_lossy_file_is_not_projected_back_unless_asked_for(asked, format, expected):
    picture = Picture(np.zeros((8, 8, 3), np.uint8), format=format)
    assert UpscaleOptions(factor=16, consistency=asked).for_picture(picture) == UpscaleOptions(16, consistency=expected)
