"""How far tiles are from the whole picture: `python -m tests.bench_tiles --photos FOLDER [--count 4] [--steps 0]`.

Photographs spread over the folder are cut to their middle 1600x1600 and made 400x400, the first and every second one
after it by bicubic reduction, the others by `bsr`, where strong noise makes the encoder look furthest. In float32,
not projected: the largest difference in levels of 255, and how many of the values differ by more than one.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from degradation import degrade
from sr3.decoding import read_folder
from sr3.evaluate import middle, rgb
from sr3.memory import SMALLEST_TILE, pieces
from sr3.model import SCALE
from sr3.pipeline import load
from sr3.tiling import TILE, Tiling

SIDE = 1600
TILINGS = (pieces(TILE), Tiling(256, 96), pieces(SMALLEST_TILE))


def low_res(path: Path, index: int) -> np.ndarray:
    """uint8 (400, 400, 3)."""
    pixels = rgb(path)
    high_res = middle(pixels, min(*pixels.shape[:2], SIDE) // SCALE * SCALE)
    degraded, _ = degrade(
        high_res.astype(np.float32) / 255, np.random.default_rng(index), "bsr" if index % 2 else "bicubic"
    )
    return np.round(degraded * 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    pipeline = load(options.model, "cpu", "float32")
    pipeline.set_progress_bar_config(disable=True)
    files = read_folder(options.photos)
    chosen = files[:: max(1, len(files) // options.count)][: options.count]

    def run(image: np.ndarray, tiling: Tiling) -> torch.Tensor:
        draw = torch.Generator().manual_seed(0)
        made = pipeline(image, options.steps, draw, consistency=0, output_type="pt", tiling=tiling)
        return made.images * 127.5

    print("| picture | tiles, overlap | largest difference | more than a level |\n|---|---|---|---|")
    for index, path in enumerate(chosen):
        image = low_res(path, index)
        whole = run(image, Tiling(4 * max(image.shape), 0))
        for tiling in TILINGS:
            difference = (run(image, tiling) - whole).abs()
            share = float((difference > 1).double().mean())
            kind = "bsr" if index % 2 else "bicubic"
            sizes = f"{tiling.size}, {tiling.overlap}"
            print(f"| {path.stem}, {kind} | {sizes} | {float(difference.max()):.2f} | {share:.4%} |", flush=True)


if __name__ == "__main__":
    main()
