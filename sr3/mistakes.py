"""How a program ends that cannot go on: what its user can change in one line, for both rooms."""

import sys

from safetensors import SafetensorError

from degradation.arguments import interrupted
from sr3.memory import is_out_of_memory


def first_line(error: BaseException) -> str:
    """What an exception says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def told(prog: str, error: BaseException, less: str) -> int:
    """Exit code 2, after one line about a mistake, a file that cannot be read or written, or memory that ran out, of
    which `less` would take less; that of `interrupted` for Ctrl-C. Raises any other error."""
    if isinstance(error, KeyboardInterrupt):
        return interrupted(prog)
    if isinstance(error, (ValueError, OSError, SafetensorError)):
        line = " ".join(str(error).split()) or type(error).__name__
    elif is_out_of_memory(error):
        line = f"out of memory; {less} takes less"
    else:
        raise error
    print(f"{prog}: {line}", file=sys.stderr)
    return 2
