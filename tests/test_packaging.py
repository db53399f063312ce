"""The wheel, built from a copy of the sources, works alone: one picture enlarged and one generated."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment that holds the wheel, and shares the large dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: what an earlier build left in the checkout, deleted modules too, would come into the wheel.
    (folder / "sources").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "sources")
    for room in ("degradation", "sr3", "ldm", "service"):
        shutil.copytree(ROOT / room, folder / "sources" / room, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", folder / "sources", cwd=folder)  # sdist, and of it the wheel
    (wheel,) = (folder / "sources" / "dist").glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    # A path file adds a folder, but runs none of the path files in it: an editable install there stays unseen.
    (site / "shared.pth").write_text(sysconfig.get_paths()["purelib"])
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel, cwd=folder)
    return folder / "env" / "bin" / "python"


def test_the_wheel_holds_the_weights_and_comes_before_the_checkout(python, tmp_path):
    code = "import sr3, ldm, degradation, service; print(sr3.__file__, ldm.BUNDLED, sr3.BUNDLED)"
    for path in run(python, "-c", code, cwd=tmp_path).split():
        assert path.startswith(str(python.parent.parent)), path
        assert Path(path).exists()


def test_the_wheel_enlarges_a_picture(python, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)).save(tmp_path / "a.png")
    run(python, "-m", "sr3", "a.png", "-o", "big.png", "--steps", 1, "--seed", 0, cwd=tmp_path)
    with Image.open(tmp_path / "big.png") as image:
        assert image.size == (160, 96)


def test_the_wheel_draws_a_picture(python, tmp_path):
    code = "import ldm; ldm.load()('a red apple', num_inference_steps=2).images[0].save('apple.png')"
    run(python, "-c", code, cwd=tmp_path)
    with Image.open(tmp_path / "apple.png") as image:
        assert image.size == (64, 64)
