"""The corpus: what is fetched, left out, held out and cut, and its manifest."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr3.corpus import CorpusConfig, collect, cut, fetch, is_held_out, within
from sr3.corpus import main as corpus_main
from sr3.data import load_pack


def test_two_programs_may_fetch_one_package_at_a_time(tmp_path, monkeypatch):
    bin, cache = tmp_path / "bin", tmp_path / "cache"
    bin.mkdir()
    commands = {
        "apt-get": "touch some_1%3a2.0-1_all.deb",
        "dpkg": f'mkdir "$3"; echo mine > "$3/file"; mkdir -p {cache}/some; echo 1:2.0-1 > {cache}/some/version',
    }
    for name, line in commands.items():
        (bin / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{bin}{os.pathsep}{os.environ['PATH']}")
    folder, version = fetch("some", cache)
    assert folder == cache / "some" and version.strip() == "1:2.0-1"  # what the other has put there meanwhile
    assert [path.name for path in cache.iterdir()] == ["some"]


def test_a_corpus_is_packed_with_its_manifest_and_keeps_some_for_evaluation(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    Image.fromarray(pixels[:63]).save(folder / "icon.png")  # too small to be of use
    config = CorpusConfig(tmp_path / "p", (folder,), (), crops=40, size=64, held_out=tmp_path / "kept")
    assert corpus_main(config) == 0
    crops, manifest = load_pack(tmp_path / "p")
    kept = [line for line in manifest if line["held_out"]]
    assert len(list((tmp_path / "kept").rglob("*.png"))) == len(kept) > 0
    assert len(crops) == sum(line["crops"] for line in manifest) == 40 - len(kept)
    assert all(is_held_out(line["sha256"], "drawing") == line["held_out"] for line in manifest)
    again = collect(config)[0]
    assert len(again) == len(crops)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_what_is_left_out_of_ones_own_pictures_is_told(tmp_path, capsys):
    first, second = noise(0, 256, 256, 3), noise(1, 256, 256, 3)  # of the size of photographs
    near = np.clip(first.astype(int) + 1, 0, 255).astype(np.uint8)
    small, flat = noise(2, 63, 300, 3), np.full((70, 70, 3), 9, np.uint8)
    for name, pixels in {"a": first, "b": near, "c": small, "d": flat, "e": flat, "screenshot 1": second}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    sources = collect(CorpusConfig(tmp_path / "p", (tmp_path,), (), size=64))[1]
    assert [source.file for source in sources] == ["a.png", "screenshot 1.png"]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "4 pictures left out: 1 near-copies, 1 under 64 pixels, 2 without texture"
    )


def test_screenshots_of_packages_are_left_out(tmp_path, capsys):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "version").write_text("1")
    for name in ("screenshot", "a"):
        Image.fromarray(noise(len(name), 70, 70, 3)).save(tmp_path / "some" / f"{name}.png")
    (source,) = collect(CorpusConfig(tmp_path / "p", (), ("some",), tmp_path, size=64))[1]
    assert source.file == "a.png" and "1 screenshots of packages" in capsys.readouterr().err


def test_there_are_at_most_as_many_crops_as_asked_for_whatever_the_names(tmp_path, capsys):
    for names in ("abcdefgh", "hgfedcba"):
        folder = tmp_path / names
        folder.mkdir()
        for i, name in enumerate(names):
            Image.fromarray(noise(i, 70, 64, 3)).save(folder / f"{name}.png")
    folders = [tmp_path / names for names in ("abcdefgh", "hgfedcba")]
    both = [collect(CorpusConfig(tmp_path / "p", (folder,), (), crops=2, size=64)) for folder in folders]
    assert "6 pictures left out: 6 beyond 2 crops" in capsys.readouterr().err
    (first, sources, _), (second, *_) = both
    assert len(first) == len(second) == sum(source.crops for source in sources) == 2 and len(sources) == 8
    assert {crop.tobytes() for crop in first} == {crop.tobytes() for crop in second}


@pytest.mark.parametrize(("height", "width", "places"), [(66, 66, 9), (64, 70, 7), (64, 64, 1), (50, 40, 1)])
def test_no_place_of_a_small_picture_is_cut_twice(height, width, places):
    pixels = noise(0, height, width, 3)
    for count in (1, 4, places, 3000):
        crops = cut(pixels, 64, count, np.random.default_rng(0))
        assert len({crop.tobytes() for crop in crops}) == len(crops) == min(count, places)


def test_the_crops_of_a_large_picture_are_those_of_its_seed():
    pixels = noise(0, 900, 1200, 3)
    rng = np.random.default_rng(5)
    tops, lefts = (rng.integers(0, n - 64 + 1, 40) for n in (900, 1200))
    drawn = [pixels[y : y + 64, x : x + 64].tobytes() for y, x in zip(tops, lefts, strict=True)]
    crops = [crop.tobytes() for crop in cut(pixels, 64, 20, np.random.default_rng(5))]
    assert crops[:10] == drawn[:10] and len(crops) == 20 and set(crops) <= set(drawn)


def test_each_kind_has_its_share_of_few_crops():
    cuts = [[np.full(1, i)] for i in range(12)]
    kinds, digests = ["drawing"] * 10 + ["photograph"] * 2, [f"{i:02}" for i in range(12)]
    assert [len(taken) for taken in within(cuts, kinds, digests, 4)] == [1, 1] + [0] * 8 + [1, 1]
    assert sum(map(len, within(cuts, kinds, digests, 1))) == 1
    assert within([], [], [], 5) == []


def test_of_a_game_the_textures_are_taken_and_no_icons_or_maps_for_shading(tmp_path):
    folder = tmp_path / "supertuxkart-data"
    folder.mkdir()
    (folder / "version").write_text("1")
    for name, side in (("bark", 256), ("bark_Normal", 256), ("bark_nm", 256), ("icon", 64)):
        pixels = np.random.default_rng(side + len(name)).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    config = CorpusConfig(tmp_path / "p", (), ("supertuxkart-data",), tmp_path, crops=4, size=64)
    crops, (source,), _ = collect(config)
    assert len(crops) == source.crops == 4
    assert (source.file, source.package, source.version) == ("bark.png", "supertuxkart-data", "1")


@pytest.mark.parametrize("foreign", [["a", "b"], {"a": "text"}, {"a": {"b": 1}}, {"a": ["b", 1, 2]}])
def test_a_manifest_of_something_else_is_no_matter(tmp_path, foreign):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "a__b.png")
    (tmp_path / "manifest.json").write_text(json.dumps(foreign))
    (source,) = collect(CorpusConfig(tmp_path / "p", (tmp_path,), (), crops=2, size=64))[1]
    assert (source.package, source.version, source.licence) == (tmp_path.name, "", "see the folder")
    (tmp_path / "manifest.json").write_text(json.dumps({"a": ["noto", "1.2", "Apache-2.0"]}))
    (source,) = collect(CorpusConfig(tmp_path / "p", (tmp_path,), (), crops=2, size=64))[1]
    assert (source.package, source.version, source.licence) == ("noto", "1.2", "Apache-2.0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folders": (Path("none"),)}, "none is not a folder"),
        ({"size": 0}, "size 0; both must be 1 or more"),
        ({"crops": -5}, "crops is -5"),
        ({"pack": Path("file/pack")}, "File exists"),
    ],
)
def test_mistakes_of_the_corpus_are_one_line_and_exit_code_2(changes, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("pictures").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    config = CorpusConfig(Path("pack"), (Path("pictures"),), (), size=32)
    assert corpus_main(replace(config, **changes)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("sr3.corpus: ") and message in error


def test_what_was_held_out_below_a_folder_is_not_trained_on_the_next_time(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(40):
        Image.fromarray(noise(i, 70, 64, 3)).save(folder / f"{'long' * 50}{i}.png")
    config = CorpusConfig(tmp_path / "p", (folder,), (), crops=24, size=64, held_out=folder / "kept")
    first = collect(config)[1]
    kept = list((folder / "kept").rglob("*.png"))
    assert len(kept) == sum(source.held_out for source in first) > 0
    assert collect(config)[1] == first
