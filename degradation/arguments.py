"""Command lines for every room: a dataclass's fields become options, and a mistake is told in one line."""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro


def parse_arguments(
    kind: Any, prog: str, description: str | None = None, arguments: Sequence[str] | None = None
) -> Any:
    """The command line (sys.argv's by default) as an object of the dataclass `kind`. Raises ValueError with tyro's
    boxed complaint as one line; `--help` ends the program."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=arguments, prog=f"python -m {prog}", description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint.getvalue())  # no colours
    lines = [line.strip(" │╭╮╰╯─") for line in plain.splitlines()]
    _, *said = [line for line in lines if line.strip("-")] or [""]  # the first is the box's title
    ends = ("For full helptext", "Argument helptext")
    said = list(itertools.takewhile(lambda line: not line.startswith(ends), said))
    raise ValueError(" ".join(said) or "the command line was not understood (--help tells more)")


def run_command(main: Callable[[Any], int], kind: Any, prog: str, description: str | None = None) -> int:
    """`main` with what the command line says; its exit code, or 2 after one line about a mistake there."""
    try:
        config = parse_arguments(kind, prog, description)
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    return main(config)
