"""Measure a text-to-image model: `python -m ldm.evaluate --pack drawings.safetensors --judge run/classifier`.

With a pack of drawings, prompts of seen and of held-out (name, style) pairs are drawn and a classifier
(`python -m ldm.train classifier`) says whether it recognises them; with `--reference FOLDER` of captioned pictures any
model is measured against those. `--schedulers` and `--steps` make a table.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ldm.captions import Drawing, caption
from ldm.classifier import Judge, load_judge, top_shares
from ldm.data import load_pack, place, sample_placement
from ldm.finetune import squared
from ldm.folder import Captioned, read_captioned
from ldm.loading import load, own_guidance, step_options
from ldm.metrics import clip_score, load_clip, smallest_difference
from ldm.schedulers import with_scheduler
from sr3.mistakes import told
from sr3.sets import LEAST, compare, inception_features

SAME = 4.0  # root mean square difference in 8-bit levels, under which two pictures are called the same
REFERENCE_SIDE = 256  # pixels: the middle square of a reference picture is brought to it


@dataclass(frozen=True)
class EvaluateConfig:
    pack: Path | None = None
    """The drawings that python -m ldm.corpus made."""
    judge: Path | None = None
    """The folder of the classifier, with a pack."""
    reference: Path | None = None
    """A folder of captioned pictures, in place of a pack."""
    model: str | None = None
    """A pipeline's directory or hub id, in place of the bundled model."""
    everyday_only: bool = False
    """With a pack: prompts of the names in ldm/everyday.txt only, which the bundled model has seen most."""
    prompts: int = 500
    """With a pack: how many of seen and how many of held-out pairs."""
    number: int = 10_000
    """With a folder: how many of its pictures at most, drawn by the seed, each with one of its captions."""
    steps: tuple[int, ...] = (20,)
    schedulers: tuple[str, ...] = ()
    """At each number of steps, in place of the model's own."""
    guidance: float | None = None
    """The model's own if not given."""
    diversity: int = 10
    """Prompts of which ten seeds each are compared."""
    inception: Path | None = None
    """torch-fidelity's Inception weights: FID, KID, precision and recall on its features as well."""
    clip: str | None = None
    """A CLIP model's directory or hub id: CLIP scores as well."""
    device: str = "auto"
    batch: int = 32
    offload: str = "none"
    """Where the model waits in main memory: by its parts ("model") or layers ("sequential")."""
    attention_slicing: bool = False
    vae_tiling: bool = False
    """As the one before, less memory for more time."""
    allow_download: bool = False
    seed: int = 0
    sheet: Path | None = None
    """Write the first 64 pictures here."""
    out: Path | None = None
    """Write the results here, as JSON."""


@dataclass(frozen=True)
class Prompts:
    """Texts, their real pictures (uint8 RGB), and the names to be recognised, where there are any."""

    texts: tuple[str, ...]
    pictures: tuple[np.ndarray, ...]
    names: tuple[str, ...] = ()
    pairs: int = 0


def prompts_of(pictures: np.ndarray, records: list[Drawing], chosen: list[int], number: int, seed: int) -> Prompts:
    """`number` captions of the chosen drawings, each with a rendering that shows what it says. Pairs come again, in
    other words and on other grounds, only after all of them came once."""
    if not chosen:
        raise ValueError("the pack has no such (name, style) pairs")
    order = np.random.default_rng(seed).permutation(chosen)
    texts, placed, names = [], [], []
    for i in range(number):
        index = int(order[i % len(order)])
        rng = np.random.default_rng([seed, i])
        placement = sample_placement(rng, records[index])
        texts.append(caption(rng, records[index], placement.colour, placement.ground))
        placed.append(place(pictures[index], records[index], placement))
        names.append(records[index].label)
    return Prompts(tuple(texts), tuple(placed), tuple(names), min(len(order), number))


def reference_of(folder: Path, number: int, seed: int) -> Prompts:
    """`number` of a folder's pictures at most and one caption of each, both drawn by the seed. A picture that came
    again with each of its captions would be its own neighbour in the real set."""
    captions: dict[Path, list[Captioned]] = defaultdict(list)
    for each in read_captioned(folder):
        captions[each.path].append(each)
    rng, pictures = np.random.default_rng(seed), list(captions.values())
    chosen = [pictures[i] for i in rng.permutation(len(pictures))[:number]]
    found = [lines[rng.integers(len(lines))] for lines in chosen]
    return Prompts(tuple(each.caption for each in found), tuple(squared(each, REFERENCE_SIDE) for each in found))


