"""How trained networks get into files, of both rooms: without a copy on their device, and open to others."""

import copy
import os
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def halved(network: Network) -> Network:
    """A copy on the CPU whose floating-point numbers are float16; the network stays as it is, and where it is."""

    def half(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float16 if tensor.is_floating_point() else tensor.dtype, copy=True)

    copies = {id(p): nn.Parameter(half(p), p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, copies | {id(b): half(b) for b in network.buffers()})


def open_to_others(path: Path) -> None:
    """The mode that the umask says for a file, or for all of a folder's safetensors: they are written for their owner
    alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in path.rglob("*.safetensors") if path.is_dir() else [path]:
        file.chmod(0o666 & ~mask)
