"""Off-policy evaluation: what a policy would have kept and cost, from the log of another one.

A production log has the outcome of one tier per request and the propensity with which it was chosen. The policy
that chose is the behavior policy, the one to be judged the evaluation policy. With w = P(evaluation policy takes
the logged tier) / propensity, r the logged success or cost, and q an estimate of it for every tier:

- direct method: mean of q under the evaluation policy; as good as q.
- IPS: mean of w r (Horvitz & Thompson 1952, JASA 47); unbiased where every tier it takes could have been logged.
- SNIPS: sum of w r / sum of w (Swaminathan & Joachims 2015, NeurIPS); never outside the rewards' range.
- doubly robust: direct method + mean of w (r - q) (Dudik, Langford & Li 2011, ICML); right where either the
  propensities or q are. It is the one to read.

Intervals are Student's t on the estimator's linearised scores (the sandwich variance), with the degrees of freedom
that the scores' kurtosis leaves (Satterthwaite 1946): few large weights leave few. The direct method's error is that
of q, which no spread of q shows, only the weighted residuals: its interval is the doubly robust one, stretched to
hold its value.

Where the overlap of the two policies does not carry a number, none is given: see `Overlap.refusal`. Its conditions
look at weights alone, never at rewards: to refuse samples for the rewards they drew would spoil the coverage of the
others. How near to nominal the intervals come, and why these limits: benchmarks/off_policy.md.

Open Bandit Pipeline (Saito et al. 2021), whose vocabulary this is, would be the library for it; its last release
(obp 0.5.7, April 2023) requires Python below 3.11 and pins numpy 1.23, pandas 1.5, scikit-learn 1.1 and torch 1.12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.stats import t as student_t

from router.bundle.bundle import Bundle
from router.errors import PromptError
from router.policy import Policy, resolve_dials
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import Tier, log_names
from router.prompt import prompt_text, valid_unicode
from training.errors import ConfigError, LogError
from training.evaluation.bundle_graph import BundleGraph
from training.evaluation.training_data import TrainingData
from training.fit.calibrate import PRIOR_PROMPTS, fit_calibration
from training.log.split import fold_numbers

MIN_SAMPLE_SIZE = 50.0
"""Least effective sample size that carries a number."""

MIN_VARIANCE_CARRIERS = 10.0
"""Least effective number of requests that make up the sum of squared weights."""

MAX_WEIGHT_ERROR = 0.2
"""The weights' mean, 1 in expectation, may be so far from it."""

MAX_UNSUPPORTED_SHARE = 0.01
"""So much of the evaluation policy may lie where the log cannot have an outcome; the bias is at most that share."""

N_FOLDS = 5


@dataclass(frozen=True)
class LoggedChoices:
    """One row per logged decision. action: int, the tier taken; propensity: P(it was taken), in (0, 1].

    correct: 0..1. cost_usd: of that attempt, at the prices to be judged at. All (n,).
    Raises LogError where anything is out of range, not finite, or of another length.
    """

    action: np.ndarray
    propensity: np.ndarray
    correct: np.ndarray
    cost_usd: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.action)
        if n < 2:
            raise LogError(f"found {n} logged decisions; expected at least 2 (some hundreds are sensible)")
        if not np.issubdtype(self.action.dtype, np.integer) or self.action.ndim != 1 or (self.action < 0).any():
            raise LogError("action is not a one-dimensional array of tier numbers from 0")
        for name, low, high in (("propensity", 0.0, 1.0), ("correct", 0.0, 1.0), ("cost_usd", 0.0, np.inf)):
            values = getattr(self, name)
            if values.shape != (n,):
                raise LogError(f"{name} has shape {values.shape}; expected ({n},), as action has")
            broken = ~(np.isfinite(values) & (values >= low) & (values <= high))
            if name == "propensity":
                broken |= values == 0
            if broken.any():
                wanted = "above 0 and at most 1" if name == "propensity" else f"finite, from {low:g} to {high:g}"
                raise LogError(
                    f"{name} of {int(broken.sum())} of {n} rows is not {wanted} (found {values[broken][0]}); "
                    "log what the router's decision says, or leave these rows out"
                )


@dataclass(frozen=True)
class PolicyValue:
    """An estimate with its interval. degrees_of_freedom: of its variance; below 30, few requests make up most of it."""

    value: float
    low: float
    high: float
    degrees_of_freedom: float


@dataclass(frozen=True)
class Estimates:
    """The mean of one measure under the evaluation policy, by each estimator."""

    direct_method: PolicyValue
    ips: PolicyValue
    snips: PolicyValue
    doubly_robust: PolicyValue


