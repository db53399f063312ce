"""Command lines: mistakes are one line and exit code 2, of every program."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from degradation.arguments import parse_arguments, run_command

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Options:
    path: Path
    steps: int = 4
    """How many."""


def test_fields_become_options():
    assert parse_arguments(Options, "us", arguments=["--path", "a", "--steps", "2"]) == Options(Path("a"), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--path"),
        (["--path", "a", "--foo"], "Unrecognized options: --foo"),
        (["--path", "a", "--steps", "many"], "'many'"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, monkeypatch, capsys):
    with pytest.raises(ValueError, match=message) as refused:
        parse_arguments(Options, "us", arguments=arguments)
    assert not set("│╭─\n") & set(str(refused.value))
    monkeypatch.setattr(sys, "argv", ["us", *arguments])
    assert run_command(lambda options: 0, Options, "us") == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("us: ") and said.err.count("\n") == 1 and message in said.err


def test_an_interruption_is_one_line_and_code_130(monkeypatch, capsys):
    def interrupt(options: Options) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["us", "--path", "a"])
    assert run_command(interrupt, Options, "us") == 130
    assert capsys.readouterr() == ("", "us: interrupted\n")


def test_help_is_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["us", "--help"])
    with pytest.raises(SystemExit) as stop:
        run_command(lambda options: 0, Options, "us", "What it does.")
    assert not stop.value.code
    assert "What it does." in capsys.readouterr().out


@pytest.mark.parametrize(
    "program", ["sr3", "sr3.train", "sr3.evaluate", "sr3.corpus", "ldm.train", "ldm.evaluate", "ldm.corpus"]
)
def test_every_program_says_so(program):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", program, "--foo"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"{program}: ") and done.stderr.count("\n") == 1, done.stderr
