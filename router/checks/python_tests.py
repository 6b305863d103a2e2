"""Python code that must pass tests, in a process of its own with limits.

The limits are against accidents: an endless loop, a full memory, a flood of output. They are no sandbox. Code that
means harm can still read files, use the network, start a process that leaves its group, or pretend that the tests have
passed. Run answers that you do not trust in a container or a virtual machine.
"""

from __future__ import annotations

import ast
import math
import os
import re
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from router.checks.verdict import Verdict
from router.errors import CheckError

LONGEST_CODE = 200_000
LARGEST_FILE_MB = 16

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = {"python", "python3", "py"}

_UNFINISHED = "the process ended before the tests were through"

# Runs in the folder of the answer. Its arguments: the name of the file for the result, what stands there until the
# tests are through (so an answer that leaves early has not passed), seconds of processor time, bytes of memory and of
# a file.
_RUNNER = """
import os, resource, sys, types
name, unfinished = sys.argv[1:3]
limits = dict(zip(("CPU", "AS", "FSIZE", "CORE"), [*map(int, sys.argv[3:]), 0]))
for limit, most in limits.items():
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (most, most))
    except (ValueError, OSError):
        pass  # not every system can limit everything
del sys.argv[1:]
with open(name, "w") as file:
    file.write(unfinished)
answer = sys.modules["answer"] = types.ModuleType("answer")
names = vars(answer)
stage = "code"
try:
    for stage in ("code", "tests"):
        before = dict(names)
        with open(stage + ".py", "rb") as file:
            exec(compile(file.read(), stage + ".py", "exec"), names)
    for test, function in list(names.items()):
        if test.startswith("test_") and callable(function) and before.get(test) is not function:
            function()
    result = "passed"
except BaseException as error:
    result = f"the {stage} raised {type(error).__name__}"
with open(name, "w") as file:
    file.write(result)
    file.flush()
    os._exit(0)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonTests:
    """A check: the Python code of the answer passes the tests. A limit on accidents, not a sandbox: see the module.

    >>> check = PythonTests(tests="assert add(2, 3) == 5")
    >>> check("Write add.", "def add(a, b): return a + b").score
    1.0

    tests: Python that runs after the answer's code, in the same module (named `answer`): asserts, or functions named
        `test_...` without arguments, which are called.
    seconds: for code and tests together, by the clock.
    memory_mb: address space of the process. It holds on Linux; other systems may not limit it.

    The process gets none of this process's environment (so no keys), a temporary folder, no input, and nobody to read
    its output. It can import what is installed beside this Python. The process and its children are killed at the end.
    Needs POSIX. Blocks the thread that calls it until the tests are through.

    Raises CheckError where the tests are not valid Python or the limits make no sense, and, when called, where no
    process can be started.
    """

    tests: str
    seconds: float = 10.0
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        if os.name != "posix":
            raise CheckError(f"Python tests need POSIX for their limits; this is {os.name}")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise CheckError(f"seconds is {self.seconds}; expected a number above 0")
        if self.memory_mb < 64:
            raise CheckError(f"memory_mb is {self.memory_mb}; expected at least 64, which Python itself needs")
        try:
            ast.parse(self.tests)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise CheckError(f"the tests are not valid Python: {error}") from error

    def __call__(self, prompt: str, answer: str) -> Verdict:
        """Score 1 where code and tests run through, else 0."""
        code = code_of(answer)
        if len(code) > LONGEST_CODE:
            return Verdict(score=0.0, reason=f"the code has more than {LONGEST_CODE} characters")
        if not code.strip():
            return Verdict(score=0.0, reason="the answer has no code")
        try:
            with TemporaryDirectory(prefix="broker-tests-", ignore_cleanup_errors=True) as folder:
                reason = self._run(Path(folder), code)
        except OSError as error:
            raise CheckError(f"the tests cannot be run: {error}") from error
        return Verdict(score=float(reason == "passed"), reason=reason)

    def _run(self, folder: Path, code: str) -> str:
        """Runs code and tests in the folder; returns "passed" or why not."""
        result = folder / f"result-{secrets.token_hex(8)}"
        (folder / "code.py").write_bytes(code.encode("utf-8", "surrogatepass"))
        (folder / "tests.py").write_bytes(self.tests.encode("utf-8", "surrogatepass"))
        limits = [math.ceil(self.seconds) + 1, self.memory_mb * 2**20, LARGEST_FILE_MB * 2**20]
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _RUNNER, result.name, _UNFINISHED, *map(str, limits)],
            cwd=folder,
            env={"HOME": str(folder), "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            return f"not done after {self.seconds:g} s"
        finally:
            _kill_group(process)
        if not result.is_file():
            raise CheckError(f"the tests cannot be run: {sys.executable} ended with {process.returncode} at its start")
        with result.open("rb") as file:
            return " ".join(file.read(200).decode("utf-8", "replace").split()) or _UNFINISHED


def code_of(answer: str) -> str:
    """The Python code of an answer: its blocks marked as Python, else its blocks without a mark, else all of it.

    Several blocks are joined in their order. A block that is not closed reaches to the end.
    """
    blocks = [(mark.lower(), body) for mark, body in _FENCE.findall(answer)]
    python = [body for mark, body in blocks if mark in _PYTHON] or [body for mark, body in blocks if not mark]
    return "\n".join(python) if blocks else answer


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and what it has started, and waits for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # nobody is left; macOS says so by the latter
        pass
    process.wait()
