"""`python -m service.batch`: what it prints and returns, interrupted and begun again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from service.batch import main
from service.settings import Settings
from tests.jobs_fakes import BROKEN, FakeUpscaler, digests, fill, load, picture_bytes

ROOT = Path(__file__).parent.parent
CODE = """
import sys
from service.batch import main
from tests.jobs_fakes import load
sys.exit(main(None, [sys.executable, "-m", "tests.jobs_fakes"], load))
"""


def environment(folder: Path, seconds: float = 0.0) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"SERVICE_DATA_DIR": str(folder / "data"), "JOBS_LOG": str(folder / "log"), "JOBS_SECONDS": str(seconds)}
    return {**os.environ, **own, "PYTHONPATH": paths}


def batch(folder: Path, *flags: str, seconds: float = 0.0) -> "subprocess.Popen[str]":
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's "&" has it ignored
    command = [sys.executable, "-c", heed + CODE, "in", "out", *flags]
    return subprocess.Popen(command, cwd=folder, env=environment(folder, seconds), stdout=-1, stderr=-1, text=True)


def states(folder: Path) -> list[str]:
    lines = (folder / "out" / "manifest.jsonl").read_text().splitlines()
    return [json.loads(line)["state"] for line in lines]


def enlarged(folder: Path) -> int:
    return len((folder / "log").read_text().splitlines())


def test_failures_are_told_and_the_same_command_again_keeps_what_is_done(tmp_path: Path) -> None:
    fill(tmp_path / "in", 6)
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    (tmp_path / "in" / "broken.png").write_bytes(picture_bytes(1, first=BROKEN))
    process = batch(tmp_path, "--workers", "2", "--steps", "0")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert out.startswith("6 done, 2 failed of 8 in 0:")
    assert out.count("\n") == 1
    told = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert sorted(told) == [
        "failed: broken.png: RuntimeError: the model failed",
        "failed: empty.png: the picture is empty (0 bytes)",
    ]
    assert states(tmp_path) == ["done"] * 6 + ["failed"] * 2
    before = enlarged(tmp_path)
    (tmp_path / "in" / "empty.png").unlink()
    (tmp_path / "in" / "broken.png").unlink()
    process = batch(tmp_path, "--steps", "0")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith("0 done, 0 failed, 6 there already of 6 in 0:")
    assert enlarged(tmp_path) == before


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_goes_on_where_it_stopped(tmp_path: Path, end: signal.Signals) -> None:
    fill(tmp_path / "in", 24)
    process = batch(tmp_path, "--steps", "0", seconds=0.2)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists() or enlarged(tmp_path) < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(end)
    out, err = process.communicate(timeout=60)
    if end is signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on" in err
        assert " left of 24 in " in out
        assert len(states(tmp_path)) == enlarged(tmp_path)
    process = batch(tmp_path, "--steps", "0")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert states(tmp_path).count("done") + states(tmp_path).count("kept") == 24
    assert len(digests(tmp_path / "out")) == 24
    assert enlarged(tmp_path) <= 24 + (0 if end is signal.SIGINT else 2)
    assert not list((tmp_path / "data" / "batch").glob("*/jobs.sqlite*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "out"], "/none: No such file"),
        (["empty", "out"], "holds no pictures that match; --recursive looks into folders below"),
        (["in", "in/out"], "must not lie one inside the other"),
        (["in", "http://host/out"], "neither a folder nor"),
        (["in", "out", "--steps", "-1"], "--steps is -1; it must be between 0 and 999"),
        (["in", "out", "--workers", "0"], "--workers is 0"),
        (["in", "/proc/out"], "/proc/out"),
        (["~nosuch/photos", "out"], "~nosuch/photos"),
        (["in", "o\0ut"], "NUL"),
        (["in", "out", "--device", "gpu", "--dry-run"], "SERVICE_DEVICE or --device"),
    ],
)
def test_bad_start_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill(tmp_path / "in", 1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVICE_DATA_DIR", str(tmp_path / "data"))
    assert main(arguments, [], load) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_dry_run_counts_and_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", 4, 200)
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert main(["in", "out", "--dry-run"], [], load) == 0
    out = capsys.readouterr().out
    assert out.startswith("5 pictures, 1 of them unreadable; 0.2 megapixels, 2.7 when enlarged; about 0:00:0")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_what_is_too_large_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "in", 4, 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVICE_MAX_PIXELS", str(16 * 200 * 200))
    assert main(["in", "out", "--dry-run"], [], load) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 pictures, 0 of them unreadable, 3 larger than the 0.04 megapixels that SERVICE_MAX_PIXELS")
    assert "; 0.0 megapixels, 0.6 when enlarged; " in out


def test_a_dry_run_takes_photographs_and_what_even_pillow_refuses_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name, size in (("phone", (4000, 3000)), ("camera", (8688, 5792)), ("scan", (20_000, 10_000))):
        Image.new("1", size).save(tmp_path / "in" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    assert main(["in", "out", "--dry-run"], [], load) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 pictures, 0 of them unreadable, 1 larger than the 67.1 megapixels that ")
    assert "; 62.3 megapixels, 997.1 when enlarged; " in out


def test_a_dry_run_is_tried_on_the_first_of_the_devices_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "in", 1)
    monkeypatch.chdir(tmp_path)
    devices = []

    def load_on(settings: Settings) -> FakeUpscaler:
        devices.append(settings.device)
        return load(settings)

    assert main(["in", "out", "--dry-run", "--device", "cuda:1, cuda:0", "--workers", "2"], [], load_on) == 0
    assert devices == ["cuda:1"]


def test_it_starts_where_the_server_would_listen_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "in", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERVICE_HOST", "0.0.0.0")  # as in the image
    assert main(["in", "out", "--dry-run"], [], load) == 0


def test_a_larger_picture_than_the_server_takes_is_enlarged_unless_a_limit_is_given(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("L", (2100, 2000), 99).save(tmp_path / "in" / "photo.jpg")
    assert Settings().max_pixels < 2100 * 2000 * 16
    process = batch(tmp_path, "--steps", "0")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    with Image.open(tmp_path / "out" / "photo.jpg") as image:
        assert image.size == (8400, 8000)
    limited = {**environment(tmp_path), "SERVICE_MAX_PIXELS": str(Settings().max_pixels)}
    command = [sys.executable, "-c", CODE, "in", "out", "--overwrite", "--steps", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=limited, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "failed: photo.jpg: the picture is 2100x2000" in done.stderr
    assert "SERVICE_MAX_PIXELS=67200000" in done.stderr


def test_a_result_larger_than_pillow_reads_by_default_is_kept(tmp_path: Path) -> None:
    fill(tmp_path / "in", 1)
    code = (
        "import sys; from PIL import Image; Image.MAX_IMAGE_PIXELS = 16 * 16; from service.job_worker import main; "
        "from tests.jobs_fakes import load; sys.exit(main(sys.argv[1:], load))"
    )
    whole = CODE.replace('"-m", "tests.jobs_fakes"', f'"-c", "{code}"')
    command = [sys.executable, "-c", whole, "in", "out", "--steps", "0"]
    for begins in ("1 done, 0 failed of 1", "0 done, 0 failed, 1 there already of 1"):
        (tmp_path / "out" / "manifest.jsonl").unlink(missing_ok=True)  # so that the result is looked into
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(begins)


def test_no_worker_is_started_where_nothing_is_left_to_do(tmp_path: Path) -> None:
    fill(tmp_path / "in", 2)
    for old, new in (("00000.png", "a.jpg"), ("00001.png", "a.jpg.png")):  # with one result
        (tmp_path / "in" / old).rename(tmp_path / "in" / new)
    flags = ["--steps", "0", "--format", "PNG"]
    out, err = batch(tmp_path, *flags).communicate(timeout=120)
    assert out.startswith("1 done, 1 failed of 2 in"), err
    manifest = (tmp_path / "out" / "manifest.jsonl").read_text()
    code = CODE.replace('"-m", "tests.jobs_fakes"', '"-c", "import sys; sys.exit(2)"')
    command = [sys.executable, "-c", code, "in", "out", *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("0 done, 1 failed, 1 there already of 2 in")
    assert done.stderr == "failed: a.jpg.png: its result would be a.jpg.png, and so would that of a.jpg\n"
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == manifest
    assert not list((tmp_path / "data" / "batch").glob("*/jobs.sqlite*"))


def test_workers_that_cannot_start_end_it_with_status_2(tmp_path: Path) -> None:
    fill(tmp_path / "in", 1)
    code = CODE.replace('"-m", "tests.jobs_fakes"', '"-c", "import sys; sys.exit(2)"')
    command = [sys.executable, "-c", code, "in", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no worker could start" in done.stderr


def test_interrupted_while_one_of_two_workers_could_not_start_it_is_as_with_one(tmp_path: Path) -> None:
    fill(tmp_path / "in", 100)
    worker = "import os, runpy, sys; os.environ['SERVICE_DEVICE'] == 'cpu' or sys.exit(2); "
    worker += "runpy.run_module('tests.jobs_fakes', run_name='__main__')"
    code = CODE.replace('"-m", "tests.jobs_fakes"', f'"-c", {worker!r}')
    command = [sys.executable, "-c", code, "in", "out", "--workers", "2", "--device", "cpu,mps"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path, 0.2), stdout=-1, stderr=-1, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists() or enlarged(tmp_path) < 4:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, " left of 100 in " in out) == (130, True), err
    assert len(states(tmp_path)) == enlarged(tmp_path)


def test_an_output_that_cannot_take_a_manifest_ends_it_with_status_2(tmp_path: Path) -> None:
    fill(tmp_path / "in", 2)
    (tmp_path / "out" / "manifest.jsonl").mkdir(parents=True)
    out, err = (process := batch(tmp_path, "--steps", "0")).communicate(timeout=60)
    assert (process.returncode, out) == (2, ""), err
    assert err.splitlines()[-1] == "python -m service.batch: error: manifest.jsonl: Is a directory"
