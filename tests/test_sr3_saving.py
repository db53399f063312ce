"""How networks get into files: without a copy on their device, and open to whom the umask lets in."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ldm
import ldm.data
import ldm.finetune
import ldm.models
import sr3.data
import sr3.loop
from ldm.train import FinetuneConfig
from sr3.loop import LoopConfig, State
from sr3.pipeline import SR3Pipeline
from sr3.presets import build, save
from sr3.saving import halved
from tests.conftest import SMALL

CONFIG = FinetuneConfig("model", Path(), loop=LoopConfig(device="cpu"))


class Elsewhere(TorchDispatchMode):
    """As on a GPU, which is not there: the meta device, whose tensors can be copied to the CPU here. Knows what was
    made on it meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.is_meta and func is not torch.ops.aten.detach.default:
            self.made.append(str(func))
        return result


def test_a_state_is_copied_to_the_cpu_and_not_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to("meta", memory_format=torch.channels_last)
    state, saved = State(network, replace(CONFIG, out=tmp_path)), {}

    def record(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        saved.update(tensors)
        path.touch()

    monkeypatch.setattr(sr3.loop, "save_file", record)
    with Elsewhere() as device:
        state.save(tmp_path / "state.safetensors")
    assert len(saved) == 2 * 4 + 3 and all(t.device.type == "cpu" and t.is_contiguous() for t in saved.values())
    assert not device.made


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pipelines that would have been saved."""
    found: list[Any] = []
    for kind in (ldm.finetune.DiffusionPipeline, type(build(SMALL))):
        monkeypatch.setattr(
            kind, "save_pretrained", lambda self, folder, **_: (folder.mkdir(parents=True), found.append(self))
        )
    return found


def test_pipelines_are_copied_to_the_cpu_and_not_on_the_device(tmp_path: Path, written: list[Any]) -> None:
    drawing, enlarging = ldm.load(device="cpu").to("meta"), build(SMALL).to("meta")
    with Elsewhere() as device:
        ldm.models.save(drawing, tmp_path / "a")
        ldm.finetune.save_result(drawing, replace(CONFIG, out=tmp_path / "b"))
        save(enlarging, tmp_path / "c")
    assert not device.made
    for pipeline in written:
        parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        assert len(parts) > 1 and {p.device.type for part in parts for p in part.parameters()} == {"cpu"}
        assert {p.dtype for part in parts for p in part.parameters()} == {torch.float16}
    assert drawing.unet.dtype == enlarging.unet.dtype == torch.float32


def test_a_half_is_the_network_in_float16_and_leaves_it_as_it_is() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    network[0].bias = network[1].bias  # tied
    half = halved(network)
    assert half[0].bias is half[1].bias and half[0].bias is not network[0].bias
    assert half[1].running_mean.dtype == torch.float16 and half[1].num_batches_tracked.dtype == torch.int64
    assert torch.equal(half[0].weight, network[0].weight.half()) and network[0].weight.dtype == torch.float32
    already = halved(half)
    assert already[0].weight is not half[0].weight and torch.equal(already[0].weight, half[0].weight)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_what_is_saved_is_open_to_whom_the_umask_lets_in(
    mask: int, small_pipeline: SR3Pipeline, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        State(nn.Linear(2, 2), CONFIG).save(tmp_path / "state.safetensors")
        save(small_pipeline, tmp_path / "sr3")
        ldm.models.save(ldm.load(device="cpu"), tmp_path / "ldm")
        sr3.data.save_pack(tmp_path / "crops", np.zeros((1, 8, 8, 3), np.uint8), [])
        ldm.data.save_pack(tmp_path / "drawings", np.zeros((1, 8, 8, 4), np.uint8), [], [])
    finally:
        assert os.umask(before) == mask
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 10 and {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~mask}
