"""Networks whose result for one picture does not depend, to the last bit, on what else is in its batch.

Measured on a CPU with torch 2.13 and one or two threads: convolutions, attention and products of many rows give each
picture of a batch the bits that it gets alone. What does not: products of a few rows, summed in another order for each
number of rows; convolutions, which torch hands to another library for one small picture or for sixteen (its
`use_mkldnn`); group normalisation with the channels last, whose sums are dealt to threads across pictures; and layers
that choose their way by the first stride, which of one picture says nothing. Other devices are left as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 16
SMALL, MANY = 20_480, 16  # where `use_mkldnn` changes its mind: values of one picture, pictures


class SteadyLinear(nn.Linear):
    """Takes the pictures of a batch one by one where each has few rows."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, …, C) to (N, …, C')."""
        if x.ndim < 2 or len(x) < 2 or x.shape[1:-1].numel() >= FEW_ROWS:
            return super().forward(x)
        return torch.cat([F.linear(each, self.weight, self.bias) for each in x.split(1)])


class SteadyConv2d(nn.Conv2d):
    """Goes the way of 2 to 15 pictures with every number of them."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W')."""
        if len(x) == 1 and x.numel() <= SMALL:
            return super().forward(torch.cat([x, x]))[:1]
        if len(x) >= MANY:
            parts = x.tensor_split(-(-len(x) // (MANY // 2)))
            return torch.cat([super(SteadyConv2d, self).forward(each) for each in parts])
        return super().forward(_as_of_several(x))


class SteadyGroupNorm(nn.GroupNorm):
    """Takes the pictures of a batch one by one where their channels come last."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, …) to the same shape."""
        x = _as_of_several(x)
        if x.is_contiguous():
            return super().forward(x)
        return torch.cat([super(SteadyGroupNorm, self).forward(each) for each in x.split(1)])


def _as_of_several(x: Tensor) -> Tensor:
    """One picture with the first stride that it would have as the first of several; others as they are."""
    if len(x) != 1 or x.stride(0) >= x.numel():
        return x
    return x.as_strided(x.shape, (x.numel(), *x.stride()[1:]))


STEADY: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SteadyLinear,
    nn.Conv2d: SteadyConv2d,
    nn.GroupNorm: SteadyGroupNorm,
}


def make_steady(*networks: nn.Module) -> None:
    """Change the layers of the networks that are on a CPU; their weights stay."""
    for network in networks:
        if all(weight.device.type == "cpu" for weight in network.parameters()):
            for layer in network.modules():
                layer.__class__ = STEADY.get(type(layer), type(layer))
