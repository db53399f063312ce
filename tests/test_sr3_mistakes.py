"""What ends a program: one line for what its user can change, and a traceback for the rest."""

import pytest
import torch
from safetensors import SafetensorError

from sr3.mistakes import told


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("size is 0;\n  it must be more"), "size is 0; it must be more"),
        (FileNotFoundError(2, "No such file", "a"), "[Errno 2] No such file: 'a'"),
        (SafetensorError("I/O error: No space left on device"), "I/O error: No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "out of memory; a smaller batch takes less"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory; a smaller batch takes less"),
        (MemoryError(), "out of memory; a smaller batch takes less"),
        (OSError(), "OSError"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told("us", error, "a smaller batch") == 2
    assert capsys.readouterr() == ("", f"us: {line}\n")


def test_an_interruption_is_one_line_and_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert told("us", KeyboardInterrupt(), "a smaller batch") == 130
    assert capsys.readouterr() == ("", "us: interrupted\n")


@pytest.mark.parametrize("error", [RuntimeError("shape"), KeyError("a"), ZeroDivisionError()])
def test_any_other_error_is_a_fault_of_ours(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        told("us", error, "a smaller batch")
    assert raised.value is error
