"""Command lines for every room: a dataclass's fields become options, and a mistake is told in one line. Where there is
no tyro, a JSON file holds them."""

import contextlib
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints


def parse_arguments(
    kind: Any, prog: str, description: str | None = None, arguments: Sequence[str] | None = None
) -> Any:
    """The command line (sys.argv's by default) as an object of the dataclass `kind`. Raises ValueError with tyro's
    boxed complaint as one line; `--help` ends the program."""
    import tyro

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
    try:
        return main(config)
    except KeyboardInterrupt:
        return interrupted(prog)


def interrupted(prog: str) -> int:
    """The exit code of a program that Ctrl-C ends, after one line."""
    print(f"{prog}: interrupted", file=sys.stderr)
    return 130


def from_json(path: Path, **stages: Any) -> Any:
    """The settings of the stage that the file names, or, of a single one, without a name. Raises ValueError for unknown
    keys, values of another type and broken files; OSError where there is no such file."""
    try:
        values = json.loads(path.read_text())
        stage = values.pop("stage", None) if len(stages) > 1 else next(iter(stages))
        if stage not in stages:
            raise ValueError(f"stage is {stage!r}; it must be one of {', '.join(stages)}")
        return stages[stage](**_read(stages[stage], values))
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no configuration: {error}") from None


def _read(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass from what JSON has for them."""
    hints: dict[str, Any] = get_type_hints(kind)
    inner: dict[str, Any] = {each.name: each.default_factory for each in fields(kind)}
    made = {}
    for name, value in values.items():
        if name not in hints:
            raise TypeError(f"{name} is no setting; there are {', '.join(hints)}")
        if is_dataclass(hint := hints[name]):
            if not isinstance(value, dict):
                raise TypeError(f"{name} is {value!r}; it must hold settings by name")
            made[name] = replace(inner[name](), **_read(hint, value))
            continue
        if get_origin(hint) is tuple and isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and Path in (hint, *get_args(hint)):
            value = Path(value)
        if not _fits(value, hint):
            raise TypeError(f"{name} is {values[name]!r}; it must be of type {getattr(hint, '__name__', hint)}")
        made[name] = value
    return made


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; a whole number may stand for a float."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(each, get_args(hint)[0]) for each in value)
    if get_args(hint):
        return any(_fits(value, each) for each in get_args(hint))
    if hint in (int, float, bool):
        return type(value) is hint or (hint is float and type(value) is int)
    return isinstance(value, hint)
