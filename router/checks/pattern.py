"""An answer that a regular expression must match (extra `checks`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from router.checks.verdict import Verdict
from router.errors import CheckError
from router.extras import install_command

try:
    import regex
except ImportError as error:
    raise ImportError(f"router.checks.pattern needs regex: {install_command('checks')}") from error

MOST_CHARACTERS = 1_000_000
SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    r"""A check: the regular expression matches the answer.

    >>> Pattern(pattern=r"\d{4}-\d{2}-\d{2}", whole=True)("When?", "2026-11-26").score
    1.0

    pattern: in the syntax of the library `regex`, which takes what Python's `re` takes.
    whole: the whole answer must match, not only a part of it.
    seconds: no match may take longer. Some patterns, such as `(a+)+$`, take years on some answers.

    Raises CheckError where the pattern does not compile, and, when called, where the time is over: that is the
    pattern's fault and says nothing of the answer. An answer of more than a million characters fails.
    """

    pattern: str
    whole: bool = False
    seconds: float = SECONDS
    _compiled: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise CheckError(f"seconds is {self.seconds}; expected a number above 0")
        try:
            object.__setattr__(self, "_compiled", regex.compile(self.pattern))
        except (regex.error, RecursionError) as error:
            raise CheckError(f"the pattern {self.pattern!r} does not compile: {error}") from error

    def __call__(self, prompt: str, answer: str) -> Verdict:
        """Score 1 where the pattern matches, else 0."""
        if len(answer) > MOST_CHARACTERS:
            return Verdict(score=0.0, reason=f"the answer has more than {MOST_CHARACTERS} characters")
        match = self._compiled.fullmatch if self.whole else self._compiled.search
        try:
            found = match(answer, timeout=self.seconds) is not None
        except TimeoutError:
            raise CheckError(f"the pattern {self.pattern!r} took longer than {self.seconds} s on an answer") from None
        return Verdict(score=float(found), reason="matches the pattern" if found else "does not match the pattern")
