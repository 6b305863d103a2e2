"""Off-policy evaluation: what a policy would have kept and cost, estimated from the log of another policy.

A production log has the outcome of one tier per request and the propensity with which it was chosen. The policy
that chose is the behavior policy; the policy to be judged is the evaluation policy. With w = P(evaluation policy takes
the logged tier) / propensity, r the logged success or cost, and q an estimate of it for every tier:

- direct method: mean of q under the evaluation policy; as good as q.
- IPS: mean of w r (Horvitz & Thompson 1952, JASA 47); unbiased where every tier it takes could have been logged.
- SNIPS: sum of w r / sum of w (Swaminathan & Joachims 2015, NeurIPS); never outside the rewards' range.
- doubly robust: direct method + mean of w (r - q) (Dudik, Langford & Li 2011, ICML); right where either the
  propensities or q are right. This is the one to read.

Intervals are Student's t on the estimator's linearised scores (the sandwich variance), with the degrees of freedom
that the scores' kurtosis leaves (Satterthwaite 1946): few large weights leave few. The error of the direct method is
that of q. The spread of q does not show it, only the weighted residuals do. Its interval is therefore the doubly robust
one, stretched to hold its value.

Where the overlap of the two policies is too small, no number is given: see `training.evaluation.overlap`. How close the
intervals come to their nominal coverage: benchmarks/off_policy.md.

Open Bandit Pipeline (Saito et al. 2021), whose vocabulary this is, would be the library for it; its last release
(obp 0.5.7, April 2023) requires Python below 3.11 and pins numpy 1.23, pandas 1.5, scikit-learn 1.1 and torch 1.12.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student_t

from training.errors import ConfigError, LogError
from training.evaluation.logged_choices import LoggedChoices
from training.evaluation.metrics import Interval
from training.evaluation.overlap import Overlap
from training.fit.calibrate import PRIOR_PROMPTS, fit_calibration
from training.log.split import fold_numbers

N_FOLDS = 5
ESTIMATORS = ("direct_method", "ips", "snips", "doubly_robust")


@dataclass(frozen=True)
class PolicyValue:
    """An estimate with its interval.

    degrees_of_freedom: of its variance; below 30, few requests make up most of it.
    """

    value: float
    low: float
    high: float
    degrees_of_freedom: float

    def times(self, factor: float) -> Interval:
        """The estimate and its interval in another unit."""
        return Interval(factor * self.value, factor * self.low, factor * self.high)


@dataclass(frozen=True)
class Estimates:
    """The mean of one measure under the evaluation policy, by each estimator."""

    direct_method: PolicyValue
    ips: PolicyValue
    snips: PolicyValue
    doubly_robust: PolicyValue


@dataclass(frozen=True)
class OffPolicyReport:
    """Quality (share of correct answers) and cost (USD per request) of the evaluation policy.

    quality, cost_usd: None where `refused` says why the overlap is too small for a result.
    """

    quality: Estimates | None
    cost_usd: Estimates | None
    overlap: Overlap
    refused: str | None
    confidence: float

    @property
    def accuracy(self) -> Interval | None:
        """Doubly robust share of correct answers; None where refused."""
        return None if self.quality is None else self.quality.doubly_robust.times(1.0)

    @property
    def usd_per_1k(self) -> Interval | None:
        """Doubly robust cost of 1,000 requests in USD; None where refused."""
        return None if self.cost_usd is None else self.cost_usd.doubly_robust.times(1000.0)

    @property
    def effective_sample_size(self) -> float:
        """So many requests logged by the evaluation policy itself would say as much (Kong 1992)."""
        return self.overlap.effective_sample_size


@dataclass(frozen=True)
class PolicyComparison:
    """Challenger minus champion on the same log, doubly robust, with paired intervals; None where refused.

    Requests on which both choose the same tier cancel, so the difference is known better than either value.
    """

    quality: PolicyValue | None
    cost_usd: PolicyValue | None
    champion: Overlap
    challenger: Overlap
    refused: str | None
    confidence: float


def evaluate_policy(
    log: LoggedChoices,
    evaluation_probability: np.ndarray,
    predicted_success: np.ndarray,
    predicted_cost_usd: np.ndarray,
    *,
    confidence: float = 0.95,
) -> OffPolicyReport:
    """Quality and cost of a policy on the log of another.

    evaluation_probability: the evaluation policy's distribution over tiers for every request; one-hot rows for a
        policy without chance. predicted_success, predicted_cost_usd: of every tier, from models that did not see
        the request's own outcome (out of fold, or from other data). Otherwise the direct method is optimistic and
        the doubly robust estimate is biased towards it. All (n, n_tiers).
    The evaluation policy must come from other data too: a policy fitted to these outcomes looks too good.
    Raises LogError for arrays of a wrong shape or range, ConfigError for a confidence outside (0, 1).
    """
    _check(log, confidence, evaluation_probability, predicted_success, predicted_cost_usd)
    overlap = Overlap.of(log, evaluation_probability)
    if refused := overlap.refusal:
        return OffPolicyReport(quality=None, cost_usd=None, overlap=overlap, refused=refused, confidence=confidence)
    quality = estimates_regardless(log, log.correct, evaluation_probability, predicted_success, confidence)
    cost_usd = estimates_regardless(log, log.cost_usd, evaluation_probability, predicted_cost_usd, confidence)
    return OffPolicyReport(quality=quality, cost_usd=cost_usd, overlap=overlap, refused=None, confidence=confidence)


def compare_policies(
    log: LoggedChoices,
    champion_probability: np.ndarray,
    challenger_probability: np.ndarray,
    predicted_success: np.ndarray,
    predicted_cost_usd: np.ndarray,
    *,
    confidence: float = 0.95,
) -> PolicyComparison:
    """Challenger minus champion, both judged on the same log; arguments and errors as for `evaluate_policy`."""
    both = {"champion": champion_probability, "challenger": challenger_probability}
    for probability in both.values():
        _check(log, confidence, probability, predicted_success, predicted_cost_usd)
    overlaps = {name: Overlap.of(log, probability) for name, probability in both.items()}
    reasons = [f"{name}: {overlap.refusal}" for name, overlap in overlaps.items() if overlap.refusal]
    quality = cost_usd = None
    if not reasons:

        def difference(reward: np.ndarray, predicted: np.ndarray) -> PolicyValue:
            champion, challenger = (_robust_scores(log, reward, each, predicted) for each in both.values())
            return _interval(challenger - champion, confidence)

        quality = difference(log.correct, predicted_success)
        cost_usd = difference(log.cost_usd, predicted_cost_usd)
    return PolicyComparison(
        quality=quality, cost_usd=cost_usd, **overlaps, refused="; ".join(reasons) or None, confidence=confidence
    )


def estimates_regardless(
    log: LoggedChoices, reward: np.ndarray, probability: np.ndarray, predicted: np.ndarray, confidence: float = 0.95
) -> Estimates:
    """Every estimate of one measure, whether or not the overlap carries it: for studies of the refusal rule.

    reward: (n,), log.correct or log.cost_usd; probability, predicted: (n, n_tiers), as for `evaluate_policy`.
    Not defined where every weight is 0.
    """
    weight = probability[np.arange(len(reward)), log.action] / log.propensity
    snips = float(weight @ reward / weight.sum())
    robust = _interval(_robust_scores(log, reward, probability, predicted), confidence)
    direct = float((probability * predicted).sum(axis=1).mean())
    return Estimates(
        direct_method=replace(robust, value=direct, low=min(direct, robust.low), high=max(direct, robust.high)),
        ips=_interval(weight * reward, confidence),
        snips=_interval(snips + weight * (reward - snips) / weight.mean(), confidence),
        doubly_robust=robust,
    )


def _robust_scores(
    log: LoggedChoices, reward: np.ndarray, probability: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    """What each request adds to the doubly robust estimate, (n,)."""
    rows = np.arange(len(reward))
    weight = probability[rows, log.action] / log.propensity
    return np.asarray((probability * predicted).sum(axis=1) + weight * (reward - predicted[rows, log.action]))


def _interval(scores: np.ndarray, confidence: float) -> PolicyValue:
    """Student's t interval for the mean of scores, with Satterthwaite's degrees of freedom for their variance."""
    n, value = len(scores), float(scores.mean())
    largest = float(np.abs(scores - value).max())
    if largest == 0:
        return PolicyValue(value, value, value, n - 1.0)
    squares = ((scores - value) / largest) ** 2  # scaled, so that no power of them vanishes
    total = float(squares.sum())
    kurtosis = n * float((squares**2).sum()) / total**2
    freedom = float(np.clip(2 * n / max(kurtosis - 1, 1e-9), 1, n - 1))
    half = float(student_t.ppf((1 + confidence) / 2, freedom)) * largest * (total / (n - 1) / n) ** 0.5
    return PolicyValue(value, value - half, value + half, freedom)


def _check(log: LoggedChoices, confidence: float, probability: np.ndarray, *predicted: np.ndarray) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence!r}; expected a share between 0 and 1, such as 0.95")
    n = len(log.action)
    if probability.ndim != 2 or len(probability) != n or log.action.max() >= probability.shape[-1]:
        raise LogError(
            f"evaluation_probability has shape {probability.shape}; expected ({n}, n_tiers) "
            f"with more than {log.action.max()} tiers, as logged"
        )
    if not (probability >= 0).all() or not np.allclose(probability.sum(axis=1), 1, atol=1e-6):
        raise LogError("evaluation_probability has rows that are no distribution; expected shares of at least 0, sum 1")
    for values in predicted:
        if values.shape != probability.shape or not np.isfinite(values).all():
            raise LogError(
                f"predictions have shape {values.shape} or gaps; expected finite values, shape {probability.shape}"
            )


def cross_fitted(
    log: LoggedChoices, success: np.ndarray, cost_usd: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of success and cost, recalibrated per tier on the folds of the log that a request is not in.

    success, cost_usd: estimates for every tier, (n, n_tiers). groups: text, (n,); requests of one group stay in one
        fold. Returns both, recalibrated, same shapes.
    Success is recalibrated linearly, on the scale of probabilities (see `training.fit.calibrate.fit_calibration`).
    Cost is multiplied by the tier's logged cost over its estimated cost; a prior worth PRIOR_PROMPTS requests holds
    this ratio near 1.
    """
    n, n_tiers = success.shape
    was_taken = np.arange(n_tiers) == log.action[:, None]
    correct = np.where(was_taken, log.correct[:, None], np.nan)
    paid = np.where(was_taken, log.cost_usd[:, None], 0.0)
    estimated = np.where(was_taken, cost_usd, 0.0)
    prior = np.maximum(PRIOR_PROMPTS * cost_usd.mean(axis=0), np.finfo(float).tiny)
    folds = fold_numbers(groups, N_FOLDS, seed=0)
    new_success, new_cost_usd = success.copy(), cost_usd.copy()
    for fold in np.unique(folds):
        held_out = folds == fold
        new_success[held_out] = fit_calibration(success[~held_out], correct[~held_out]).apply(success[held_out])
        ratio = (paid[~held_out].sum(axis=0) + prior) / (estimated[~held_out].sum(axis=0) + prior)
        new_cost_usd[held_out] = cost_usd[held_out] * ratio
    return new_success, new_cost_usd
