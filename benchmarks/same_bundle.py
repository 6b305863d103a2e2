"""Whether the code of this checkout makes the same bundle and the same evaluation as an earlier revision, to the byte.

    .venv/bin/python benchmarks/same_bundle.py REVISION

The gate for a change that must not change what the project does, such as moving modules. Both train on the simulated
sample log with seed 0 and without tracking, and judge the bundle with `broker evaluate --json`. Prints every file that
differs; exit code 1 where one does. Bundles are compared within one machine and one set of libraries.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
LOG, TIERS = ROOT / "data" / "sample-log.parquet", ROOT / "data" / "tiers.toml"


def digests(code: Path, out: Path) -> dict[str, str]:
    """SHA-256 of each file of the bundle that this code makes, of what stands beside it, and of its evaluation."""
    broker = [sys.executable, "-m", "router"]
    environment = {**os.environ, "PYTHONPATH": str(code)}

    def run(*arguments: str) -> bytes:
        command = [*broker, *arguments]
        return subprocess.run(command, cwd=code, env=environment, check=True, capture_output=True).stdout

    bundle = out / "sample"
    run("train", "--logs", str(LOG), "--tiers", str(TIERS), "--out", str(bundle), "--tracking-uri", "none")
    contents = {path.name: path.read_bytes() for path in bundle.iterdir()}
    beside = bundle.with_name("sample-training.parquet")
    contents |= {beside.name: beside.read_bytes()}
    contents |= {"evaluate --json": run("evaluate", "--bundle", str(bundle), "--logs", str(LOG), "--json")}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="of git, for example main")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=2, unit="bundle") as bar:
        before, found = Path(folder) / "before", []
        subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(before)], check=True)
        subprocess.run(["git", "checkout", "--quiet", options.revision], cwd=before, check=True)
        for number, code in enumerate((before, ROOT)):
            found.append(digests(code, Path(folder) / str(number)))
            bar.update()
    then, now = found
    differing = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    print("\n".join(f"differs: {name}" for name in differing) or f"the same to the byte: {', '.join(sorted(now))}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
