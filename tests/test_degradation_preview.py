"""``python -m degradation.preview``, as a person runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from degradation import PRESETS, apply_plan
from degradation.preview import main, thin_out
from degradation.records import cut, read_records, reopen
from tests.degradation_measures import textured

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a photo and two pictures in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for seed, name in enumerate(("photo.jpg", "pictures/a.png", "pictures/b.png")):
        pixels = np.rint(textured(seed, 150 + seed, 200) * 255).astype(np.uint8)
        cv2.imwrite(name, pixels[..., ::-1])
    return tmp_path


def read(path):
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def test_a_photo_alone_is_enough(folder, capsys):
    assert main(["photo.jpg"]) == 0
    assert capsys.readouterr().out == "sheet: photo-bsr.png\nplans: photo-bsr.plans.json\n"
    assert read("photo-bsr.png").shape[1] > 1000
    (record,) = read_records(Path("photo-bsr.plans.json"))
    assert len(record.plans) == 6 and {plan.preset for plan in record.plans} == {"bsr"}
    assert record.plans[0].size == (148, 200)


def test_it_runs_as_a_module_with_the_base_dependencies_only(folder):
    """SciPy, torch and matplotlib are made impossible to import."""
    code = (
        "import sys, runpy\n"
        "class Forbid:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('scipy', 'torch', 'matplotlib', 'diffusers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Forbid())\n"
        "sys.argv = ['preview', 'photo.jpg', '--html', '--stats', '20']\n"
        "runpy.run_module('degradation.preview', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n")[:4] == [
        "statistics: photo-bsr-stats.png",
        "sheet: photo-bsr.png",
        "plans: photo-bsr.plans.json",
        "page: photo-bsr.html",
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_replay_gives_the_same_sheet(folder, preset):
    assert main(["pictures", "photo.jpg", "--preset", preset, "--n", "2", "--out", "a.png", "--seed", "5"]) == 0
    assert main(["--replay", "a.plans.json", "--out", "b.png"]) == 0
    first, second = read("a.png"), read("b.png")
    assert first.shape == second.shape
    assert np.array_equal(first[100:-60], second[100:-60])  # but for the heading and the footer
    assert read_records(Path("a.plans.json")) == read_records(Path("b.plans.json"))


def test_the_plans_on_file_are_those_of_the_sheet(folder):
    main(["photo.jpg", "--n", "2", "--crop", "96", "--seed", "9"])
    (record,) = read_records(Path("photo-bsr.plans.json"))
    image = cut(reopen(record.source, folder), record.source.box)
    low_res = np.rint(apply_plan(image, record.plans[1])[..., ::-1] * 255).astype(np.uint8)
    assert low_res.shape == (24, 24, 3)
    squares = np.kron(low_res, np.ones((12, 12, 1), np.uint8))  # 96 pixels are shown threefold
    sheet = read("photo-bsr.png")
    found = cv2.matchTemplate(sheet, squares, cv2.TM_SQDIFF)
    assert found.min() < 1e-3 * squares.size


def test_replay_on_other_pictures(folder):
    main(["pictures", "--n", "1", "--crop", "96", "--out", "a.png"])
    assert main(["photo.jpg", "pictures/b.png", "--replay", "a.plans.json"]) == 0
    before, after = read_records(Path("a.plans.json")), read_records(Path("a-replay.plans.json"))
    assert [record.plans for record in before] == [record.plans for record in after]
    assert [record.source.path for record in after] == ["photo.jpg", "pictures/b.png"]
    assert before[1].source.box == after[1].source.box


def test_operations_by_hand(folder, capsys):
    assert (
        main(["photo.jpg", "--op", "blur:sigma=2", "--op", "jpeg:quality=30", "--op", "decimate:factor=2,sigma=1"]) == 0
    )
    assert "photo-by-hand.png" in capsys.readouterr().out
    (record,) = read_records(Path("photo-by-hand.plans.json"))
    assert [type(step).__name__ for step in record.by_hand] == ["Blur", "Jpeg", "Decimate"]
    assert main(["--replay", "photo-by-hand.plans.json", "--out", "again.png"]) == 0
    assert np.array_equal(read("photo-by-hand.png")[100:-60], read("again.png")[100:-60])


def test_a_name_that_is_no_utf_8_is_shown_as_far_as_it_can_be(folder, capsys):
    try:
        latin = Path("photo.jpg").rename(os.fsdecode(b"caf\xe9.jpg"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert main([str(latin), "--n", "1", "--html", "--stats", "5"]) == 0
    output = capsys.readouterr()
    assert output.err == "" and output.out.encode().count(b"caf?-bsr") == 4
    replay = os.fsdecode(b"caf\xe9-bsr.plans.json")
    assert main(["--replay", replay, "--html"]) == 0
    assert "repeated from caf?-bsr.plans.json" in Path(os.fsdecode(b"caf\xe9-bsr-replay.html")).read_text("utf-8")


def test_statistics_need_no_picture(folder, capsys):
    assert main(["--stats", "50", "--preset", "bsr-plus", "--scale", "2"]) == 0
    assert capsys.readouterr().out == "statistics: stats-bsr-plus.png\n"
    assert read("stats-bsr-plus.png").size


def test_a_preset_of_ones_own(folder, capsys):
    assert main(["--show-preset", "--preset", "bsr-light"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(PRESETS["bsr-light"].to_json())
    Path("mine.json").write_text(json.dumps({**data, "name": "mine", "noise_levels": [50, 50]}))
    assert main(["photo.jpg", "--preset", "mine.json", "--n", "1"]) == 0
    (record,) = read_records(Path("photo-mine.plans.json"))
    levels = [step.level for step in record.plans[0].steps if hasattr(step, "level")]
    assert levels == [50.0]


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".PNG"])
def test_other_kinds_of_sheets_and_places(folder, suffix):
    assert main(["photo.jpg", "--n", "1", "--out", f"sheet{suffix}", "--plans", "p.json", "--html"]) == 0
    assert read(f"sheet{suffix}").size
    assert read_records(Path("p.json")) and Path("sheet.html").read_text(encoding="utf-8").startswith("<!doctype")


def test_a_link_to_itself_is_written_over(folder):
    Path("loop.png").symlink_to("loop.png")
    assert main(["photo.jpg", "--n", "1", "--out", "loop.png"]) == 0
    assert read("loop.png").size


def test_many_pictures_are_thinned_out_and_it_says_so(capsys):
    many = [Path(f"{i}.png") for i in range(100)]
    assert thin_out(many[:48]) == many[:48]
    assert capsys.readouterr().err == ""
    shown = thin_out(many)
    assert len(set(shown)) == 48 and shown[0] == many[0]
    assert capsys.readouterr().err.startswith("100 pictures; the sheet shows 48")


BAD = [
    ([], "no picture"),
    (["missing.jpg"], "missing.jpg"),
    (["empty"], "no pictures"),
    (["text.png"], "text.png"),
    (["rgba.png"], "transparency"),
    (["photo.jpg", "--preset", "bsrgan"], "bsr-light"),
    (["photo.jpg", "--preset", "missing.json"], "missing.json"),
    (["photo.jpg", "--preset", "text.json"], "text.json"),
    (["photo.jpg", "--scale", "3"], "scales"),
    (["photo.jpg", "--scale", "0"], "scale"),
    (["photo.jpg", "--scale", "-4"], "scale"),
    (["photo.jpg", "--n", "0"], "--n"),
    (["photo.jpg", "--n", "many"], "many"),
    (["photo.jpg", "--seed", "-1"], "--seed"),
    (["photo.jpg", "--crop", "-1"], "--crop"),
    (["photo.jpg", "--crop", "2"], "4 times smaller"),
    (["photo.jpg", "--out", "sheet.gif"], "sheet.gif"),
    (["photo.jpg", "--out", "missing/sheet.png"], "missing/sheet.png"),
    (["photo.jpg", "--out", "text.png/sheet.png"], "text.png/sheet.png"),
    (["photo.jpg", "--out", f"{'long' * 70}.png"], "longlong"),
    ([f"{'long' * 70}.png"], "longlong"),
    (["photo.jpg", "--op", "melt"], "melt"),
    (["photo.jpg", "--op", "blur:sigma=2,size=6"], "odd"),
    (["photo.jpg", "--op", "jpeg:quality=200"], "200"),
    (["photo.jpg", "--op", "resize:height=70000,width=4", "--op", "jpeg:quality=50"], "larger than a JPEG can be"),
    (["photo.jpg", "--op", "gaussian_noise:level=nan"], "got nan"),
    (["photo.jpg", "--op", "blur:sigma=1", "--replay", "x.json"], "exclude"),
    (["photo.jpg", "--skip-bad", "--replay", "x.json"], "exclude"),
    (["--replay", "missing.json"], "missing.json"),
    (["--replay", "text.json"], "text.json"),
    (["--stats", "-3"], "--stats"),
    (["photo.jpg", "--bogus"], "--bogus"),
]


@pytest.mark.parametrize(
    "arguments, message", BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_errors_are_one_line_and_code_2(folder, capsys, arguments, message):
    Path("empty").mkdir()
    Path("text.png").write_text("no picture")
    Path("text.json").write_text("no JSON")
    cv2.imwrite("rgba.png", np.zeros((16, 16, 4), np.uint8))
    before = sorted(folder.rglob("*"))
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and message in output.err
    assert sorted(folder.rglob("*")) == before  # nothing is left behind


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["photo.jpg", "--out", "photo.jpg"], "photo.jpg"),
        (["photo.jpg", "--plans", "pictures/../photo.jpg"], "pictures/../photo.jpg"),
        (["pictures", "--out", "pictures/b.png"], "pictures/b.png"),
        (["photo.jpg", "--out", "b.png", "--plans", "b.png"], "b.png"),
        (["photo.jpg", "--out", "b.png", "--plans", "b.html", "--html"], "b.html"),
        (["photo.jpg", "--stats", "5", "--out", "b.png", "--plans", "b-stats.png"], "b-stats.png"),
        (["photo.jpg", "--preset", "p.json", "--plans", "p.json"], "p.json"),
        (["--replay", "a.plans.json", "--out", "a.png"], "a.plans.json"),
        (["--replay", "a.plans.json", "--out", "photo.jpg"], "photo.jpg"),
    ],
)
def test_nothing_that_is_read_is_written_over_and_nothing_twice(folder, capsys, arguments, named):
    Path("p.json").write_text(PRESETS["bsr"].to_json())
    assert main(["photo.jpg", "--n", "1", "--out", "a.png"]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main([*arguments, "--n", "1"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert named in output.err and "read too, or written twice" in output.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("more", [[], ["--op", "blur:sigma=2"]])
def test_what_was_made_of_another_picture_is_written_over_only_by_name(folder, capsys, more):
    Path("photo.jpg").rename("pictures/a.jpg")
    assert main(["pictures/a.jpg", "--n", "1", *more]) == 0
    name = capsys.readouterr().out.split()[1]
    assert main(["pictures/../pictures/a.jpg", "--n", "2", *more]) == 0  # of the same
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    capsys.readouterr()
    assert main(["pictures/a.png", "--n", "1", *more]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err == (
        f"error: {name} was made of pictures/../pictures/a.jpg; give --out another name for pictures/a.png\n"
    )
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert main(["pictures/a.png", "--n", "1", "--out", name, *more]) == 0
    (record,) = read_records(Path(name).with_suffix(".plans.json"))
    assert record.source.path == "pictures/a.png"


@pytest.mark.parametrize("more", [["--seed", "4"], ["--op", "blur:sigma=2"]])
def test_unreadable_pictures_are_skipped_by_name_when_asked_to(folder, capsys, more):
    assert main(["pictures", "--n", "1", "--out", "good.png", *more]) == 0
    Path("pictures/a-text.png").write_text("no picture")
    cv2.imwrite("pictures/0.png", np.zeros((16, 16, 4), np.uint8))
    capsys.readouterr()
    assert main(["pictures", "--n", "1", *more]) == 2
    error = "pictures/0.png: it has transparency, which cannot be degraded; flatten the picture first"
    assert capsys.readouterr().err == f"error: {error}; --skip-bad goes on without it\n"
    assert main(["pictures", "--n", "1", "--out", "a.png", "--skip-bad", *more]) == 0
    named = [error, "pictures/a-text.png: not a picture that can be read"]
    assert capsys.readouterr().err.splitlines() == named
    assert Path("a.plans.json").read_bytes() == Path("good.plans.json").read_bytes()
    assert np.array_equal(read("a.png"), read("good.png"))
    assert main(["pictures/0.png", "pictures/a-text.png", "--skip-bad", *more]) == 2
    assert capsys.readouterr().err.splitlines() == [*named, "error: none of the 2 pictures could be read"]


def test_statistics_for_a_scale_that_does_not_divide_256(folder, capsys):
    data = json.loads(PRESETS["bsr-light"].to_json())
    Path("three.json").write_text(json.dumps({**data, "name": "three", "scales": [3]}))
    assert main(["--stats", "5", "--preset", "three.json", "--scale", "3"]) == 0
    assert capsys.readouterr().out == "statistics: stats-three.png\n"


@pytest.mark.parametrize(("name", "height"), [("sheet.webp", 17_000), ("sheet.jpg", 66_000)])
def test_a_sheet_too_long_for_its_kind_of_file_is_told(folder, monkeypatch, capsys, name, height):
    monkeypatch.setattr("degradation.preview.draw_sheet", lambda *_: np.zeros((height, 8, 3), np.uint8))
    assert main(["photo.jpg", "--n", "1", "--out", name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"8x{height} pixels, more than such a file holds; write a .png" in error
    assert not Path(name).exists()


def test_help_tells_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for option in ("preset", "n", "seed", "scale", "out", "plans", "replay", "op", "stats", "html", "skip-bad"):
        assert f"--{option}" in text


def test_a_changed_picture_is_not_replayed(folder, capsys):
    main(["photo.jpg", "--n", "1", "--out", "a.png"])
    cv2.imwrite("photo.jpg", np.zeros((150, 200, 3), np.uint8))
    assert main(["--replay", "a.plans.json"]) == 2
    assert "changed" in capsys.readouterr().err
