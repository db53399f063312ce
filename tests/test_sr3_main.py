"""The command line, as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from sr3 import memory
from sr3.__main__ import main, parse_size
from sr3.decoding import read
from sr3.enlarge import enlarge, spread
from sr3.metrics import consistency
from sr3.pipeline import load


@pytest.fixture(scope="module")
def model(small_pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_pipeline.save_pretrained(folder)
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sr3", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_sizes_are_read():
    sizes = {"3GB": 3e9, "900 MiB": 900 * 2**20, "1.5g": 1.5e9, "12345": 12345, "2kb": 2000, "1 GiB": 2**30}
    assert {text: parse_size(text) for text in sizes} == sizes
    for wrong in ("", "three", "3 apples", "-1GB", "1TB"):
        with pytest.raises(ValueError, match="write it like 3GB"):
            parse_size(wrong)


def test_a_photograph_is_enlarged(model, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 21, 3), np.uint8)).save(tmp_path / "a.jpg")
    arguments = (tmp_path / "a.jpg", "--model", model, "--steps", 2, "--seed", 7, "--device", "cpu")
    done = run(*arguments, "-o", tmp_path / "big.png", "--scheduler", "euler", "--aug-level", 0.1)
    assert done.returncode == 0, done.stderr
    assert "21x13 to 84x52, steps 2, seed 7" in done.stdout
    with Image.open(tmp_path / "big.png") as image:
        assert image.size == (84, 52)
        how = f"steps 2, seed 7, factor 4, scheduler euler, aug_level 0.1, model {model}"
        assert image.text["sr3"] == how
    assert run(*arguments).returncode == 0
    picture, made = read(tmp_path / "a.jpg"), read(tmp_path / "a_x4.png").pixels
    pipeline = load(model, "cpu")
    assert np.array_equal(made, enlarge(pipeline, picture, 4, 2, 7, consistency=0).pixels)  # a JPEG's blocks go
    assert not np.array_equal(made, enlarge(pipeline, picture, 4, 2, 7, consistency=2).pixels)


def main_with(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sr3", *map(str, arguments)])
    return main()


def test_a_file_is_told_to_be_unwritable_before_the_work(tmp_path, monkeypatch, capsys):
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    monkeypatch.setattr(Path, "touch", refuse)
    assert main_with(monkeypatch, tmp_path / "a.png", "--model", tmp_path / "none") == 2
    assert capsys.readouterr().err == f"sr3: {tmp_path / 'a_x4.png'} cannot be written: Permission denied\n"


def test_an_interruption_is_one_line_and_code_130(tmp_path, monkeypatch, capsys):
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sr3.__main__.read", interrupt)
    assert main_with(monkeypatch, tmp_path / "a.png") == 130
    assert capsys.readouterr().err == "sr3: interrupted\n" and not [*tmp_path.iterdir()]


def test_what_pillow_warns_of_is_not_told_beside(model, tmp_path, monkeypatch):
    """It warns of pictures of more than 89 megapixels, for one."""
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    assert main_with(monkeypatch, tmp_path / "a.png", "--model", model, "--steps", 0) == 0


def test_the_estimate_may_be_the_mean_over_views(model, tmp_path, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8)).save(tmp_path / "a.png")
    pipeline, picture = load(model, "cpu"), read(tmp_path / "a.png")
    made = []
    for views in (1, 8):
        arguments = (tmp_path / "a.png", "--model", model, "--steps", 1, "--seed", 7, "--device", "cpu")
        monkeypatch.setattr(sys, "argv", ["sr3", *map(str, (*arguments, "--views", views))])
        assert main() == 0
        made.append(read(tmp_path / "a_x4.png").pixels)
        assert np.array_equal(made[-1], enlarge(pipeline, picture, 4, 1, 7, views=views).pixels)
    assert not np.array_equal(*made)
    with Image.open(tmp_path / "a_x4.png") as image:
        assert image.text["sr3"] == f"steps 1, seed 7, factor 4, model {model}, views 8"


def test_uncertainty_steps_and_memory_are_chosen_and_reported(model, tmp_path, monkeypatch, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    common = ("--model", model, "--seed", 7, "--device", "cpu", "--steps", "auto", "--max-memory", "100GB")
    maps = ("--samples", 3, "--uncertainty", tmp_path / "map.png")
    monkeypatch.setattr(sys, "argv", ["sr3", *map(str, (tmp_path / "a.png", *common, *maps))])
    assert main() == 0
    said = re.search(r"16x12 to 64x48, steps 4, seed 7, consistency ([0-9.]+), ", capsys.readouterr().out)
    made, grey = read(tmp_path / "a_x4.png"), read(tmp_path / "map.png")
    assert said is not None and float(said[1]) == pytest.approx(consistency(pixels, made.pixels), abs=0.01)
    pipeline = load(model, "cpu")
    drawn = [enlarge(pipeline, read(tmp_path / "a.png"), 4, 4, seed).pixels for seed in (7, 8, 9)]
    assert np.array_equal(made.pixels, drawn[0])
    assert np.array_equal(grey.pixels, spread(drawn)) and grey.pixels.max() > 0


def test_a_map_that_cannot_be_written_does_not_take_the_picture_with_it(model, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (12, 8), "teal").save(tmp_path / "a.png")
    replace = Path.replace

    def until_the_disk_is_full(path: Path, target: Path) -> Path:
        if target.name == "map.png":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", until_the_disk_is_full)
    maps = ("--samples", 2, "--uncertainty", tmp_path / "map.png")
    assert main_with(monkeypatch, tmp_path / "a.png", "--model", model, "--steps", 1, *maps) == 2
    assert "map.png cannot be written: No space left" in capsys.readouterr().err
    assert {each.name for each in tmp_path.iterdir()} == {"a.png", "a_x4.png"}
    assert read(tmp_path / "a_x4.png").pixels.shape == (32, 48, 3)


def test_a_second_pass_that_cannot_fit_is_refused_before_the_first(model, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (128, 128), "teal").save(tmp_path / "a.png")
    bound = memory.in_use(torch.device("cpu")) + 120_000_000  # of 480 bytes a pixel the second wants 126 million
    common = (tmp_path / "a.png", "--model", model, "--device", "cpu", "--steps", 0, "--max-memory", bound)
    calls: list[str] = []
    hook = register_module_forward_pre_hook(lambda module, inputs: calls.append(type(module).__name__))
    try:
        for factor, code in ((16, 2), (4, 0)):
            assert not calls
            monkeypatch.setattr(sys, "argv", ["sr3", *map(str, (*common, "--factor", factor))])
            assert main() == code
    finally:
        hook.remove()
    assert "is the least for a picture of 512x512 to 2048x2048" in capsys.readouterr().err and calls


def test_samples_that_cannot_fit_beside_their_map_are_refused_before_the_first(model, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (128, 128), "teal").save(tmp_path / "a.png")
    bound = memory.in_use(torch.device("cpu")) + 120_000_000
    common = (tmp_path / "a.png", "--model", model, "--device", "cpu", "--steps", 1, "--max-memory", bound)
    monkeypatch.setattr(sys, "argv", ["sr3", *map(str, (*common, "--samples", 2, "--uncertainty", tmp_path / "m.png"))])
    assert main() == 2
    assert "is the least for a picture of 128x128 to 512x512" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    monkeypatch.setattr(sys, "argv", ["sr3", *map(str, common)])
    assert main() == 0


SHORT = """
import re, resource, sys
import diffusers.utils.logging, tqdm
import sr3.__main__, sr3.enlarge, sr3.metrics, sr3.pipeline, sr3.schedulers
from pathlib import Path
pipeline = sr3.pipeline.load(sys.argv[3], "cpu")
used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 40_000_000, -1))
sys.exit(sr3.__main__.main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is limited as Linux does it")
def test_memory_that_runs_out_is_one_line(model, tmp_path):
    Image.new("RGB", (512, 512), "teal").save(tmp_path / "a.png")  # its noise alone takes 50 million bytes
    command = [sys.executable, "-c", SHORT, tmp_path / "a.png", "--model", model, "--device", "cpu", "--steps", "1"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("sr3: out of memory"), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "a_x4.png").exists()


def test_mistakes_are_one_line_and_exit_code_2(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (16, 16)).save(tmp_path / "ok.png")
    Image.new("RGBA", (16, 16)).save(tmp_path / "clear.png")
    Image.new("L", (4200, 8)).save(tmp_path / "long.png")
    Image.new("L", (40, 7)).save(tmp_path / "thin.png")
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000
    Image.new("L", (8, 8)).save(tmp_path / "told.png", exif=exif)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "ok.png")
    ok, uncertain = tmp_path / "ok.png", ("--samples", 2, "--uncertainty")
    before = ok.read_bytes()
    cases = [
        ((tmp_path / "text.png",), "is not a picture"),
        ((tmp_path / "none.png",), "No such file"),
        ((tmp_path,), "directory"),
        ((ok, "--factor", 3), "must be 4 or 16"),
        ((ok, "--views", 9), "--views is 9; it must be between 1 and 8"),
        ((ok, "-o", tmp_path / "a.gif"), "suffix that is not accepted"),
        ((ok, "-o", tmp_path / "none" / "a.png"), "is not a folder"),
        ((tmp_path / "clear.png", "-o", tmp_path / "a.jpg"), "no transparency"),
        ((ok, "--model", tmp_path), "no model_index.json"),
        ((ok, "--max-memory", "lots"), "write it like 3GB"),
        ((ok, "--max-memory", "1MB"), "beside what is in use is the least"),
        ((ok, "--samples", 3), "with --uncertainty it must be 2 to 100"),
        ((ok, "--uncertainty", tmp_path / "u.png"), "with --uncertainty it must be 2 to 100"),
        ((ok, "--samples", 3, "--uncertainty", tmp_path / "u.png", "--steps", 0), "--steps of 1 or more"),
        ((ok, *uncertain, tmp_path / "none" / "u.png"), "is not a folder"),
        ((ok, *uncertain, tmp_path / "ok_x4.png"), "must be different files"),
        ((ok, *uncertain, ok), "must be different files"),
        ((ok, "-o", tmp_path / "link.png"), "must be different files"),
        ((ok, "-o", tmp_path / "folder.png"), "is a folder"),
        ((ok, "-o", tmp_path / f"{'n' * 252}.png", "--steps", 0), "cannot be written: File name too long"),
        ((tmp_path / "thin.png",), "thin.png is 40x7; both sides must be at least 8 pixels"),
        ((ok, "--tile", 64), "--tile is 64; it must be at least 192"),
        ((ok, "--device", "tpu"), "device is 'tpu', which cannot be used"),
        ((ok, "--device", "mps"), "device is 'mps', which cannot be used"),
        ((tmp_path / "long.png", "-o", tmp_path / "long.webp"), "WEBP holds sides of at most 16383"),
        ((tmp_path / "long.png", *uncertain, tmp_path / "map.webp"), "WEBP holds sides of at most 16383"),
        ((tmp_path / "told.png", "-o", tmp_path / "told.jpg"), "could not be written as JPEG: EXIF data is too long"),
    ]
    for arguments, message in cases:
        model_given = () if "--model" in arguments else ("--model", model)
        monkeypatch.setattr(sys, "argv", ["sr3", *map(str, (*arguments, *model_given))])
        assert main() == 2, arguments
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and error.startswith("sr3: ") and message in error, error
    assert ok.read_bytes() == before and not [*tmp_path.glob(".*")]
    assert run(ok, "--nonsense").returncode == 2
