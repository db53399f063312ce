"""The guide: what it names exists, its pictures are there and small, and the command makes them."""

import importlib
import re
from pathlib import Path

import cv2
import numpy as np

import ldm
from ldm.guide import NOISED_AT, GuideConfig, channels, main, run
from ldm.loading import load

GUIDE = Path(ldm.__file__).parent / "GUIDE.md"


def test_the_functions_beside_the_formulas_exist():
    named = set(re.findall(r"`((?:ldm|sr3)(?:\.\w+)+)`", GUIDE.read_text()))
    assert len(named) >= 8
    for name in named:
        parts = name.split(".")
        target = importlib.import_module(".".join(parts[:2]))
        for part in parts[2:]:
            target = getattr(target, part)


def test_its_pictures_are_there_and_small():
    linked = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", GUIDE.read_text())
    files = [GUIDE.parent / name for name in linked]
    assert len(files) == 5 and all(f.is_file() for f in files)
    assert sum(f.stat().st_size for f in (GUIDE.parent / "guide_pictures").iterdir()) < 600_000


def test_the_command_makes_them(tmp_path):
    assert main(GuideConfig(tmp_path, steps=2)) == 0
    assert cv2.imread(str(tmp_path / "noising.png")).shape[1] == len(NOISED_AT) * 132
    assert cv2.imread(str(tmp_path / "result_x4.png")).shape == (256, 256, 3)
    assert len(list(tmp_path.iterdir())) == 5


def test_the_last_estimate_is_the_picture():
    found = run(load(device="cpu"), GuideConfig(steps=3))
    rows = found.noisy[-1].shape[1] // 12
    assert len(found.noisy) == len(found.estimates) == len(found.previews) == 3
    assert np.allclose(found.noisy[-1], found.estimates[-1], atol=0.05)
    assert channels(found.noisy[-1]).shape == (rows * 68, 12 * 68, 3)