@dataclass(frozen=True)
class Overlap:
    """How much of what the evaluation policy does is in the log.

    effective_sample_size: (sum w)^2 / sum w^2 (Kong 1992): as many requests logged by the evaluation policy
        itself would carry as much.
    attainable_sample_size: at most so much can be expected of any log with such propensities. It takes in the
        requests whose logged tier the evaluation policy does not take, so a lucky draw of tiers cannot raise it.
    variance_carriers: (sum w^2)^2 / sum w^4: as many requests make up the variance of the weights.
    mean_weight: 1 in expectation; less where something the evaluation policy does was not drawn.
    unsupported_share: share of the evaluation policy that the log cannot have an outcome of: another tier than
        one logged with propensity 1, or a tier that was never logged.
    never_logged_share: the second part of it.
    max_weight, top_percent_share: the largest weight; share of all weight on the 1 % of requests with most.
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


@dataclass(frozen=True)
class OffPolicyReport:
    """Quality (share of correct answers) and cost (USD per request) of the evaluation policy.

    quality, cost_usd: None where `refused` says why the overlap carries no number.
    left_out: logged rows that were not used, per reason.
    """

    quality: Estimates | None
    cost_usd: Estimates | None
    overlap: Overlap
    refused: str | None
    confidence: float
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def effective_sample_size(self) -> float:
        """As many requests logged by the evaluation policy itself would carry as much (Kong 1992)."""
        return self.overlap.effective_sample_size


@dataclass(frozen=True)
class PolicyComparison:
    """Challenger minus champion on the same log, doubly robust, with paired intervals; None where refused.

    The requests on which both do the same cancel, so the difference is known better than either value.
    """

    quality: PolicyValue | None
    cost_usd: PolicyValue | None
    champion: Overlap
    challenger: Overlap
    refused: str | None
    confidence: float


# ---- on arrays -------------------------------------------------------------------------------------


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
        the request's own outcome (out of fold, or from other data); else the direct method is optimistic and the
        doubly robust estimate biased towards it. All (n, n_tiers).
    The evaluation policy itself must come from other data too: one fitted to these outcomes looks too good.
    Raises LogError for arrays of a wrong shape or range, ConfigError for a confidence outside (0, 1).
    """
    _check(log, confidence, evaluation_probability, predicted_success, predicted_cost_usd)
    overlap = Overlap.of(log, evaluation_probability)
    if refused := overlap.refusal:
        return OffPolicyReport(None, None, overlap, refused, confidence)
    quality = estimates_regardless(log, log.correct, evaluation_probability, predicted_success, confidence)
    cost_usd = estimates_regardless(log, log.cost_usd, evaluation_probability, predicted_cost_usd, confidence)
    return OffPolicyReport(quality, cost_usd, overlap, None, confidence)


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
    return PolicyComparison(quality, cost_usd, **overlaps, refused="; ".join(reasons) or None, confidence=confidence)


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


# ---- a bundle on a log -----------------------------------------------------------------------------


