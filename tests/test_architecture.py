"""The arrows between the rooms, cheap imports, and what must not be in the repository."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("degradation", "sr3", "ldm", "service")


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] in ROOMS}


def allowed(room: str, name: str, module: str) -> bool:
    """Whether file `name` of `room` may import `module` (the table in the README's section on the rooms)."""
    if module.split(".")[0] == room:
        return True
    if module == "degradation.arguments":
        return room in ("sr3", "ldm")  # one way to read a command line
    match room, name:
        case "sr3", ("data.py" | "evaluate.py" | "metrics.py"):
            return module.split(".")[0] == "degradation"
        case "ldm", ("train.py" | "autoencoder.py" | "diffusion.py" | "classifier.py" | "finetune.py"):
            # one training loop for all networks
            return module in ("sr3.loop", "sr3.memory", "sr3.saving", "sr3.mistakes")
        case "ldm", ("models.py" | "data.py"):
            return module == "sr3.saving"
        case "ldm", ("memory.py" | "loading.py" | "metrics.py"):
            return module in ("sr3.memory", "sr3.mistakes")  # how much is free, what an error says
        case "ldm", "stamps.py":
            return module == "sr3.corpus"  # Debian's packages
        case "ldm", "evaluate.py":
            return module in ("sr3.sets", "sr3.mistakes")  # FID and its kin, for both
        case "ldm", "preview.py":
            return module in ("sr3.saving", "sr3.mistakes")
        case "service", ("cascade.py" | "describe.py" | "draw.py" | "preload.py" | "steps.py"):
            return module.split(".")[0] in ("sr3", "ldm")
        case "service", "upscale.py":
            return module.split(".")[0] == "sr3"
        case "service", _:
            return module in ("sr3.images", "sr3.decoding", "sr3.encoding", "sr3.xmp")  # of files; load no torch
    return False


@pytest.mark.parametrize("room", ROOMS)
def test_the_arrows_between_rooms(room):
    files = list((ROOT / room).glob("*.py"))
    assert files
    wrong = [(p.name, m) for p in files for m in imports(p) if not allowed(room, p.name, m)]
    assert not wrong


def loaded(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import service.app", {"torch", "diffusers", "transformers", "cv2"}),
        ("import degradation", {"torch", "diffusers"}),
        ("import ldm", {"torch", "diffusers", "transformers"}),
        ("import sr3, sr3.images, sr3.decoding, sr3.encoding", {"torch", "cv2", "basicsr", "tyro"}),
        ("import sr3.__main__", {"torch", "diffusers"}),
    ],
)
def test_imports_stay_cheap(statement, absent):
    assert not loaded(statement) & absent


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_root_holds_what_the_design_names():
    top = {name.split("/")[0] for name in tracked()}
    files = {"pyproject.toml", "example.png", "README.md", "LICENSE", "Makefile", "constraints.txt", "BENCHMARKS.md"}
    assert top <= {*ROOMS, "docker", "tests", ".ci", ".gitignore", *files}


def test_weights_are_safetensors_and_small():
    names = tracked()
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".onnx"))]
    weights = [ROOT / n for n in names if n.endswith(".safetensors")]
    assert sum(p.stat().st_size for p in weights) < 60e6
    assert all(p.stat().st_size <= 15.5e6 for p in weights)
