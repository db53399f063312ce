"""The bundled models through the whole service: a prompt goes in over HTTP, a large picture comes out."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from service.__main__ import main
from service.cascade import load_cascade
from tests.service_fakes import Running, serving

QUICK = {"steps": 6, "sr_steps": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("real"), factory=load_cascade, device="cpu") as running:
        running.client.timeout = httpx.Timeout(120)
        yield running


def ask(server: Running, upscale: int, **options: object) -> tuple[np.ndarray, httpx.Response]:
    answer = server.client.post(f"/generate?upscale={upscale}", json={**QUICK, **options})
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content))), answer


def test_sizes_and_the_same_picture_at_each(server: Running) -> None:
    pictures = {up: ask(server, up, prompt="a red apple", seed=7, sr_steps=0)[0] for up in (1, 4, 16)}
    assert {up: picture.shape for up, picture in pictures.items()} == {
        1: (64, 64, 3),
        4: (256, 256, 3),
        16: (1024, 1024, 3),
    }
    base = pictures[1].astype(float)
    assert base.std() > 10, "it is not a flat picture"
    for up in (4, 16):
        shrunk = pictures[up].reshape(64, up, 64, up, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - base).mean() < 10, "the large picture shows what the base picture shows"


def test_seed_decides_the_bytes(server: Running) -> None:
    first, again, other = (ask(server, 4, prompt="a house", seed=seed)[1] for seed in (7, 7, 8))
    assert first.content == again.content
    assert first.content != other.content
    assert first.headers["seed"] == "7"


def test_answer_tells_what_was_done(server: Running) -> None:
    _, answer = ask(server, 4, prompt="a tree", negative_prompt="blue", seed=1, guidance_scale=3, aug_level=0.1)
    text = Image.open(io.BytesIO(answer.content)).info
    told = json.loads(text["settings"])
    asked = {"steps": 6, "sr_steps": 1, "guidance_scale": 3.0, "aug_level": 0.1, "base_size": [64, 64]}
    assert {name: told[name] for name in asked} == asked
    assert told["base_model"] == told["sr_model"] == "bundled"
    assert {"queue", "base", "x4", "encode"} == {
        each.split(";")[0] for each in answer.headers["server-timing"].split(", ")
    }


def test_steps_of_the_enlarging_change_the_picture_and_none_is_a_choice(server: Running) -> None:
    faithful, textured = (ask(server, 4, prompt="a cat face", seed=3, sr_steps=n)[0] for n in (0, 2))
    assert not np.array_equal(faithful, textured)
    assert np.abs(faithful.astype(float) - textured).mean() < 20


@pytest.mark.parametrize("prompt", ["🍎🌳", "一个红苹果", "zzqx \\ \" '"])
def test_prompts_in_any_script_make_a_picture(server: Running, prompt: str) -> None:
    picture, _ = ask(server, 1, prompt=prompt, seed=1, steps=2)
    assert picture.shape == (64, 64, 3)


def test_prompt_longer_than_the_model_reads_is_refused(server: Running) -> None:
    answer = server.client.post("/generate", json={"prompt": "a red apple " * 80})
    assert answer.status_code == 422
    assert "the base model reads at most" in answer.json()["detail"]


def without_weights(directory: Path) -> None:
    for file in directory.rglob("*.safetensors"):
        file.unlink()


def with_short_weights(directory: Path) -> None:
    for file in directory.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])


def without_parts(directory: Path) -> None:
    for part in directory.iterdir():
        if part.is_dir():
            shutil.rmtree(part)


def with_weights_missing(directory: Path) -> None:
    for file in directory.rglob("*.safetensors"):
        tensors = load_file(file)
        save_file({name: tensors[name] for name in sorted(tensors)[::2]}, file, {"format": "pt"})


def with_an_empty_index(directory: Path) -> None:
    (directory / "model_index.json").write_text("")


@pytest.mark.parametrize("room", ["ldm", "sr3"])
@pytest.mark.parametrize(
    "spoil", [with_weights_missing, without_weights, with_short_weights, without_parts, with_an_empty_index]
)
def test_wrong_checkpoint_is_one_line_and_status_2(
    room: str, spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ldm
    import sr3

    model = tmp_path / "model"
    shutil.copytree({"ldm": ldm, "sr3": sr3}[room].BUNDLED, model)
    spoil(model)
    flag = {"ldm": "--base-model", "sr3": "--sr-model"}[room]
    assert main([flag, str(model), "--port", "0", "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    lines = [line for line in message.splitlines() if line.startswith("python -m service: error: ")]
    assert len(lines) == 1
    assert lines[0].startswith("python -m service: error: cannot load the models: ")
    assert "Traceback" not in message
