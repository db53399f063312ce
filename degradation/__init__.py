"""The BSR degradation pipeline: draw a plan, apply it, keep it.

Source: Zhang, Liang, Van Gool, Timofte, arXiv 2103.14006. ``python -m degradation.preview`` shows it.
"""

from degradation.apply import apply_plan, apply_step, crop_to_multiple, degrade, target
from degradation.draw import sample_plan
from degradation.plan import Plan
from degradation.presets import PRESETS, Preset

__all__ = [
    "PRESETS",
    "Plan",
    "Preset",
    "apply_plan",
    "apply_step",
    "crop_to_multiple",
    "degrade",
    "sample_plan",
    "target",
]
