"""Memory under a bound: sizes, plans, regions, and what happens when it runs out."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sr3 import memory
from sr3.loop import mixed
from sr3.memory import Cost, Plan, is_out_of_memory, plan
from sr3.pipeline import SR3Pipeline, load
from sr3.schedulers import with_scheduler
from sr3.tiling import Tiling

CPU = torch.device("cpu")


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_plan_fits_its_budget_and_cuts_no_smaller_than_it_must():
    each = Cost(1600, 4000, 400)
    budgets = [int(b) for b in np.geomspace(6.4e8, 4e9, 40)]
    plans = [plan(1024, 1024, each, b) for b in budgets]
    assert plans[-1] == Plan(Tiling(384, 160))
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
    assert sizes[0] == (None, 192) and sizes[1] == (1024, 192) and sizes[-1] == (192, 192)


class Drawn(TorchDispatchMode):
    """Counts the normal numbers that are drawn."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if "normal" in str(func) or "randn" in str(func):
            self.numbers += made.numel()
        return made


@pytest.mark.parametrize(("steps", "aug_level"), [(0, 0.0), (2, 0.1)])
def test_regions_equal_the_whole(small_pipeline, steps, aug_level):
    image = picture(290, 160)
    with Drawn() as once:
        whole = small_pipeline(image, steps, draw(), aug_level).images[0]
    tiles = []
    bound = memory.in_use(CPU) + 132_000_000
    assert small_pipeline.plan(290, 160, max_memory=bound).region.size == 192
    settings = {"max_memory": bound, "on_tile": lambda: tiles.append(1)}
    with Drawn() as drawn:
        cut = small_pipeline(image, steps, draw(), aug_level, **settings).images[0]
    assert len(tiles) == 3 * (steps + 1)
    assert np.abs(whole.astype(int) - cut).max() <= 1
    assert drawn.numbers == once.numbers >= 48 * 290 * 160 * (steps > 0)


def test_the_bundled_model_gives_nearly_the_same_picture_in_the_smallest_pieces(monkeypatch):
    pipeline = load(None, "cpu", "float32")
    pipeline.set_progress_bar_config(disable=True)
    image, tiles = picture(208, 24), []
    whole = pipeline(image, 2, draw(), tiling=Tiling(), output_type="pt").images
    monkeypatch.setattr(memory, "free_memory", lambda device: 3_000_000)
    cut = pipeline(image, 2, draw(), output_type="pt", on_tile=lambda: tiles.append(1)).images
    assert len(tiles) >= 2 * 3
    assert (whole - cut).abs().max() < 1.5 * 2 / 255  # a picture of noise alone, where the encoder looks furthest


@pytest.mark.parametrize("free", [165_000_000, 23_000_000])
def test_without_a_bound_a_picture_is_cut_where_memory_is_short(small_pipeline, monkeypatch, free):
    image, tiles = picture(290, 160), []
    whole = small_pipeline(image, 1, draw()).images[0]
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    cut = small_pipeline(image, 1, draw(), on_tile=lambda: tiles.append(1)).images[0]
    assert len(tiles) == 3 * 2
    assert np.abs(whole.astype(int) - cut).max() <= 1
    tiled = []
    small_pipeline(image, 1, draw(), tiling=Tiling(), on_tile=lambda: tiled.append(1))
    assert len(tiled) == small_pipeline.evaluations(290, 160, 1)  # a tiling is kept
    with_scheduler(small_pipeline, "DDPM")(picture(16, 16), 1, draw())  # what cannot be cut is tried


def test_where_not_even_the_result_fits_nothing_is_begun(small_pipeline, monkeypatch):
    tiles = []
    monkeypatch.setattr(memory, "free_memory", lambda device: 22_000_000)
    with pytest.raises(ValueError, match=r"is the least for a picture of 160x290 to 640x1160; 0\.02 GB is there"):
        small_pipeline(picture(290, 160), 1, draw(), on_tile=lambda: tiles.append(1))
    assert not tiles


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


def real_error() -> BaseException:
    """What torch raises here where memory ends."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("scheduler", ["DDIM", "DDPM"])
def test_running_out_of_memory_gives_the_same_picture_in_smaller_pieces(small_pipeline, scheduler):
    pipeline = with_scheduler(small_pipeline, scheduler)
    short = cramped(pipeline, 192 * 192, real_error())
    image = picture(195, 200)
    expected = pipeline(image, 2, draw(), 0.1).images[0]
    assert np.abs(expected.astype(int) - short(image, 2, draw(), 0.1).images[0]).max() <= 1
    assert short.unet.refused == 1


def test_no_picture_is_better_than_a_wrong_one(small_pipeline):
    for error in (torch.OutOfMemoryError("out of memory"), MemoryError(), real_error(), RuntimeError("something else")):
        short = cramped(small_pipeline, 0, error)
        with pytest.raises(type(error)):
            short(picture(16, 16), 1, draw())
        assert short.unet.refused == (1 if "else" in str(error) else 8)


def test_memory_that_ran_out_is_known_by_its_words():
    others = (
        "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 B.",
        "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB, max allowed: 9.00 GB).",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "std::bad_alloc",
    )
    assert all(is_out_of_memory(error) for error in (real_error(), *map(RuntimeError, others)))
    assert not is_out_of_memory(ValueError("out of memory")) and not is_out_of_memory(RuntimeError("shape"))


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
