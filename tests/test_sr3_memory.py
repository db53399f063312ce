"""Memory under a bound: sizes, plans, regions, and what happens when it runs out."""

import numpy as np
import pytest
import torch

from sr3 import memory
from sr3.loop import mixed
from sr3.memory import Cost, Plan, is_out_of_memory, parse_size, plan
from sr3.pipeline import SR3Pipeline
from sr3.schedulers import with_scheduler
from sr3.tiling import Tiling

CPU = torch.device("cpu")


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_sizes_are_read():
    sizes = {"3GB": 3e9, "900 MiB": 900 * 2**20, "1.5g": 1.5e9, "12345": 12345, "2kb": 2000, "1 GiB": 2**30}
    assert {text: parse_size(text) for text in sizes} == sizes
    for wrong in ("", "three", "3 apples", "-1GB", "1TB"):
        with pytest.raises(ValueError, match="write it like 3GB"):
            parse_size(wrong)


def test_a_plan_fits_its_budget_and_cuts_no_smaller_than_it_must():
    each = Cost(1600, 4000, 400)
    budgets = [int(b) for b in np.geomspace(5.2e8, 4e9, 40)]
    plans = [plan(1024, 1024, each, b) for b in budgets]
    assert plans[-1] == Plan(Tiling(256, 96))
    pieces = [p.region.size if p.region else 4096 for p in plans]
    assert pieces == sorted(pieces) and len(set(pieces)) > 4
    for chosen, budget in zip(plans, budgets, strict=True):
        piece = chosen.region.size**2 if chosen.region else 1024**2
        assert 1600 * min(piece, 1024**2) + 4000 * chosen.tiling.size**2 + 400 * 1024**2 <= budget
    with pytest.raises(ValueError, match="is the least for a picture of 1024x1024"):
        plan(1024, 1024, each, 400_000_000)


def test_plans_get_smaller_until_none_is_left():
    chosen: Plan | None = Plan(Tiling())
    sizes = []
    while chosen := chosen.smaller():
        sizes.append((chosen.region.size if chosen.region else None, chosen.tiling.size))
    assert sizes[0] == (None, 128) and sizes[1] == (1024, 128) and sizes[-1] == (128, 128)


@pytest.mark.parametrize(("steps", "aug_level"), [(0, 0.0), (3, 0.1)])
def test_regions_equal_the_whole(small_pipeline, steps, aug_level):
    image = picture(290, 141)
    whole = small_pipeline(image, steps, draw(), aug_level).images[0]
    tiles = []
    bound = memory.in_use(CPU) + 75_000_000
    cut = small_pipeline(image, steps, draw(), aug_level, max_memory=bound, on_tile=lambda: tiles.append(1)).images[0]
    assert len(tiles) >= 6 * (steps + 1)  # two regions of it at the least would be four tiles in one piece
    assert np.abs(whole.astype(int) - cut).max() <= 1


@pytest.mark.parametrize("free", [90_000_000, 0])
def test_without_a_bound_a_picture_is_cut_where_memory_is_short(small_pipeline, monkeypatch, free):
    image, tiles = picture(290, 141), []
    whole = small_pipeline(image, 1, draw()).images[0]
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    cut = small_pipeline(image, 1, draw(), on_tile=lambda: tiles.append(1)).images[0]
    assert len(tiles) >= 6 * 2
    assert np.abs(whole.astype(int) - cut).max() <= 1
    tiled = []
    small_pipeline(image, 1, draw(), tiling=Tiling(), on_tile=lambda: tiled.append(1))
    assert len(tiled) == small_pipeline.evaluations(290, 141, 1)  # a tiling is kept
    with_scheduler(small_pipeline, "DDPM")(picture(16, 16), 1, draw())  # what cannot be cut is tried


def test_free_memory_is_the_containers_with_the_pages_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = memory.free_memory(CPU)
    assert 10 * 2**20 < machine < 2**50
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    assert memory.free_memory(CPU) > 10 * 2**20
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.stat").write_text("file 2000000\ninactive_file 1000000\nactive_file 1000000\n")
    assert memory.free_memory(CPU) == 3_000_000


def test_a_bound_that_cannot_be_kept_is_refused(small_pipeline):
    with pytest.raises(ValueError, match="beside what is in use is the least"):
        small_pipeline(picture(64, 64), 1, draw(), max_memory=1000)
    with pytest.raises(ValueError, match="cannot bound this model or scheduler"):
        with_scheduler(small_pipeline, "DDPM")(picture(16, 16), 1, draw(), max_memory=10**10)


class Cramped(torch.nn.Module):
    """A network that has memory for so many positions only."""

    def __init__(self, network, most: int, error: Exception):
        super().__init__()
        self.network, self.most, self.error, self.refused = network, most, error, 0
        self.config, self.multiple, self.dtype = network.config, network.multiple, network.dtype

    def forward(self, noisy, *others):
        if noisy.shape[-1] * noisy.shape[-2] > self.most:
            self.refused += 1
            raise self.error
        return self.network(noisy, *others)


def cramped(pipeline, most, error) -> SR3Pipeline:
    made = SR3Pipeline(pipeline.encoder, pipeline.unet, pipeline.scheduler)
    object.__setattr__(made, "unet", Cramped(pipeline.unet, most, error))
    return made


@pytest.mark.parametrize("scheduler", ["DDIM", "DDPM"])
def test_running_out_of_memory_gives_the_same_picture_in_smaller_pieces(small_pipeline, scheduler):
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
    pipeline = with_scheduler(small_pipeline, scheduler)
    short = cramped(pipeline, 128 * 128, error)
    image = picture(140, 150)
    expected = pipeline(image, 2, draw(), 0.1).images[0]
    assert np.abs(expected.astype(int) - short(image, 2, draw(), 0.1).images[0]).max() <= 1
    assert short.unet.refused == 1


def test_no_picture_is_better_than_a_wrong_one(small_pipeline):
    for error in (torch.OutOfMemoryError("out of memory"), MemoryError(), RuntimeError("something else")):
        short = cramped(small_pipeline, 0, error)
        with pytest.raises(type(error)):
            short(picture(16, 16), 1, draw())
        assert short.unet.refused == (1 if "else" in str(error) else 9)
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(("capability", "expected"), [((6, 1), "float32"), ((7, 5), "float16"), ((8, 0), "bfloat16")])
def test_a_card_gets_numbers_that_it_multiplies(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert memory.fast_dtype(torch.device("cuda")) == expected


@pytest.mark.parametrize("able", [True, False])
def test_training_takes_bfloat16_only_where_the_processor_multiplies_it(monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able}, raising=False)
    x = torch.ones(2, 2)
    with mixed(torch.device("cpu")):
        assert (x @ x).dtype == (torch.bfloat16 if able else torch.float32)