def off_policy_evaluate(
    bundle: str | Path | Bundle,
    logs: pd.DataFrame,
    *,
    quality: float | None = None,
    worth_usd: float | None = None,
    prices: str | Path | None = None,
    confidence: float = 0.95,
) -> OffPolicyReport:
    """What a bundle would have kept and cost at some dials, on requests that another policy answered.

    logs: one row per decision: `prompt` or `messages`, `model`, `correct`, `propensity`; `input_tokens` and
        `output_tokens`, or `cost_usd`; optional `request_id`, `question_key`.
    quality, worth_usd: the dials, as for Router.route.
    prices: a file in the format of tiers.toml; decides and pays at these prices, from the logged tokens. None takes
        the bundle's prices for decisions and the logged cost where there is one.

    The estimates of success and cost are the bundle's, recalibrated per tier on the other folds of the log. Rows the
    bundle was trained on are left out, as are rows that cannot be used (`left_out`); this is fair as long as whether
    a row was judged depends on neither tier nor outcome.
    Raises BundleError, PriceError, DialError, and LogError where columns are missing, a request_id appears twice, a
    propensity is not in (0, 1], or no row is left.
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    manifest = loaded.manifest
    if prices is not None:
        loaded = replace(loaded, prices=PriceTable.read(prices, manifest.tiers))
    dials = resolve_dials(manifest, Policy(), quality, worth_usd, critical=False)
    training = TrainingData.load(TrainingData.path_of(loaded.path), manifest.bundle_id)
    usable = _usable_rows(logs, loaded.prices.tiers, training, prefer_logged_cost=prices is None)

    shipped = BundleGraph(loaded)
    estimates = shipped.estimates(usable.prompts)
    rows = np.arange(len(usable.prompts))
    priced = (
        usable.input_tokens * estimates["usd_per_mtok_input"][rows, usable.action]
        + usable.output_tokens * estimates["usd_per_mtok_output"][rows, usable.action]
    ) / 1e6
    cost_usd = np.where(np.isnan(usable.cost_usd), priced, usable.cost_usd)
    log = LoggedChoices(usable.action, usable.propensity, usable.correct, cost_usd)
    success, predicted_cost_usd = cross_fitted(
        log, estimates["success"].astype(float), estimates["cost_usd"].astype(float), usable.groups
    )
    probability = np.eye(len(manifest.tiers))[shipped.choices(estimates, dials.worth_usd, dials.slack)]
    report = evaluate_policy(log, probability, success, predicted_cost_usd, confidence=confidence)
    return replace(report, left_out=usable.left_out)


def cross_fitted(
    log: LoggedChoices, success: np.ndarray, cost_usd: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of success and cost, (n, n_tiers) each, recalibrated on the folds of the log a request is not in.

    success: Platt scaling per tier. cost_usd: times the tier's logged over estimated cost, held near 1 by a prior
    worth PRIOR_PROMPTS requests. groups: requests of one group stay in one fold, (n,).
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


@dataclass(frozen=True)
class _UsableRows:
    """Logged rows that can be judged; tokens and cost_usd are NaN where not logged or not to be used."""

    prompts: list[str]
    groups: np.ndarray
    action: np.ndarray
    propensity: np.ndarray
    correct: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    cost_usd: np.ndarray
    left_out: dict[str, int]


def _usable_rows(
    logs: pd.DataFrame, tiers: Sequence[Tier], training: TrainingData, *, prefer_logged_cost: bool
) -> _UsableRows:
    if missing := {"model", "correct", "propensity"} - set(logs.columns):
        raise LogError(f"the log has no column {', '.join(sorted(missing))}; off-policy evaluation needs it")
    if "request_id" in logs and (repeated := int(logs["request_id"].dropna().duplicated().sum())):
        raise LogError(
            f"{repeated} rows repeat a request_id; keep the row of the tier that the router chose, one per request"
        )
    tier_of = {name: index for index, tier in enumerate(tiers) for offer in tier.offers for name in log_names(offer)}
    prompts = _prompts(logs)
    groups = _question_groups(prompts, logs.get("question_key"))
    action = logs["model"].map(tier_of).to_numpy(float)
    numbers = {
        name: pd.to_numeric(logs[name], errors="coerce").to_numpy(float) if name in logs else np.full(len(logs), np.nan)
        for name in ("correct", "propensity", "input_tokens", "output_tokens", "cost_usd")
    }
    has_tokens = np.isfinite(numbers["input_tokens"] + numbers["output_tokens"])
    if not prefer_logged_cost:
        numbers["cost_usd"] = np.full(len(logs), np.nan)
    reasons = {
        "no prompt": np.array([prompt is None for prompt in prompts], dtype=bool),
        "model in no tier": np.isnan(action),
        "not judged yet": np.isnan(numbers["correct"]),
        "no propensity": np.isnan(numbers["propensity"]),
        "no tokens" + (" and no cost_usd" if prefer_logged_cost else ""): ~(
            has_tokens | np.isfinite(numbers["cost_usd"])
        ),
        "trained on": training.saw(groups),
    }
    keep, left_out = np.ones(len(logs), dtype=bool), {}
    for reason, applies in reasons.items():
        if count := int((keep & applies).sum()):
            left_out[reason] = count
        keep &= ~applies
    if keep.sum() < 2 * N_FOLDS:
        found = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items()) or "nothing left out"
        raise LogError(f"{int(keep.sum())} of {len(logs):,} rows can be judged ({found}); expected some hundreds")
    return _UsableRows(
        prompts=[prompt for prompt, kept in zip(prompts, keep, strict=True) if kept and prompt is not None],
        groups=groups[keep],
        action=action[keep].astype(int),
        left_out=left_out,
        **{name: values[keep] for name, values in numbers.items()},
    )


def _prompts(logs: pd.DataFrame) -> list[str | None]:
    """The text of every row's request; None where there is none."""
    if not {"prompt", "messages"} & set(logs.columns):
        raise LogError("the log has neither a column prompt nor messages; a bundle decides on the text")

    def text(prompt: object, messages: object) -> str | None:
        try:
            return valid_unicode(prompt_text(prompt or None, None if prompt else messages)) or None  # type: ignore[arg-type]
        except PromptError:
            return None

    absent = [None] * len(logs)
    columns = (logs[name].tolist() if name in logs else absent for name in ("prompt", "messages"))
    return [text(prompt if isinstance(prompt, str) else None, chat) for prompt, chat in zip(*columns, strict=True)]


def _question_groups(prompts: Sequence[str | None], question_keys: pd.Series | None) -> np.ndarray:
    """The group of every prompt, named as `ingest` names it: its question_key, else a digest of its letters."""
    keys = [None] * len(prompts) if question_keys is None else [None if pd.isna(k) else str(k) for k in question_keys]
    columns = {"row": pa.array(range(len(keys))), "prompt": pa.array(prompts, pa.string())}
    frame = pa.table({**columns, "question_key": pa.array(keys, pa.string())})
    with duckdb.connect() as db:
        db.register("frame", frame)
        rows = db.execute(_GROUPS).fetchall()
    return np.array([group for (group,) in rows], dtype=np.str_)


_GROUPS = r"""
    WITH bare AS (SELECT *, nullif(lower(regexp_replace(prompt, '[^\p{L}\p{N}]', '', 'g')), '') AS letters FROM frame)
    SELECT coalesce(CASE WHEN length(question_key) > 64 THEN sha256(question_key)[:16] ELSE question_key END,
                    sha256(coalesce(letters, prompt, ''))[:16])
    FROM bare ORDER BY row
"""
