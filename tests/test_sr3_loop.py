"""The training loop: several processes, the clock, a gradient that is not finite, the device of each process."""

import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from sr3.loop import LoopConfig, _like, base_digest, fit, generator, own_device

LOOP = LoopConfig(steps=5, batch_size=4, warmup=1, learning_rate=0.01, device="cpu", save_every=2)


@dataclass(frozen=True)
class Config:
    out: Path
    loop: LoopConfig = field(default_factory=lambda: LOOP)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 1)


def squares(run: nn.Module, step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
    given = torch.randn(4, 3, generator=generator(0, step))[rows]
    return ((run(given) - given.sum(1, keepdim=True)) ** 2).mean(), {"error": 0.5}


PROCESS = """
import itertools, os, sys
from dataclasses import replace
from pathlib import Path

import torch

from sr3.loop import fit
from tests.test_sr3_loop import LOOP, Config, network, squares

out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
try:
    fit(network(), squares, Config(out, replace(LOOP, batch_size=3)), lambda step: {})
except ValueError as error:
    print(error)
clock = itertools.count(0, 15).__next__ if rank == 0 else lambda: 0  # that of the second stands still

def on_save(step):
    (out / "saved").write_text(str(step))
    return {}

state = fit(network(), squares, Config(out, replace(LOOP, minutes=1)), on_save, clock)
print(state.step, (out / "saved").read_text())
torch.distributed.destroy_process_group()
"""


def test_several_processes_stop_together_and_train_as_one_does(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "two")]
    ranks = [
        subprocess.Popen(command, env=shared | {"RANK": rank, "LOCAL_RANK": rank}, stdout=-1, stderr=-1, text=True)
        for rank in "01"
    ]
    try:
        told = [each.communicate(timeout=600) for each in ranks]
    finally:
        for each in ranks:
            each.kill()
    for rank, (each, (said, error)) in enumerate(zip(ranks, told, strict=True)):
        assert each.returncode == 0, error[-2000:]
        refused, *end, saved = said.splitlines()
        assert (refused, saved) == ("loop.batch_size is 3; it must be a multiple of the 2 processes", "3 3")
        assert end == [f"{tmp_path / 'two'}: step 3 of 5, error 0.5"][: 1 - rank]
    clock = iter(range(0, 999, 15)).__next__
    fit(network(), squares, Config(tmp_path / "one", LoopConfig(**{**vars(LOOP), "minutes": 1})), lambda _: {}, clock)
    one, two = (load_file(tmp_path / name / "state.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)


def test_each_process_has_the_device_that_its_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [own_device(name) for name in ("auto", "cuda", "cpu")] == ["auto", "cuda", "cpu"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [own_device(name) for name in ("cuda", "cpu", "cuda:3")] == ["cuda:1", "cpu", "cuda:3"]
    assert own_device("auto") == ("cuda:1" if torch.cuda.is_available() else "auto")


def test_a_gradient_that_is_not_finite_ends_a_training_and_leaves_what_was_saved(tmp_path: Path) -> None:
    saved: list[int] = []

    def loss(run: nn.Module, step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
        value, scalars = squares(run, step, rows)
        return (value * torch.nan if step == 3 else value), scalars

    def on_save(step: int) -> dict[str, Tensor]:
        saved.append(step)
        return {}

    with pytest.raises(ValueError, match=r"gradient of step 4 is not finite; .* stays as it was last saved"):
        fit(network(), loss, Config(tmp_path), on_save)
    assert saved == [2]
    assert all(value.isfinite().all() for value in load_file(tmp_path / "state.safetensors").values())
    assert fit(network(), squares, Config(tmp_path), on_save).step == 5 and saved == [2, 4, 5]


@pytest.mark.parametrize("ends", [False, True])
def test_the_log_is_closed_however_a_training_ends(ends: bool, tmp_path: Path) -> None:
    def loss(run: nn.Module, step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
        if step == 3 and ends:
            raise KeyboardInterrupt
        return squares(run, step, rows)

    before = set(threading.enumerate())
    try:
        fit(network(), loss, Config(tmp_path, replace(LOOP, log_every=1)), lambda step: {})
    except KeyboardInterrupt:
        assert ends
    assert not any("tensorboard" in type(each).__module__ for each in set(threading.enumerate()) - before)
    log = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [each.step for each in log.Scalars("error")] == ([1, 2, 3] if ends else [1, 2, 3, 4, 5])


def test_other_data_is_told_by_name_and_not_by_the_thousand(tmp_path: Path) -> None:
    first = {f"{i:03}": "x" for i in range(100)}
    fit(network(), squares, Config(tmp_path), lambda _: {}, contents=first)
    fit(network(), squares, Config(tmp_path), lambda _: {}, contents=dict(reversed(first.items())))
    with pytest.raises(ValueError, match=r"other data \(gone: 000, 001, 002, 003, 004 and 94 more; changed: 099\);"):
        fit(network(), squares, Config(tmp_path), lambda _: {}, contents={"099": "y"})


def pipeline(folder: Path, added: float) -> Path:
    """A pipeline's directory with one part of 6 MB, to one number in a hundred of which something is added."""
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(
        '{"_class_name": "Any", "unet": ["diffusers", "UNet"], "vae": [null, null]}'
    )
    values = torch.arange(1_500_000, dtype=torch.float32)
    values[::100] += added
    save_file({"weight": values}, folder / "unet" / "model.safetensors")
    return folder


def test_a_base_is_known_by_its_weights_wherever_it_lies(tmp_path: Path) -> None:
    first, moved, other = (pipeline(tmp_path / name / "pipeline", name == "b") for name in "acb")
    (moved / "unet" / "model.fp16.safetensors").write_bytes(b"a variant, which is not read")
    (moved / "preview.safetensors").write_bytes(b"written later")
    out = tmp_path / "out"
    known = base_digest("init", first, out)
    assert known == base_digest("init", moved, out) and len(known) == 1
    assert known != base_digest("init", other, out) == base_digest("init", other, out)
    assert base_digest("init", first / "unet", out) == known != base_digest("init", other / "unet", out)
    assert base_digest("init", None, out) == base_digest("init", first, tmp_path / "a") == {}  # which it writes over


def test_another_base_is_refused_but_not_by_a_state_that_knows_of_none(tmp_path: Path) -> None:
    first, other = (pipeline(tmp_path / name / "pipeline", name == "b") for name in "ab")
    data, config = {"pack": "x"}, Config(tmp_path / "out")
    fit(network(), squares, config, lambda _: {}, contents=data)
    known, wrong = (data | base_digest("init", folder, config.out) for folder in (first, other))
    with pytest.raises(ValueError, match=r"other data \(changed: pack\)"):
        fit(network(), squares, config, lambda _: {}, contents=known | {"pack": "y"})
    fit(network(), squares, config, lambda _: {}, contents=known)
    with pytest.raises(ValueError, match=r"of a training on other data \(changed: weights of --init\); give another"):
        fit(network(), squares, config, lambda _: {}, contents=wrong)


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_no_minutes_are_refused(minutes: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"loop.minutes is {minutes}; it must be more than 0"):
        fit(network(), squares, Config(tmp_path, LoopConfig(minutes=minutes)), lambda _: {})


def test_moments_go_to_the_device_of_their_weight() -> None:
    """A fused optimiser on a GPU wants its count of steps there too."""
    weight = torch.empty(2, 3, device="meta")
    assert _like(torch.tensor(7.0), weight, fused=True).device.type == "meta"
    assert _like(torch.tensor(7.0), weight, fused=False).device.type == "cpu"
    assert _like(torch.ones(2, 3), weight, fused=False).device.type == "meta"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -0.1}, "loop.learning_rate is -0.1; it must be finite and 0 or more"),
        ({"learning_rate": float("nan")}, "loop.learning_rate is nan"),
        ({"clip": -1.0}, "loop.clip is -1.0; it must be more than 0"),
        ({"ema": 2.0}, "loop.ema is 2.0; it must be at least 0 and less than 1"),
    ],
)
def test_numbers_that_cannot_train_are_refused(changes: dict[str, float], message: str, tmp_path: Path) -> None:
    config = Config(tmp_path / "out", replace(Config(tmp_path).loop, **changes))
    with pytest.raises(ValueError, match=message):
        fit(network(), squares, config, lambda _: {})
    assert not config.out.exists()
