"""How much of one policy's behaviour is in the log of another, and whether that is enough to judge it.

The conditions look at weights only, never at rewards: refusing samples because of the rewards they drew would spoil the
coverage of the others. Why these limits: benchmarks/off_policy.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.evaluation.logged_choices import LoggedChoices

MIN_SAMPLE_SIZE = 50.0
"""Least effective sample size with which a result is given."""

MIN_VARIANCE_CARRIERS = 10.0
"""Least effective number of requests that make up the sum of squared weights."""

MAX_WEIGHT_ERROR = 0.2
"""The mean of the weights, 1 in expectation, may differ from 1 by so much."""

MAX_UNSUPPORTED_SHARE = 0.01
"""This share of the evaluation policy may have had no chance of being logged; the bias is at most that share."""


@dataclass(frozen=True)
class Overlap:
    """How much of what the evaluation policy does is in the log.

    With w the weight of a request, P(evaluation policy takes the logged tier) / propensity:

    effective_sample_size: (sum w)^2 / sum w^2 (Kong 1992): so many requests logged by the evaluation policy itself
        would say as much.
    attainable_sample_size: the most to expect of any log with such propensities. It includes the requests whose
        logged tier the evaluation policy does not take, so a lucky draw of tiers cannot raise it.
    variance_carriers: (sum w^2)^2 / sum w^4: so many requests make up the variance of the weights.
    mean_weight: 1 in expectation; less where something that the evaluation policy does was not drawn.
    unsupported_share: share of the evaluation policy that cannot have an outcome in the log: it takes a tier that was
        never logged, or another tier than one logged with propensity 1.
    never_logged_share: the part of it on tiers that were never logged.
    max_weight, top_percent_share: the largest weight; the share of all weight on the 1 % of requests with the most.
    """

    n: int
    effective_sample_size: float
    attainable_sample_size: float
    variance_carriers: float
    mean_weight: float
    unsupported_share: float
    never_logged_share: float
    max_weight: float
    top_percent_share: float
    min_propensity: float

    @classmethod
    def of(cls, log: LoggedChoices, evaluation_probability: np.ndarray) -> Overlap:
        """From a log and the evaluation policy's distribution over tiers, (n, n_tiers)."""
        n, n_tiers = evaluation_probability.shape
        taken = evaluation_probability[np.arange(n), log.action]
        weight = taken / log.propensity
        logged = np.bincount(log.action, minlength=n_tiers) > 0
        on_never_logged = evaluation_probability[:, ~logged].sum(axis=1)
        is_certain = log.propensity == 1
        # By Cauchy-Schwarz E[w^2] of a request is no less than if all other tiers were one.
        others = np.where(is_certain, 0.0, (1 - taken) ** 2 / np.where(is_certain, 1.0, 1 - log.propensity))
        least_square = float((taken**2 / log.propensity + others).mean())
        squares = float((weight**2).sum())
        top = np.sort(weight)[-max(1, n // 100) :]
        return cls(
            n=n,
            effective_sample_size=float(weight.sum()) ** 2 / squares if squares else 0.0,
            attainable_sample_size=n / least_square if least_square else 0.0,
            variance_carriers=squares**2 / float((weight**4).sum()) if squares else 0.0,
            mean_weight=float(weight.mean()),
            unsupported_share=float(np.where(is_certain, 1 - taken, on_never_logged).mean()),
            never_logged_share=float(on_never_logged.mean()),
            max_weight=float(weight.max()),
            top_percent_share=float(top.sum() / weight.sum()) if squares else 0.0,
            min_propensity=float(log.propensity.min()),
        )

    @property
    def refusal(self) -> str | None:
        """Why the overlap does not carry a number: found, needed, what to do; None where it does."""
        sample_size = min(self.effective_sample_size, self.attainable_sample_size)
        explore = "let the behavior policy explore more (raise Policy.exploration), or log more requests"
        if self.unsupported_share > MAX_UNSUPPORTED_SHARE:
            return (
                f"{self.unsupported_share:.1%} of what the evaluation policy does had no chance of being logged "
                f"({self.never_logged_share:.1%} on tiers that were never logged, the rest where another tier had "
                f"propensity 1); needed: at most {MAX_UNSUPPORTED_SHARE:.0%}. Let the behavior policy explore "
                "(Policy.exploration above 0) among all tiers, and log again"
            )
        if sample_size < MIN_SAMPLE_SIZE:
            return (
                f"the {self.n:,} logged requests carry as much as {sample_size:.1f} requests of the evaluation policy "
                f"itself (effective sample size); needed: at least {MIN_SAMPLE_SIZE:g}. To get there, {explore}"
            )
        if self.variance_carriers < MIN_VARIANCE_CARRIERS:
            return (
                f"{self.variance_carriers:.1f} requests with large weights (up to {self.max_weight:.0f}) decide the "
                f"result; needed: at least {MIN_VARIANCE_CARRIERS:g}. To get there, {explore}"
            )
        if abs(self.mean_weight - 1) > MAX_WEIGHT_ERROR:
            return (
                f"the weights average {self.mean_weight:.2f} where 1 is expected; needed: within {MAX_WEIGHT_ERROR:g} "
                "of it. Either the logged propensities are not those with which tiers were chosen, or too few explored "
                f"requests were drawn: {explore}"
            )
        return None
