"""Drawings and captions: what is rendered, placed, said and kept for evaluation."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ldm.corpus
from ldm import stamps
from ldm.captions import CHINESE_COLOURS, GROUNDS, HUES, STYLES, Drawing, article, caption, chinese, english
from ldm.corpus import CorpusConfig, fetch, is_held_out, main, read_everyday, render, single_hue, svg_of
from ldm.data import Placement, load_pack, place, sample_placement, save_pack, turn_hue

APPLE = Drawing("red apple", "noto", ("apple",), ("fruit",), "红苹果", ("水果",), everyday=True, hue="red")
RNG = np.random.default_rng
CIRCLE = '<circle cx="16" cy="16" r="12" fill="#e02020"/>'


def circle(size: int = 64) -> np.ndarray:
    return render(svg_of({"icons": {"c": {"body": CIRCLE}}, "width": 32, "height": 32}, "c"), size)


def test_a_vector_drawing_is_rendered_exactly():
    picture = circle()
    assert picture.shape == (64, 64, 4) and picture.dtype == np.uint8
    assert picture[32, 32].tolist() == [0xE0, 0x20, 0x20, 255]
    assert picture[0, 0, 3] == 0
    assert picture[..., 3].mean() / 255 == pytest.approx(np.pi * 12**2 / 32**2, rel=0.01)


def test_one_hue_is_told_from_several():
    red = circle()
    assert single_hue(red) == "red"
    assert single_hue(turn_hue(red, "red", "blue")) == "blue"
    half = red.copy()
    half[:, 32:] = turn_hue(red, "red", "green")[:, 32:]
    assert single_hue(half) is None
    grey = red.copy()
    grey[..., :3] = 128
    assert single_hue(grey) is None


def test_placing_covers_the_ground_and_flips():
    picture = circle()
    picture[:, :32, 3] = 0
    placed = place(picture, APPLE, Placement("green", None, False, 1.0, (0, 0)))
    assert placed[32, 10].tolist() == list(GROUNDS["green"]) and placed[32, 40].tolist() == [0xE0, 0x20, 0x20]
    flipped = place(picture, APPLE, Placement("green", None, True, 1.0, (0, 0)))
    assert np.array_equal(flipped, placed[:, ::-1])
    small = place(circle(), APPLE, Placement("white", "blue", False, 0.5, (1.0, 1.0)))
    assert (small[:31] == 255).all() and small[48, 48, 2] > small[48, 48, 0]


def test_captions_name_the_thing_and_only_what_is_there():
    rng = np.random.default_rng(0)
    texts = [caption(rng, APPLE, "blue", "green") for _ in range(300)]
    assert all("apple" in t or "苹果" in t for t in texts)
    assert all("blue" in t or "蓝色" in t for t in texts)
    assert not any("red" in t.split() for t in texts)
    assert any("green background" in t for t in texts) and any("绿色背景" in t for t in texts)
    assert any("noto style" in t for t in texts)
    share = np.mean(["果" in t for t in texts])
    assert 0.15 < share < 0.35


@pytest.mark.parametrize(
    ("label", "hue", "label_zh", "words_zh", "english_now", "chinese_now"),
    [
        ("green apple", "yellow", "青苹果", ("绿苹果",), "blue apple", "蓝色的苹果"),
        ("red heart", "pink", "红心", ("爱心",), "blue heart", "蓝色的爱心"),
        ("light blue heart", "blue", "浅蓝色的心", (), "blue heart", "蓝色的心"),
        ("pink heart", "pink", "粉红色的心", (), "blue heart", "蓝色的心"),
        ("brown mushroom", "orange", "褐色蘑菇", (), "blue mushroom", "蓝色的蘑菇"),
        ("white flower", "red", "白花", (), "blue flower", "蓝色的花"),
        ("orange", "orange", "橙子", (), "blue orange", "蓝色的橙子"),
        ("red envelope", "red", "红包", (), "blue envelope", "蓝色的红包"),
        ("mahjong red dragon", "orange", "红中", (), "blue mahjong dragon", "蓝色的红中"),
        ("cucumber", "green", "黄瓜", (), "blue cucumber", "蓝色的黄瓜"),
    ],
)
def test_a_stated_colour_takes_the_place_of_the_name_s_whatever_hue_was_measured(
    label, hue, label_zh, words_zh, english_now, chinese_now
):
    drawing = Drawing(label, "noto", label_zh=label_zh, words_zh=words_zh, hue=hue)
    texts = [make(RNG(i), drawing, "blue", "white") for make in (english, chinese) for i in range(40)]
    ends = [text.split(" in ")[0].split(",")[0].split(" on ")[0].split("，")[0] for text in texts]
    assert {end.removeprefix("a ") for end in ends[:40]} == {english_now}
    assert {end.removeprefix("一个").split("风格的")[-1].removeprefix("一个") for end in ends[40:]} == {chinese_now}


def test_articles():
    assert [article(n) for n in ("apple", "pear", "bus", "glasses", "orange background")] == [
        "an apple", "a pear", "a bus", "glasses", "an orange background",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "right",
    [
        *("a unicorn", "a UFO", "a uniform", "a ukulele", "a European castle", "a one-piece swimsuit", "a house"),
        *("an hourglass done", "an honest face", "an umbrella", "an unidentified flying object", "an onion"),
    ],
)
def test_articles_go_by_the_sound(right):
    assert article(right.split(" ", 1)[1]) == right


def test_words_exist_in_both_languages():
    assert set(GROUNDS) | set(HUES) <= set(CHINESE_COLOURS)


def test_placements_are_drawn_as_stated():
    rng = np.random.default_rng(0)
    drawn = [sample_placement(rng, APPLE) for _ in range(2000)]
    assert 0.65 < np.mean([p.ground == "white" for p in drawn]) < 0.75
    assert 0.55 < np.mean([p.colour is None for p in drawn]) < 0.65
    assert {p.ground for p in drawn} == set(GROUNDS)
    assert all(p.colour is None for p in (sample_placement(rng, replace(APPLE, hue=None)) for _ in range(50)))


def test_chinese_captions_use_the_words_that_people_use():
    rng = np.random.default_rng(0)
    heart = Drawing("red heart", "noto", label_zh="红心", words_zh=("爱心",), hue="red")
    plain = {chinese(rng, heart, None, "white")[-2:] for _ in range(100)}
    assert {"红心", "爱心"} <= plain
    assert all("蓝色的爱心" in chinese(rng, heart, "blue", "white") for _ in range(50))  # not the blue red heart


def test_one_pair_in_twenty_is_held_out_for_good():
    held = [is_held_out(label, style) for label in read_everyday() for style in STYLES]
    assert 0.035 < np.mean(held) < 0.065
    assert is_held_out("red apple", "noto") == is_held_out("red apple", "noto")


def test_everyday_names_are_many_and_distinct():
    names = read_everyday()
    assert len(names) >= 150 and names["red apple"] == (("apple",), ("苹果",))
    assert names["automobile"] == (("car",), ("车", "小汽车")) and names["lemon"] == ((), ())


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """What npm would have fetched: two styles and the names, as archives in the cache."""
    cache = tmp_path / "cache"
    cache.mkdir()

    def archive(package: str, files: dict[str, object]) -> None:
        version = ldm.corpus.VERSIONS[package]
        folder = tmp_path / "made" / package
        for name, content in files.items():
            path = folder / "package" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        name = f"{package.replace('@', '').replace('/', '-')}-{version}.tgz"
        with tarfile.open(cache / name, "w:gz") as tar:
            tar.add(folder / "package", "package")

    entry = {"hexcode": "1", "group": 4, "subgroup": 42, "tags": ["fruit"]}
    names = [{**entry, "label": "red apple"}, {**entry, "hexcode": "2", "label": "green thing", "tags": []}]
    chinese = [{"hexcode": "1", "label": "红苹果", "tags": []}]
    files = {"package.json": {"license": "MIT"}, "en/data.json": names, "zh/data.json": chinese}
    archive("emojibase-data", files)
    for style in ("noto", "openmoji"):
        icons = {"icons": {"red-apple": {"body": CIRCLE}, "empty": {"body": ""}}, "width": 32, "height": 32}
        if style == "openmoji":
            icons["aliases"] = {"green-thing": {"parent": "red-apple"}}
        info = {"license": {"spdx": "Apache-2.0"}}
        archive(f"@iconify-json/{style}", {"package.json": {"license": "x"}, "info.json": info, "icons.json": icons})
    keep = {p: v for p, v in ldm.corpus.VERSIONS.items() if p.split("/")[-1] in ("noto", "openmoji", "emojibase-data")}
    monkeypatch.setattr(ldm.corpus, "VERSIONS", keep)
    monkeypatch.setattr(ldm.corpus, "STYLES", {k: STYLES[k] for k in ("noto", "openmoji", stamps.PACKAGE)})
    monkeypatch.setattr(ldm.corpus, "read_everyday", lambda: {"red apple": (("apple",), ("苹果",))})
    return cache


def test_the_corpus_is_packed_with_names_licences_and_hashes(packages, tmp_path, capsys):
    config = CorpusConfig(tmp_path / "p.safetensors", tmp_path / "drawings", packages, stamps=None, size=32)
    assert main(config) == 0
    pictures, records, manifest = load_pack(tmp_path / "p.safetensors")
    assert [(r.label, r.style) for r in records] == [
        ("red apple", "noto"), ("red apple", "openmoji"), ("green thing", "openmoji"),
    ]  # fmt: skip
    assert pictures.shape == (3, 32, 32, 4)
    assert records[0].label_zh == "红苹果" and records[0].everyday and not records[2].everyday
    assert records[0].words_zh == ("苹果",) and records[2].words_zh == ()
    assert {m["licence"] for m in manifest} == {"MIT", "Apache-2.0"} and all(len(m["sha256"]) == 64 for m in manifest)
    assert len(list((tmp_path / "drawings").glob("*__*.png"))) == 3
    assert main(CorpusConfig(cache=packages)) == 2


def test_stamps_are_drawings_with_the_names_that_their_sentences_say(packages, tmp_path):
    folder = tmp_path / "debian" / stamps.PACKAGE
    sentences = {
        "food/apple.svg": "A red apple.\nzh_CN.utf8=一只红苹果。\nzh_TW.utf8=一顆蘋果",
        "food/second.svg": "A red apple.",
        "food/bread.svg": "Eat your bread!",
        "people/nurse.svg": "A nurse.",
        "town/inn.svg": "An inn. Come in!\nzh_CN.utf8=旅馆\n",
    }
    for name, sentence in sentences.items():
        path = folder / "usr/share/tuxpaint/stamps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        page = '<svg xmlns="http://www.w3.org/2000/svg" width="210mm" height="297mm">'  # most of it is empty
        path.write_text(f'{page}<rect x="40" y="500" width="100" height="50" fill="#20c020"/></svg>')
        path.with_suffix(".txt").write_text(sentence)
    (folder / "version").write_text("1.0")
    pack, rendered = tmp_path / "p.safetensors", tmp_path / "drawings"
    assert main(CorpusConfig(pack, rendered, packages, stamps=tmp_path / "debian", size=32)) == 0
    pictures, records, manifest = load_pack(pack)
    made = [(r.label, r.label_zh, r.everyday, r.hue) for r in records if r.style == stamps.PACKAGE]
    apple = ("red apple", "红苹果", True, "green")
    assert made == [apple, apple, ("inn", "旅馆", False, "green")] and not records[-1].held_out
    assert pictures[-1][16, 2].tolist() == [0x20, 0xC0, 0x20, 255] and pictures[-1][2, 16, 3] == 0
    assert manifest[-1]["package"] == stamps.PACKAGE and manifest[-1]["licence"] == "GPL-2.0-or-later"
    names = {p.name for p in rendered.glob(f"{stamps.PACKAGE}__*")}
    assert names == {f"{stamps.PACKAGE}__{end}.png" for end in ("redapple", "redapple-2", "inn")}
    assert "stamp style" in {
        english(np.random.default_rng(i), records[-1], None, "white").split(", ")[-1] for i in range(40)
    }


def test_where_stamps_cannot_be_had_they_can_be_left_out(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(CorpusConfig(tmp_path / "p", cache=packages, stamps=tmp_path / "none")) == 2
    assert "apt-get is needed to fetch the stamps; --stamps None" in capsys.readouterr().err


def test_a_package_that_cannot_be_had_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(CorpusConfig(tmp_path / "p", cache=tmp_path)) == 2
    assert capsys.readouterr().err == "ldm.corpus: npm is needed to fetch the drawings: install Node.js\n"
    with pytest.raises(RuntimeError, match="npm is needed"):
        fetch("@iconify-json/noto", "0.0.0", tmp_path)


def told(capsys) -> str:
    """The one line of the command that failed."""
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("ldm.corpus: ")


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5])
def test_a_package_cut_short_in_the_cache_is_named(packages, kept, tmp_path, capsys):
    archive = next(packages.glob("*openmoji*.tgz"))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(kept * len(whole))])
    assert main(CorpusConfig(tmp_path / "p", cache=packages, stamps=None, size=8)) == 2
    line = told(capsys)
    assert line.startswith(f"{archive} cannot be unpacked (") and line.endswith("delete it to have it fetched again")
    archive.write_bytes(whole)
    assert main(CorpusConfig(tmp_path / "p", cache=packages, stamps=None, size=8)) == 0


def test_where_nothing_can_be_written_is_told_before_the_work(packages, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ldm.corpus, "drawings", None)
    monkeypatch.setattr(ldm.corpus, "fetch", None)
    for size, wanted in (
        (0, "it must be 1 or more"),
        (-8, "it must be 1 or more"),
        (60, "a pack's must be a multiple of 8"),
    ):
        assert main(CorpusConfig(tmp_path / "p", cache=packages, size=size)) == 2
        assert told(capsys) == f"size is {size}; {wanted}"
    (tmp_path / "file").write_text("")
    for pack, message in ((tmp_path, "is a folder"), (tmp_path / "file" / "p", str(tmp_path / "file"))):
        assert main(CorpusConfig(pack, cache=packages)) == 2
        assert message in told(capsys)


def test_a_drawing_that_cannot_be_written_is_not_counted(packages, tmp_path, capsys):
    name = tmp_path / "drawings" / "noto__redapple.png"
    name.parent.mkdir()
    name.symlink_to("/dev/full")
    assert main(CorpusConfig(render=tmp_path / "drawings", cache=packages, stamps=None, size=8)) == 2
    assert told(capsys) == f"{name} cannot be written: No space left on device"


def test_packs_survive_and_other_files_are_refused(tmp_path):
    save_pack(tmp_path / "p", circle()[None], [APPLE], [{"package": "x"}])
    pictures, records, manifest = load_pack(tmp_path / "p")
    assert np.array_equal(pictures[0], circle()) and records == [APPLE] and manifest == [{"package": "x"}]
    (tmp_path / "q").write_bytes(b"text")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_pack(tmp_path / "q")
