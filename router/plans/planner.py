"""The part of a bundle that plans."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from router.errors import BundleError, CheckError, DialError
from router.plans.calibration import Calibration
from router.plans.checks import AGREEMENT, CheckModel, KnownChecks, combined
from router.plans.engine import PlanEngine, look_inputs

PLAN_FILE = "plan.onnx"
CHECKS_FILE = "checks.json"
CALIBRATION_FILE = "calibration.npz"
GOLDEN_PLANS_FILE = "golden_plans.jsonl"
PLAN_FILES = (PLAN_FILE, CHECKS_FILE, CALIBRATION_FILE, GOLDEN_PLANS_FILE)
"""A bundle that plans has all of them, another none."""

MOST_CALLS = 3
MOST_CLASSES = 16
_MOST_LOOKS = 100


@dataclass(frozen=True, eq=False)
class Looks:
    """What plans may look at, and how many calls they may make.

    verifiers: in the order of their names. agreement: whether answers are compared. max_calls: 1 to 3.
    """

    verifiers: tuple[CheckModel, ...]
    agreement: bool
    max_calls: int
    n_tiers: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all checks."""
        return (*([AGREEMENT] if self.agreement else []), *(check.name for check in self.verifiers))

    @cached_property
    def key(self) -> tuple[object, ...]:
        """The same for the same plans."""
        figures = tuple((check.name, check.declared, check.verdicts, check.usd) for check in self.verifiers)
        return figures, self.agreement, self.max_calls

    @cached_property
    def inputs(self) -> Mapping[str, np.ndarray]:
        """As the plan graph takes them."""
        check = combined(self.verifiers, self.n_tiers)
        return look_inputs(check, self.n_tiers, agreement=self.agreement, max_calls=self.max_calls)


@dataclass(frozen=True)
class Planner:
    """The part of a bundle that plans.

    known: the checks that the bundle learned. calibration: what promises on plans are proven on.
    golden: the content of golden_plans.jsonl, which `router.golden` checks.
    """

    engine: PlanEngine
    known: KnownChecks
    calibration: Calibration
    golden: bytes = field(repr=False)
    n_tiers: int
    _known_looks: dict[tuple[object, ...], Looks] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, contents: Mapping[str, bytes], n_tiers: int, source: str, n_threads: int) -> Planner | None:
        """From the files of a bundle; None where it has none of PLAN_FILES. Raises BundleError where they do not fit.

        The operators of the graph must have been checked before.
        """
        missing = [name for name in PLAN_FILES if name not in contents]
        if len(missing) == len(PLAN_FILES):
            return None
        if missing:
            raise BundleError(f"{source}: {' and '.join(missing)} missing; copy the bundle again")
        known = KnownChecks.parse(contents[CHECKS_FILE], n_tiers, f"{source}/{CHECKS_FILE}")
        calibration = Calibration.parse(contents[CALIBRATION_FILE], n_tiers, f"{source}/{CALIBRATION_FILE}")
        if missing := [name for name in known.verifiers if name not in calibration.scores]:
            raise BundleError(f"{source}: {CALIBRATION_FILE} lacks the check {', '.join(missing)}; train it again")
        try:
            engine = PlanEngine(contents[PLAN_FILE], n_threads)
            engine.try_out(n_tiers)
        except Exception as error:  # ONNX Runtime raises bare subclasses of Exception.
            raise BundleError(f"{source}: {PLAN_FILE} cannot be run ({error}); train the bundle again") from error
        return cls(
            engine=engine, known=known, calibration=calibration, golden=contents[GOLDEN_PLANS_FILE], n_tiers=n_tiers
        )

    def looks(self, checks: Collection[str | CheckModel] | None, max_calls: int) -> Looks:
        """What a request may look at.

        checks: names of checks that the bundle learned, or checks that were declared; None takes agreement where the
        bundle knows it. Raises CheckError where one is not known, DialError where max_calls is not 1, 2 or 3.
        """
        if isinstance(checks, str) or not isinstance(checks, Collection | None):
            raise CheckError(f"checks is {checks!r}; expected a list of names")
        key = (None if checks is None else tuple(checks), max_calls)
        try:
            found = self._known_looks.get(key)
        except TypeError:  # What is not hashable is no name of a check, which is said below.
            return self._looks(checks, max_calls)
        if found is None:
            found = self._looks(checks, max_calls)
            if len(self._known_looks) < _MOST_LOOKS:
                self._known_looks[key] = found
        return found

    def _looks(self, checks: Collection[str | CheckModel] | None, max_calls: int) -> Looks:
        if isinstance(max_calls, bool) or max_calls not in range(1, MOST_CALLS + 1):
            raise DialError(f"max_calls is {max_calls!r}; expected 1 to {MOST_CALLS}")
        if checks is None:
            return self._of((), agreement=self.known.agreement is not None, max_calls=max_calls)
        verifiers: dict[str, CheckModel] = {}
        for check in checks:
            if isinstance(check, CheckModel):
                verifiers[check.name] = check
            elif check != AGREEMENT:
                verifiers[check] = self._verifier(check)
        if AGREEMENT in checks and self.known.agreement is None:
            raise CheckError("the bundle has not learned when answers agree; log `answer` and train again")
        ordered = tuple(verifiers[name] for name in sorted(verifiers))
        for check in ordered:
            if check.verdicts_input.shape != (2, self.n_tiers, check.n_classes, 2) or len(check.usd) != self.n_tiers:
                raise CheckError(
                    f"the check {check.name!r} has not the figures of {self.n_tiers} tiers; declare it anew"
                )
        if (n_classes := math.prod(check.n_classes for check in ordered)) > MOST_CLASSES:
            raise CheckError(
                f"the checks {', '.join(check.name for check in ordered)} have {n_classes} classes of scores together; "
                f"expected at most {MOST_CLASSES}: name fewer of them"
            )
        return self._of(ordered, agreement=AGREEMENT in checks, max_calls=max_calls)

    def _of(self, verifiers: tuple[CheckModel, ...], *, agreement: bool, max_calls: int) -> Looks:
        return Looks(verifiers=verifiers, agreement=agreement, max_calls=int(max_calls), n_tiers=self.n_tiers)

    def _verifier(self, name: str) -> CheckModel:
        try:
            return self.known.verifiers[name]
        except (KeyError, TypeError):
            known = ", ".join(self.known.names) or "none"
            raise CheckError(
                f"the bundle has not learned the check {name!r} (it knows: {known}); "
                "log it as check_NAME and train again, or declare its figures"
            ) from None
