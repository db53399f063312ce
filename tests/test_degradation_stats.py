"""The distributions of many plans, drawn."""

import numpy as np
import pytest

from degradation import PRESETS, Plan, charts, drawing, sample_plan
from degradation.stats import draw_statistics

BLUE = (59, 110, 178)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("count", [1, 60])
def test_every_preset_can_be_drawn(preset, count):
    rng = np.random.default_rng(0)
    plans = [sample_plan(rng, preset) for _ in range(count)]
    sheet = draw_statistics(plans, preset)
    assert sheet.dtype == np.uint8 and sheet.shape[0] > 1000
    assert (sheet[:, -20:] == drawing.PAPER).all()


def test_plans_without_steps_can_be_drawn():
    assert draw_statistics([Plan("none", 1, (8, 8), ())], "none").size


def painted(chart, colour):
    return (chart == colour).all(axis=2)


def test_a_histogram_has_areas_in_proportion():
    chart = charts.histogram("t", "a", {"s": [1, 1, 1, 1, 2, 2, 4]}, (BLUE,), "u")
    columns = painted(chart, BLUE).sum(axis=0)
    heights = [columns[columns > 0].max(), np.unique(columns[columns > 0])[0]]
    assert heights[0] == pytest.approx(4 * heights[1], rel=0.05)


def test_bars_have_lengths_in_proportion():
    chart = charts.bars("t", "a", {"half": 0.5, "all": 1.0, "none": 0.0}, BLUE)
    lengths = sorted(set(painted(chart, BLUE).sum(axis=1)))
    assert len(lengths) == 3 and lengths[0] == 0
    assert lengths[2] == pytest.approx(2 * lengths[1], rel=0.03)


def test_a_scatter_shows_all_points_inside():
    chart = charts.scatter("t", "a", {"s": [(0, 0), (1, 2), (-1, -3)]}, (BLUE,), ("x", "y"))
    rows, columns = np.nonzero(painted(chart, BLUE))
    assert rows.max() - rows.min() > 150 and columns.max() - columns.min() > 300


def test_nothing_to_show_is_said():
    empty = charts.card("t", "a")
    assert not np.array_equal(charts.histogram("t", "a", {"s": []}, (BLUE,), "u"), empty)
    assert not np.array_equal(charts.scatter("t", "a", {"s": []}, (BLUE,), ("x", "y")), empty)