def draw(
    pipeline: DiffusionPipeline, texts: Sequence[str], seeds: list[int], steps: int, config: EvaluateConfig
) -> tuple[list[np.ndarray], int]:
    """Pictures of the texts, uint8 RGB (H, W, 3), each from its own seed, and how many of them the pipeline's safety
    checker made black."""
    options = step_options(pipeline, steps) | {"output_type": "np"}
    own = own_guidance(pipeline)
    if own is not None:
        options["guidance_scale"] = own if config.guidance is None else config.guidance
    made: list[np.ndarray] = []
    black = 0
    for start in range(0, len(texts), config.batch):
        part = slice(start, start + config.batch)
        generators = [torch.Generator().manual_seed(s) for s in seeds[part]]
        output = pipeline(list(texts[part]), generator=generators, **options)
        made.extend(np.round(output.images * 255).astype(np.uint8))  # ten thousand as floats would fill the memory
        black += sum(map(bool, getattr(output, "nsfw_content_detected", None) or ()))
        print(f"\r{start + len(texts[part])} of {len(texts)} pictures", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return made, black


def measure(
    pipeline: DiffusionPipeline, sets: dict[str, Prompts], judge: Judge | None, steps: int, config: EvaluateConfig
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Every measure by name, and the pictures made for the last set, which is the one that is compared as a set."""
    results: dict[str, float] = {}
    black = 0
    for what, prompts in sets.items():
        seeds = [config.seed + i for i in range(len(prompts.texts))]
        made, withheld = draw(pipeline, prompts.texts, seeds, steps, config)
        black += withheld
        results[f"{what} n"] = len(made)
        if judge:
            results[f"{what} pairs"] = prompts.pairs
            features, scores = judge(np.stack(made))
            answers = np.array([judge.names.index(name) for name in prompts.names])
            results[f"{what} top-1"], results[f"{what} top-5"] = top_shares(scores, answers)
            real, of_real = judge(np.stack(prompts.pictures))
            results[f"{what} top-5 of renderings"] = top_shares(of_real, answers)[1]
    if judge:
        results |= compare(real, features, "judge's ")
    if config.inception:
        features, real = (inception_features(p, config.inception) for p in (made, prompts.pictures))
        results |= compare(real, features, "")
    if config.clip:
        results["CLIP score"] = clip_score(made, prompts.texts, config.clip, config.allow_download)
    if config.diversity:
        first = next(iter(sets.values())).texts[: config.diversity]
        seeds = list(range(10)) * len(first)
        tens, withheld = draw(pipeline, [t for t in first for _ in range(10)], seeds, steps, config)
        black += withheld
        closest = [smallest_difference(np.stack(tens[i : i + 10])) for i in range(0, len(tens), 10)]
        results["prompts with ten different pictures"] = float(np.mean([c > SAME for c in closest]))
        results["closest two of ten seeds"] = min(closest)
    if getattr(pipeline, "safety_checker", None):
        results["black by the safety checker"] = black
    return results, made


def check(config: EvaluateConfig) -> None:
    """Raises ValueError for what would fail only after the work; see `check_work` too."""
    for name in ("steps", "prompts", "number", "batch"):
        value = getattr(config, name)
        if not value or np.min(value) < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
    for file in (config.sheet, config.out):
        if file and (file.is_dir() or not file.parent.is_dir()):
            raise ValueError(f"{file} could not be written: it must be a file in a folder that exists")
    if config.sheet and config.sheet.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{config.sheet}: a sheet is a .png, .jpg or .webp file")
    if config.clip:
        load_clip(config.clip, config.allow_download)
    if config.inception:
        inception_features([np.zeros((REFERENCE_SIDE, REFERENCE_SIDE, 3), np.uint8)], config.inception)


def check_work(
    pipeline: DiffusionPipeline, sets: dict[str, Prompts], judge: Judge | None, config: EvaluateConfig
) -> None:
    """Raises ValueError for a scheduler that the model does not take, and where a set is too small to be compared."""
    for name in config.schedulers:
        with_scheduler(pipeline, name)
    number = len(list(sets.values())[-1].texts)
    if (judge or config.inception) and number < LEAST:
        raise ValueError(f"{number} pictures cannot be compared as a set; at least {LEAST} are needed")


def read_sets(config: EvaluateConfig) -> tuple[dict[str, Prompts], Judge | None]:
    """The prompts to draw, by the name of their set. Raises ValueError where the configuration names none."""
    if (config.pack is None) == (config.reference is None):
        raise ValueError("give either --pack, with --judge, or --reference")
    if config.reference:
        if config.judge:
            raise ValueError("a judge names the drawings of a pack: leave --judge out with --reference")
        return {"reference": reference_of(config.reference, config.number, config.seed)}, None
    assert config.pack
    judge = load_judge(config.judge) if config.judge else None
    pictures, records, _ = load_pack(config.pack)
    known = set(judge.names) if judge else {r.label for r in records}
    usable = [i for i, r in enumerate(records) if r.label in known and (r.everyday or not config.everyday_only)]
    sets = {
        what: prompts_of(pictures, records, [i for i in usable if records[i].held_out == held], config.prompts, seed)
        for what, held, seed in (("seen", False, config.seed), ("held-out", True, config.seed + 1))
    }
    return sets, judge


def write_sheet(path: Path, pictures: list[np.ndarray]) -> None:
    """Rows of eight."""
    import cv2

    rows = [np.concatenate(pictures[i : i + 8], axis=1) for i in range(0, len(pictures) // 8 * 8, 8)]
    if not cv2.imwrite(str(path), np.concatenate(rows or [pictures[0]])[..., ::-1]):
        raise ValueError(f"{path} could not be written")


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as a Markdown table: a row for each measure, a column for each sampler."""
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for name in next(iter(results.values())):
        lines.append(f"| {name} | " + " | ".join(f"{each[name]:.4g}" for each in results.values()) + " |")
    return "\n".join(lines)


def main(config: EvaluateConfig) -> int:
    try:
        check(config)
        sets, judge = read_sets(config)
        memory = (config.offload, config.attention_slicing, config.vae_tiling)
        shared = load(config.model, config.device, "auto", config.allow_download, *memory)
        check_work(shared, sets, judge, config)
        results: dict[str, dict[str, float]] = {}
        for name in config.schedulers or (None,):
            for steps in config.steps:
                label = f"{name or type(shared.scheduler).__name__.removesuffix('Scheduler')}, {steps} steps"
                results[label], made = measure(with_scheduler(shared, name), sets, judge, steps, config)
                if config.out:
                    config.out.write_text(json.dumps(results, indent=1))  # each column, since the next may fail
        print(table(results))
        if config.sheet:
            write_sheet(config.sheet, made[:64])
    except Exception as error:
        return told("ldm.evaluate", error, "a smaller --batch")
    return 0


if __name__ == "__main__":
    from degradation.arguments import run_command

    sys.exit(run_command(main, EvaluateConfig, "ldm.evaluate", __doc__))
