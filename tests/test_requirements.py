"""The lists with hashes pin what the lock file pins, and all that the extras ask for."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {
    "dev": ("train", "outcomes", "checks", "distributed", "feeds", "signing", "redis", "own", "dev"),
    "train": ("train", "outcomes", "feeds", "signing"),
    "gateway": ("gateway", "telemetry", "outcomes", "checks", "feeds", "signing", "redis"),
}
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(.*(?:\n    .*)*)", re.MULTILINE)


def pins(path: Path) -> set[tuple[str, str]]:
    return {(name, version) for name, version, _ in PIN.findall(path.read_text())}


def named(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ;]", line)[0].lower() for line in requirements if not line.startswith("#")}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_list_with_hashes_is_part_of_the_lock_and_has_all_that_its_extras_ask_for(name):
    path = ROOT / "requirements" / f"{name}.lock"
    assert pins(path) and pins(path) <= pins(ROOT / "requirements.lock"), "make lock"
    assert all(more.count("--hash=sha256:") for _, _, more in PIN.findall(path.read_text()))
    asked = named(PROJECT["project"]["dependencies"]) | named((ROOT / "requirements/build.in").read_text().splitlines())
    for extra in EXTRAS[name]:
        asked |= named(PROJECT["project"]["optional-dependencies"][extra])
    assert asked <= {package for package, _ in pins(path)}, "make lock"


def test_what_builds_the_package_is_in_the_lists():
    """Else a build without isolation, which takes nothing but them, would fail."""
    built_with = named(PROJECT["build-system"]["requires"])
    assert built_with <= named((ROOT / "requirements/build.in").read_text().splitlines())


def test_the_image_and_the_environment_for_tests_are_installed_by_hash():
    assert (
        "--require-hashes --no-deps --requirement requirements/train.lock"
        in (ROOT / "examples" / "schedule" / "Dockerfile").read_text()
    )
    assert "$(HASHED) requirements/dev.lock" in (ROOT / "Makefile").read_text()
