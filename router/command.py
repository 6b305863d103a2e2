"""What every subcommand of `broker` is made of."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DONE, FAILED, BAD_INPUT = 0, 1, 2
"""Exit codes; router.cli says all of them."""


@dataclass(frozen=True)
class Command:
    """A subcommand.

    help: one line about it. add_arguments: adds its arguments to a parser. run: does the work, returns the exit code.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def say(text: str) -> None:
    """Write one line of results to stdout."""
    sys.stdout.write(text + "\n")


def usd_text(amount: float) -> str:
    """An amount with six decimals; where that leaves fewer than three digits, with three: "0.00000141"."""
    if not 0 < abs(amount) < 1e-4:
        return f"{amount:.6f}"
    return f"{amount:.{2 - math.floor(math.log10(abs(amount)))}f}"


def own_command() -> str:
    """How this process was called, such as `broker` or `.venv/bin/broker`, to be pasted from the present folder."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("router", "__main__.py"):
        return f"{pasted(sys.executable)} -m router"
    return pasted(called) if called.stem == "broker" else "broker"


def neighbour_command(name: str) -> str:
    """The command of this name in the environment of this process, to be pasted from the present folder."""
    return pasted(Path(sys.executable).with_name(name))


def pasted(program: str | Path) -> str:
    """A program as a shell finds it from the present folder: by name where it is on the PATH, else by its path."""
    program = Path(program)
    found = shutil.which(program.name)
    if not program.exists() or (found is not None and os.path.samefile(found, program)):
        return shlex.quote(program.name)
    path = Path(os.path.abspath(program))  # Not resolved: an interpreter of an environment is a link out of it.
    if not path.is_relative_to(Path.cwd()):
        return shlex.quote(str(path))
    within = path.relative_to(Path.cwd())
    return shlex.quote(f"./{within}" if len(within.parts) == 1 else str(within))
