"""The pipeline for batches of tensors, on a CPU or on CUDA: to feed a GPU. Needs torch.

Images whose next step is of one kind take it together, whatever their sizes and parameters. Each lies
in the top left corner of a canvas as large as the largest of them; what lies outside is never read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from degradation.batched_borders import Size
from degradation.batched_steps import apply_group
from degradation.draw import check_multiple, size_after
from degradation.plan import Decimate, Jpeg, Plan, Resize, Step


def apply_plans_batched(images: Tensor, plans: Sequence[Plan], generator: torch.Generator | None = None) -> Tensor:
    """(N, 3, H, W) float32 RGB in [0, 1] and N plans → (N, 3, H/scale, W/scale), on the same device.

    What ``apply_plan`` does, to within rounding: over 45 dB for each step alone. For JPEG, computed here
    without its lossless half, that is the median of many images: a coefficient that rounds the other way
    is a whole step off, and an image of few blocks can be at 25 dB for it. Without a generator the noise is
    the very noise of the plans, drawn on the host from their seeds. With one, on the images' device, the
    noise is drawn there instead: of the same distribution, faster on a GPU, and not repeatable from the plan.
    Raises ValueError for another shape or type, plans of other sizes than the images, of several
    scales, or not one for each image.
    """
    _check(images, plans)
    steps = [(plan.sharpen, *plan.steps) if plan.sharpen else plan.steps for plan in plans]
    scale, size = plans[0].scale, plans[0].size
    result = _run(images, steps, generator)
    if result.shape[2:] != (size[0] // scale, size[1] // scale):
        raise ValueError(f"the plans' steps end at {tuple(result.shape[2:])} pixels")
    return result


def targets_batched(images: Tensor, plans: Sequence[Plan]) -> Tensor:
    """The high-resolution side: the images, those sharpened whose plan says so. Errors as above."""
    _check(images, plans)
    return _run(images, [(plan.sharpen,) if plan.sharpen else () for plan in plans], None)


def _run(images: Tensor, steps: Sequence[tuple[Step, ...]], generator: torch.Generator | None) -> Tensor:
    """Each image through its steps; the next kind of step is always the one that most of them wait for."""
    kind = images.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):  # as in a training step
        with torch.autocast(kind, enabled=False):
            return _run(images, steps, generator)
    canvas = images
    sizes: list[Size] = [(images.shape[2], images.shape[3])] * len(images)
    done = [0] * len(images)
    while waiting := _waiting(steps, done):
        group = max(waiting.values(), key=len)
        group_steps = [steps[i][done[i]] for i in group]
        height, width = (max(sizes[i][axis] for i in group) for axis in (0, 1))
        index = torch.tensor(group, device=images.device)
        changed = apply_group(canvas[index, :, :height, :width], [sizes[i] for i in group], group_steps, generator)
        for i, step in zip(group, group_steps, strict=True):
            sizes[i] = size_after(step, sizes[i])
            done[i] += 1
        canvas = _put(canvas, index, changed, sizes)
    height, width = sizes[0]
    if any(size != (height, width) for size in sizes):
        raise ValueError(f"the plans' steps end at different sizes: {sorted(set(sizes))}")
    return canvas[:, :, :height, :width].clone()


def _waiting(steps: Sequence[tuple[Step, ...]], done: Sequence[int]) -> dict[Hashable, list[int]]:
    """Which images wait for which kind of step."""
    waiting: dict[Hashable, list[int]] = defaultdict(list)
    for i, count in enumerate(done):
        if count < len(steps[i]):
            waiting[_kind(steps[i][count])].append(i)
    return waiting


def _kind(step: Step) -> Hashable:
    """Steps of one kind can be taken together."""
    match step:
        case Resize():
            return Resize, step.interpolation
        case Decimate():
            return Decimate, step.factor
        case Jpeg():
            return Jpeg, step.subsampling
    return type(step).__name__


def _put(canvas: Tensor, index: Tensor, changed: Tensor, sizes: Sequence[Size]) -> Tensor:
    """The canvas with the changed images in it, just large enough for all images."""
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    if changed.shape[0] == canvas.shape[0]:
        return changed[:, :, :height, :width]  # groups ascend
    canvas = canvas[:, :, :height, :width]
    canvas = F.pad(canvas, (0, width - canvas.shape[3], 0, height - canvas.shape[2]))  # a copy
    changed = changed[:, :, :height, :width]
    canvas[index, :, : changed.shape[2], : changed.shape[3]] = changed
    return canvas


def _check(images: Tensor, plans: Sequence[Plan]) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.float32:
        raise ValueError(f"images are float32 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    if len(plans) != len(images) or not plans:
        raise ValueError(f"{len(images)} images need as many plans, got {len(plans)}")
    for plan in plans:
        if tuple(plan.size) != tuple(images.shape[2:]) or plan.scale != plans[0].scale:
            raise ValueError(
                f"a plan is for {plan.size[0]}×{plan.size[1]} pixels and scale {plan.scale}, the images "
                f"have {images.shape[2]}×{images.shape[3]}, and the first plan scale {plans[0].scale}"
            )
        check_multiple(*plan.size, plan.scale)
