"""What every subcommand of `broker` is made of."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

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
