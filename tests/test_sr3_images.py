"""Pictures as tensors: every value, and what is refused."""

import numpy as np
import pytest
import torch

from sr3.images import to_tensor, to_uint8, to_uint16


@pytest.mark.parametrize(("dtype", "back"), [(np.uint8, to_uint8), (np.uint16, to_uint16)])
def test_every_value_survives_the_round_trip(dtype, back):
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(16, -1, 1).repeat(3, axis=2)
    tensor = to_tensor(values)
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(back(tensor)[0], values)


def test_tensors_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        to_tensor(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="floating point"):
        to_tensor(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 255.0])
def test_tensors_that_hold_no_picture_are_refused(value):
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        to_tensor(torch.full((1, 3, 8, 8), value))
