"""Layers that give each picture of a batch the bits that it gets alone."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from service.cascade import load_cascade
from service.requests import GenerateRequest, GenerateResult
from service.settings import Settings
from service.steady import SteadyLinear, make_steady


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(256, 384), (256,)),
        (nn.Linear(256, 384), (3, 256)),
        (nn.Linear(64, 96), (40, 64)),
        (nn.Conv2d(32, 48, 3, padding=1), (32, 9, 9)),
        (nn.Conv2d(32, 48, 1), (32, 9, 9)),
        (nn.GroupNorm(8, 64), (64, 24, 24)),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_layer_gives_the_same_bits_in_every_batch(
    layer: nn.Module, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    x = torch.randn(17, *shape, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=layout) if x.ndim == 4 else x
    steady = copy.deepcopy(layer)
    make_steady(steady)
    with torch.inference_mode():
        alone = [steady(each) for each in x.split(1)]
        assert torch.allclose(torch.cat(alone), layer(x), atol=1e-4)
        for size in (2, 3, 4, 5, 8, 16, 17):
            for first in (0, 17 - size):
                batch = steady(x[first : first + size])
                assert all(torch.equal(a, b[None]) for a, b in zip(alone[first:], batch, strict=False)), size


def test_only_what_is_on_a_cpu_is_changed() -> None:
    here, elsewhere = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2, device="meta"))
    make_steady(here, elsewhere)
    assert type(here[0]) is SteadyLinear and type(elsewhere[0]) is nn.Linear


@pytest.mark.parametrize("memory", [{}, {"attention_slicing": True, "vae_tiling": True}])
def test_a_seed_gives_the_same_picture_alone_and_in_a_batch(memory: dict[str, Any]) -> None:
    cascade = load_cascade(Settings(device="cpu", **memory))
    prompts = ("a red apple", "a blue car at night, with many stars above", "a house")
    asked = [GenerateRequest(prompt, seed, steps=3, sr_steps=1) for seed, prompt in enumerate(prompts)]
    together = cascade.generate(asked)
    for request, made in zip(asked, together, strict=True):
        alone = cascade.generate([request])[0]
        assert isinstance(made, GenerateResult) and isinstance(alone, GenerateResult)
        assert np.array_equal(made.image, alone.image)
