"""The plans file, and the part of a picture that it names."""

import json

import cv2
import numpy as np
import pytest

from degradation import sample_plan
from degradation.plan import Blur, Jpeg
from degradation.records import (
    Record,
    Source,
    choose_source,
    cut,
    file_hash,
    read_records,
    reopen,
    write_bytes,
    write_records,
)
from tests.degradation_measures import textured


@pytest.fixture
def photo(tmp_path):
    """A flat picture with detail in one corner only."""
    image = np.full((200, 320, 3), 0.5, np.float32)
    image[120:190, 230:300] = textured(0, 70, 70)
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.rint(image[..., ::-1] * 255).astype(np.uint8))
    return path


def test_the_box_is_where_the_detail_is(photo):
    source, whole = choose_source(photo, (64, 64), 0, multiple=4)
    top, left, height, width = source.box
    assert (height, width) == (64, 64) and whole.shape == (200, 320, 3)
    assert 110 <= top <= 135 and 225 <= left <= 245
    assert np.array_equal(cut(whole, source.box), whole[top : top + 64, left : left + 64])


def test_sizes(photo):
    assert choose_source(photo, (0, 0), 0, 8)[0].box == (0, 0, 200, 320)
    assert choose_source(photo, (999, 30), 0, 4)[0].box[2:] == (200, 28)
    source, whole = choose_source(photo, (0, 0), 160, 4)
    assert whole.shape == (100, 160, 3) and source.box == (0, 0, 100, 160)
    with pytest.raises(ValueError, match="8 times smaller"):
        choose_source(photo, (4, 4), 0, 8)


def test_records_survive_their_file(tmp_path, photo):
    source, whole = choose_source(photo, (64, 64), 160, 4)
    plans = tuple(sample_plan(np.random.default_rng(i), "bsr-plus", 4, (64, 64)) for i in range(3))
    records = [Record(source, plans), Record(source, by_hand=(Blur(2.0), Jpeg(30)))]
    write_records(tmp_path / "plans.json", records)
    assert read_records(tmp_path / "plans.json") == records
    assert np.array_equal(reopen(source, tmp_path), whole)


def test_a_relative_path_is_found_beside_the_plans(photo):
    source, whole = choose_source(photo, (64, 64), 0)
    moved = Source("photo.png", source.sha256, source.max_side, source.box)
    assert np.array_equal(reopen(moved, photo.parent), whole)


def test_changed_and_missing_pictures_are_refused(photo):
    source, _ = choose_source(photo, (64, 64), 0)
    cv2.imwrite(str(photo), np.zeros((200, 320, 3), np.uint8))
    with pytest.raises(ValueError, match="changed"):
        reopen(source, photo.parent)
    with pytest.raises(ValueError, match="outside"):
        reopen(Source(str(photo), file_hash(photo), 0, (180, 0, 64, 64)), photo.parent)
    photo.unlink()
    with pytest.raises(ValueError, match=r"photo\.png"):
        reopen(source, photo.parent)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "images": [{}]}',
        '{"version": 1, "images": []}',
        '{"version": 1, "images": [{}]}',
        '{"version": 1, "images": [7]}',
        '{"version": 1, "images": [{"source": {"path": "x"}}]}',
        '{"version": 1, "images": [{"source": {"path": "x", "sha256": "", "max_side": 0, "box": [1, 2]}}]}',
        '{"version": 1, "images": [{"source": '
        '{"path": "x", "sha256": "", "max_side": 0, "box": [0, 0, 8, 8]}, "plans": [{}]}]}',
    ],
)
def test_files_that_are_no_plans_are_refused_by_name(tmp_path, text):
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.json"):
        read_records(tmp_path / "bad.json")


def test_files_are_written_whole_or_not_at_all(tmp_path):
    write_bytes(tmp_path / "a.bin", b"one")
    write_bytes(tmp_path / "a.bin", b"two")
    assert (tmp_path / "a.bin").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    (tmp_path / "folder").mkdir()
    for bad in ("missing/a.bin", "folder", "a.bin/b.bin", "x" * 256):
        with pytest.raises(ValueError, match="cannot be written"):
            write_bytes(tmp_path / bad, b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "folder"]


def test_the_longest_name_there_is_can_be_written(tmp_path):
    write_bytes(tmp_path / ("x" * 255), b"long")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"long"


def test_the_file_is_plain_json(tmp_path, photo):
    write_records(tmp_path / "plans.json", [Record(choose_source(photo, (64, 64), 0)[0], by_hand=(Blur(1.0),))])
    data = json.loads((tmp_path / "plans.json").read_text(encoding="utf-8"))
    assert data["version"] == 1 and data["images"][0]["by_hand"][0]["op"] == "blur"
