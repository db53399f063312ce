"""Plans are plain data and survive JSON exactly."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from degradation import PRESETS, Plan, sample_plan
from degradation.plan import STEP_NAMES, Blur, Jpeg, Resize, step_from_dict, step_to_dict


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(PRESETS)), st.sampled_from([2, 4]))
def test_every_plan_survives_json_exactly(seed, preset, scale):
    plan = sample_plan(np.random.default_rng(seed), preset, scale, (64, 96))
    copy = Plan.from_json(plan.to_json())
    assert copy == plan and hash(copy) == hash(plan)
    assert copy.to_json() == plan.to_json()
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_plans_hold_plain_python_values_only():
    plain = (int, float, str, bool, type(None))

    def check(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            for item in value:
                check(item)
        else:
            assert type(value) in plain, type(value)

    for seed in range(100):
        check(sample_plan(np.random.default_rng(seed), "bsr-plus", 4, (64, 64)).to_dict())
        check(sample_plan(np.random.default_rng(seed), "bsr", np.int64(4), np.array([64, 64])).to_dict())
        check(sample_plan(np.random.default_rng(seed), "bsr", 4.0, (64, 64)).to_dict())


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0))
def test_every_float_survives(sigma):
    step = step_from_dict(json.loads(json.dumps(step_to_dict(Blur(sigma)))))
    assert step == Blur(sigma) and math.copysign(1, step.sigma) == math.copysign(1, sigma)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"op": "melt"}, "melt"),
        ({"op": "blur", "sigma": 1.0, "strength": 2}, "strength"),
        ({"op": "blur"}, "needs sigma"),
        ({"op": "jpeg", "quality": 50.5}, "quality"),
        ({"op": "jpeg", "quality": True}, "quality"),
        ({"op": "jpeg", "quality": "50"}, "quality"),
        ({"op": "poisson_noise", "peak": 100, "grey": 1}, "grey"),
        ({"op": "gaussian_noise", "level": 3, "kind": "correlated", "mixing": [[1, 0], [0, 1]]}, "mixing"),
        ({"op": "gaussian_noise", "level": 3, "kind": "correlated", "mixing": [["a", 0, 0]] * 3}, "mixing"),
        ({"op": "gaussian_noise", "level": math.nan}, "level must be float, got nan"),
        ({"op": "poisson_noise", "peak": math.inf}, "peak must be float, got inf"),
        ({"op": "blur", "sigma": 10**400}, "sigma must be float"),
        (["blur"], "op"),
        ("blur", "op"),
    ],
)
def test_steps_that_are_none_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        step_from_dict(change)


@pytest.mark.parametrize(
    "change",
    [
        {"size": [64]},
        {"size": "64x64"},
        {"scale": "4"},
        {"scale": 0},
        {"scale": -4},
        {"scale": True},
        {"size": [64, True]},
        {"steps": None},
        {"sharpen": {"op": "blur", "sigma": 1}},
        {"extra": 1},
    ],
)
def test_plans_that_are_none_are_refused(change):
    data = Plan("bsr", 4, (64, 64), (Jpeg(50),)).to_dict()
    with pytest.raises(ValueError):
        Plan.from_dict({**data, **change})
    with pytest.raises(ValueError):
        Plan.from_json("not JSON")


def test_steps_are_frozen_and_named():
    assert set(STEP_NAMES) >= {"blur", "resize", "jpeg", "camera_noise"}
    with pytest.raises(AttributeError):
        Resize(4, 4).height = 5
