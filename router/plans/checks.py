"""What is known of a check: how often it passes right and wrong answers of each tier, and what it costs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from router.errors import BundleError, CheckError

AGREEMENT = "agreement"
"""The check that compares the answers of two tiers; it needs no verifier."""

MOST_SCORES = 4
"""Scores of a check are put into so many classes at most."""

_LEAST = 1e-4
_KEYS = ("usd", "sensitivity", "specificity")


@dataclass(frozen=True)
class CheckModel:
    """A verifier of answers.

    thresholds: rising scores that part the classes; a score belongs to as many classes as it reaches thresholds.
    verdicts: P(class | the answer is wrong or right) of each tier, for prompts that are hard and for easy ones, nested
        tuples (2, n_tiers, n_classes, 2). In between it moves in a straight line with the mean estimate of all tiers.
    usd: what one check of an answer costs, per tier.
    declared: its figures were stated, not learned from a log.
    evidence: what it was learned from, and its figures in words and numbers; for people.
    """

    name: str
    thresholds: tuple[float, ...]
    verdicts: tuple[Any, ...]
    usd: tuple[float, ...]
    declared: bool
    evidence: Mapping[str, Any] = field(compare=False)

    @cached_property
    def verdicts_input(self) -> np.ndarray:
        """`verdicts` as the plan graph takes them, float32 (2, n_tiers, n_classes, 2)."""
        return np.array(self.verdicts, np.float32)

    @cached_property
    def usd_input(self) -> np.ndarray:
        """`usd` as the plan graph takes it, float32 (n_tiers,)."""
        return np.array(self.usd, np.float32)

    @property
    def n_classes(self) -> int:
        """Number of classes of scores."""
        return len(self.thresholds) + 1

    def class_of(self, score: float) -> int:
        """The class of a score from 0 to 1."""
        return sum(score >= threshold for threshold in self.thresholds)

    def classes_of(self, scores: np.ndarray) -> np.ndarray:
        """The class of each score, int; the lowest where a score is NaN, since an answer not checked did not pass."""
        return np.asarray(np.searchsorted(self.thresholds, np.nan_to_num(scores), side="right"))

    @classmethod
    def with_figures(
        cls, name: str, n_tiers: int, *, sensitivity: float, specificity: float, usd: float = 0.0
    ) -> CheckModel:
        """A check that passes or not, known by its figures only, the same for every tier.

        sensitivity: P(passes | right). specificity: P(does not pass | wrong). usd: what one check costs.
        Raises CheckError where one of them is out of range.
        """
        for key, share in {"sensitivity": sensitivity, "specificity": specificity}.items():
            if not 0 <= share <= 1:
                raise CheckError(f"check {name}: {key} is {share!r}; expected a share from 0 to 1")
        if not (0 <= usd < math.inf):
            raise CheckError(f"check {name}: usd is {usd!r}; expected an amount of at least 0")
        right, wrong = (min(max(share, _LEAST), 1 - _LEAST) for share in (sensitivity, 1 - specificity))
        tier = ((1 - wrong, 1 - right), (wrong, right))
        return cls(
            name=name,
            thresholds=(0.5,),
            verdicts=((tier,) * n_tiers,) * 2,
            usd=(usd,) * n_tiers,
            declared=True,
            evidence={"sensitivity": sensitivity, "specificity": specificity, "usd": usd},
        )

    @classmethod
    def declared_by(cls, text: str, n_tiers: int) -> CheckModel:
        """From text such as "tests:sensitivity=1,specificity=0.86,usd=0"; raises CheckError."""
        name, _, rest = text.partition(":")
        figures: dict[str, float] = {}
        for part in rest.split(","):
            key, _, value = (word.strip() for word in part.partition("="))
            try:
                if key not in _KEYS:
                    raise ValueError
                figures[key] = float(value)
            except ValueError:
                raise CheckError(
                    f"check {text!r}: cannot read {part!r}; expected NAME:sensitivity=S,specificity=T[,usd=C]"
                ) from None
        if missing := [key for key in ("sensitivity", "specificity") if key not in figures]:
            raise CheckError(f"check {text!r}: {' and '.join(missing)} missing; expected both")
        return cls.with_figures(check_name(name.strip()), n_tiers, **figures)

    def to_json(self) -> dict[str, Any]:
        """The entry of checks.json."""
        return {
            "thresholds": list(self.thresholds),
            "verdicts": self.verdicts_input.astype(float).round(6).tolist(),
            "usd": list(self.usd),
            "evidence": dict(self.evidence),
        }

    @classmethod
    def from_json(cls, name: str, entry: Mapping[str, Any], n_tiers: int) -> CheckModel:
        """Raises ValueError, TypeError or KeyError where the entry has another form."""
        thresholds, usd = tuple(map(float, entry["thresholds"])), tuple(map(float, entry["usd"]))
        verdicts = np.array(entry["verdicts"], float)
        if not 1 <= len(thresholds) < MOST_SCORES or list(thresholds) != sorted(set(thresholds)):
            raise ValueError(f"check {name} has thresholds {thresholds}; expected 1 to {MOST_SCORES - 1}, rising")
        if verdicts.shape != (2, n_tiers, len(thresholds) + 1, 2) or len(usd) != n_tiers:
            raise ValueError(f"check {name} has verdicts of shape {verdicts.shape} and {len(usd)} prices")
        if not (
            np.isfinite(verdicts).all() and (verdicts >= 0).all() and np.allclose(verdicts.sum(axis=2), 1, atol=1e-3)
        ):
            raise ValueError(f"check {name} has verdicts that are no probabilities")
        if not all(0 <= each < math.inf for each in usd):
            raise ValueError(f"check {name} has prices {usd}; expected amounts of at least 0")
        return cls(
            name=check_name(name),
            thresholds=thresholds,
            verdicts=tuple(tuple(tuple(tuple(row) for row in tier) for tier in end) for end in verdicts.tolist()),
            usd=usd,
            declared=False,
            evidence=dict(entry.get("evidence", {})),
        )


@dataclass(frozen=True)
class KnownChecks:
    """The checks that a bundle learned.

    agreement: what it learned of the agreement of answers, for people; None where its log has no answers.
    verifiers: by name.
    """

    agreement: Mapping[str, Any] | None
    verifiers: Mapping[str, CheckModel]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all of them."""
        return (*([AGREEMENT] if self.agreement else []), *self.verifiers)

    def to_text(self) -> str:
        """The content of checks.json."""
        verifiers = {name: check.to_json() for name, check in self.verifiers.items()}
        return json.dumps({"agreement": self.agreement, "verifiers": verifiers}, ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def parse(cls, text: bytes, n_tiers: int, source: str) -> KnownChecks:
        """From checks.json; raises BundleError where it has another form."""
        try:
            document = json.loads(text)
            verifiers = document["verifiers"].items()
            return cls(
                agreement=document["agreement"],
                verifiers={name: CheckModel.from_json(name, entry, n_tiers) for name, entry in verifiers},
            )
        except (ValueError, TypeError, KeyError, AttributeError, CheckError, RecursionError) as error:
            raise BundleError(f"{source}: not as expected ({error}); train or copy the bundle again") from error


def check_name(name: str) -> str:
    """The name of a verifier; raises CheckError where it is none."""
    if not (name.isidentifier() and name.isascii()) or name == AGREEMENT:
        raise CheckError(f"found the check {name[:80]!r}; expected letters, digits and _, and not {AGREEMENT!r}")
    return name


def combined(checks: Sequence[CheckModel], n_tiers: int) -> CheckModel | None:
    """Several verifiers that look at every answer together, as one check; None for none of them.

    Their verdicts are taken to be independent of each other, given whether the answer is right.
    """
    if not checks:
        return None
    found = checks[0]
    for check in checks[1:]:
        product = found.verdicts_input[:, :, :, None, :] * check.verdicts_input[:, :, None, :, :]
        n_classes = found.n_classes * check.n_classes
        found = CheckModel(
            name=f"{found.name}+{check.name}",
            thresholds=tuple(range(1, n_classes)),
            verdicts=tuple(product.reshape(2, n_tiers, n_classes, 2).tolist()),
            usd=tuple(one + other for one, other in zip(found.usd, check.usd, strict=True)),
            declared=found.declared or check.declared,
            evidence={},
        )
    return found
