"""From pictures and plans to the records and sections of which a sheet is made."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from degradation.apply import apply_plan, apply_step
from degradation.draw import sample_plan
from degradation.plan import Plan, Step
from degradation.presets import Preset
from degradation.records import Record, Source, choose_source, cut, read_records, reopen
from degradation.resize import resize
from degradation.sheet import Panel, Section

Gallery = tuple[list[Record], list[Section]]


def choose_sources(
    paths: Sequence[Path], crop: int, max_side: int, multiple: int, skip_bad: bool
) -> Iterator[tuple[Source, np.ndarray]]:
    """``choose_source`` of each picture, ``crop`` pixels square.

    Raises ValueError for one that cannot be read; if ``skip_bad`` stderr names it, and the error is to have no other.
    """
    readable = 0
    for path in paths:
        try:
            chosen = choose_source(path, (crop, crop), max_side, multiple)
        except ValueError as error:
            if not skip_bad:
                raise ValueError(f"{error}{'; --skip-bad goes on without it' if len(paths) > 1 else ''}") from error
            print(error, file=sys.stderr)
        else:
            readable += 1
            yield chosen
    if not readable:
        raise ValueError(f"none of the {len(paths)} pictures could be read")


def draw_gallery(
    sources: Iterable[tuple[Source, np.ndarray]], preset: Preset, scale: int, n: int, seed: int
) -> Gallery:
    """``n`` new plans for each picture: plan i of picture j from the generator seeded [seed, j, i].

    Raises ValueError for whatever ``sample_plan`` refuses.
    """
    records, sections = [], []
    for j, (source, whole) in enumerate(sources):
        rngs = (np.random.default_rng([seed, j, i]) for i in range(n))
        plans = [sample_plan(rng, preset, scale, (source.box[2], source.box[3])) for rng in rngs]
        records.append(Record(source, tuple(plans)))
        sections.append(_section(records[-1], whole))
    return records, sections


def apply_by_hand(sources: Iterable[tuple[Source, np.ndarray]], steps: tuple[Step, ...]) -> Gallery:
    """The steps, one after the other, applied to each picture. Raises ValueError as they do."""
    records, sections = [], []
    for source, whole in sources:
        records.append(Record(source, by_hand=steps))
        sections.append(_section(records[-1], whole))
    return records, sections


def replay_gallery(file: Path, instead: Sequence[Path]) -> Gallery:
    """The plans in a file, on its own pictures, or on others ``instead``, as many as it has.

    Raises ValueError for another number of pictures, pictures too small, missing or changed.
    """
    records = read_records(file)
    if instead and len(instead) != len(records):
        raise ValueError(f"{file} has plans for {len(records)} pictures, but {len(instead)} are named")
    sections = []
    for j, record in enumerate(records):
        if instead:
            size = record.source.box[2:]
            source, whole = choose_source(instead[j], size, record.source.max_side)
            if source.box[2:] != size:
                raise ValueError(f"{instead[j]}: smaller than the {size[1]} × {size[0]} pixels of the plans")
            if source.sha256 == record.source.sha256:
                source = replace(source, box=record.source.box)
            records[j] = replace(record, source=source)
        else:
            whole = reopen(record.source, file.parent)
        sections.append(_section(records[j], whole))
    return records, sections


def _section(record: Record, whole: np.ndarray) -> Section:
    source, image = record.source, cut(whole, record.source.box)
    panels = [Panel("Original", image)]
    for count, step in enumerate(record.by_hand, start=1):
        panels.append(Panel(f"After {count}", apply_step(panels[-1].image, step), (step,)))
    if record.plans:
        scale = record.plans[0].scale
        low = resize(image, image.shape[0] // scale, image.shape[1] // scale)
        panels.append(Panel("Bicubic", low, note="antialiased, and nothing else"))
    panels += [_plan_panel(image, plan, number) for number, plan in enumerate(record.plans, start=1)]
    return Section(Path(source.path).name, _about(whole, image), whole, source.box, tuple(panels))


def _about(whole: np.ndarray, shown: np.ndarray) -> str:
    size, part = (f"{image.shape[1]} × {image.shape[0]}" for image in (whole, shown))
    if shown.size == whole.size:
        return f"{size} pixels"
    if shown.size > 0.9 * whole.size:
        return f"{size} pixels, cut to {part}"
    return f"{size} pixels; the bright part, {part}, is shown below"


def _plan_panel(image: np.ndarray, plan: Plan, number: int) -> Panel:
    steps = (plan.sharpen, *plan.steps) if plan.sharpen else plan.steps
    return Panel(f"{plan.preset} {number}", apply_plan(image, plan), steps)
