"""Measures of pictures against their prompts, and against one another."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from sr3.mistakes import first_line


def smallest_difference(pictures: np.ndarray) -> float:
    """The root mean square difference, in 8-bit levels, of the two pictures of uint8 (N, H, W, 3) that are closest."""
    flat = torch.from_numpy(pictures.reshape(len(pictures), -1).astype(np.float64))
    apart = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    apart.fill_diagonal_(torch.inf)
    return float(apart.min())


@functools.cache
def load_clip(model: str, allow_download: bool = False) -> tuple[Any, Any, Any]:
    """A CLIP model, its reader of pictures and its tokenizer: a hub id or a directory of safetensors. Raises ValueError
    where it cannot be loaded."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    options: Any = {"local_files_only": not allow_download}
    try:
        clip = CLIPModel.from_pretrained(model, use_safetensors=True, **options).eval()
        reader, tokenizer = (kind.from_pretrained(model, **options) for kind in (CLIPImageProcessor, AutoTokenizer))
    except (OSError, ValueError) as error:
        raise ValueError(f"{model} is no CLIP model that can be loaded: {first_line(error)}") from None
    return clip, reader, tokenizer


def clip_score(
    pictures: Sequence[np.ndarray], prompts: Sequence[str], model: str, allow_download: bool = False, batch: int = 32
) -> float:
    """100 × the mean cosine, zero where negative, of each uint8 RGB picture's and its prompt's CLIP embeddings (Hessel
    et al., arXiv 2104.08718, section 3, without its factor 2.5). `model`: see `load_clip`."""
    clip, reader, tokenizer = load_clip(model, allow_download)
    cosines = []
    for start in range(0, len(pictures), batch):
        images = [Image.fromarray(p) for p in pictures[start : start + batch]]
        texts = tokenizer(list(prompts[start : start + batch]), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = clip(pixel_values=reader(images, return_tensors="pt").pixel_values, **texts)
        cosines.append((output.image_embeds * output.text_embeds).sum(1))
    return float(100 * torch.cat(cosines).clamp(min=0).mean())
