"""What a message says where an extra is missing. One place, so that the command it names is always one that works."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = "token-broker"


def install_command(extra: str) -> str:
    """The command that adds an extra, such as "train", to the package that runs.

    An installed package stays as it is: pip then looks for what the extra asks for and not for the package itself, so
    the command works whether or not a package index has it. Code that runs from its folder is installed from there.
    """
    return f"pip install '{_source()}[{extra}]'"


def _source() -> str:
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        return str(Path(__file__).parent.parent)
    return PACKAGE
