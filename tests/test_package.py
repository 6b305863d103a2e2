"""What is released: the wheel has all that runs, the source makes the same wheel, and a missing extra is named."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from router.extras import install_command

ROOT = Path(__file__).parent.parent
PACKAGES = ("router", "training")
EXTRAS_MODULE = Path("router/extras.py")

pytest.importorskip("hatchling", reason="hatchling is not installed: it builds the package")


def build(source: Path, target: str, folder: Path) -> Path:
    """A wheel or an sdist of the project in `source`, built without the network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (made,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of a new environment with the wheel and the packages that it needs without any extra."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip(folder / "bin", "install", "--no-deps", str(wheel)).check_returncode()
    (site,) = folder.glob("lib/python*/site-packages")
    for package in needed_by("token-broker"):
        found = distribution(package)
        for top in {path.parts[0] for path in found.files or () if path.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    return folder / "bin"


def pip(environment: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run this interpreter's pip for another environment, without a package index."""
    command = [sys.executable, "-m", "pip", "--python", str(environment / "python"), "--disable-pip-version-check"]
    return subprocess.run([*command, *arguments, "--no-index"], capture_output=True, text=True)


def needed_by(name: str) -> set[str]:
    """The packages that a package asks for where no extra is wanted, and those that these ask for."""
    needed: set[str] = set()
    waiting = [name]
    while waiting:
        for line in distribution(waiting.pop()).requires or ():
            requirement = Requirement(line)
            is_wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if is_wanted and requirement.name not in needed:
                needed.add(requirement.name)
                waiting.append(requirement.name)
    return needed


def broker(environment: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`broker` of an environment, started far away from the checkout."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [environment / "broker", *arguments], cwd=folder, env=clean, capture_output=True, text=True, timeout=300
    )


# ---- what is in them -------------------------------------------------------------------------------


def test_the_wheel_has_every_file_of_the_packages_and_the_sample_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {"training/sample/sample-log.parquet", "training/sample/tiers.toml"}
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    with tarfile.open(build(ROOT, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
        (top,) = {name.split("/")[0] for name in archive.getnames()}
    assert (tmp_path / top / "docs").is_dir() and (tmp_path / top / "tests").is_dir()
    assert not list((tmp_path / top).rglob("node_modules"))
    again = build(tmp_path / top, "wheel", tmp_path / "again")
    assert again.name == wheel.name and again.read_bytes() == wheel.read_bytes()


# ---- once it is installed --------------------------------------------------------------------------


def test_an_installed_wheel_routes_with_nothing_but_its_own_dependencies(installed, bundle, tmp_path):
    assert re.fullmatch(r"token-broker \d+\.\d+\.\d+\n", broker(installed, tmp_path, "--version").stdout)
    done = broker(
        installed, tmp_path, "route", "--bundle", str(bundle), "--explain", "Prove that sqrt(2) is irrational."
    )
    assert done.returncode == 0 and done.stdout.split()[0] in {"edge", "distilled", "frontier"}
    assert done.stderr == ""


@pytest.mark.parametrize("command", [["demo"], ["train"], ["outcomes", "compact"], ["serve", "--demo"]], ids="-".join)
def test_a_command_whose_extra_is_missing_names_the_extra(installed, tmp_path, command):
    extra = {"outcomes": "outcomes", "serve": "gateway"}.get(command[0], "train")
    done = broker(installed, tmp_path, *command)
    assert done.returncode == 2
    assert done.stderr.startswith("broker: ") and f"pip install 'token-broker[{extra}]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_that_a_message_names_asks_the_index_for_the_extra_and_not_for_the_package(installed):
    """So it is right before the package is published, and wherever else it was installed from."""
    done = pip(installed, "install", "token-broker[outcomes]")
    missing = re.findall(r"No matching distribution found for ([\w-]+)", done.stderr)
    assert missing and set(missing) <= {"fsspec", "pyarrow"}


def test_the_demo_finds_its_log_inside_the_package(installed, tmp_path):
    code = "import importlib.util as u; print(u.find_spec('router').origin)"
    home = Path(subprocess.check_output([installed / "python", "-I", "-c", code], cwd=tmp_path, text=True)).parents[1]
    assert home.name == "site-packages" and (home / "training" / "sample" / "sample-log.parquet").is_file()


# ---- what messages and documents say ---------------------------------------------------------------


def test_code_that_runs_from_its_folder_is_installed_from_there(monkeypatch):
    assert install_command("train") == "pip install 'token-broker[train]'"
    monkeypatch.setattr("router.extras.PACKAGE", "no-such-package")
    assert install_command("train") == f"pip install '{ROOT}[train]'"


def test_one_place_says_how_an_extra_is_installed():
    files = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert [file for file in files if "pip install" in (ROOT / file).read_text()] == [EXTRAS_MODULE]


def test_every_package_has_the_same_version():
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert json.loads((ROOT / "examples" / "javascript" / "package.json").read_text())["version"] == python


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_what_a_workflow_runs_is_there_and_what_it_uses_has_a_version(path):
    text = path.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"run: make ([a-z-]+)", text)) <= targets
    for script in re.findall(r"run: (\.ci/\w+)", text):
        assert os.access(ROOT / script, os.X_OK), script
    used = re.findall(r"uses: (\S+)", text)
    assert used and all(re.search(r"@v\d+(\.\d+\.\d+)?$", name) for name in used)
    assert "permissions:\n  contents: read\n" in text


def test_documents_install_from_a_checkout():
    """No index has the package yet, and somebody else may take the name."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")]:
        assert not re.search(r"pip install [\"']?token-broker", path.read_text()), path
