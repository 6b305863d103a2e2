"""Judge a bundle on outcomes it was not trained on, through the graph that ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils
import pyarrow as pa
import pyarrow.parquet as pq

from router.bundle import GRAPH_FILE, Bundle
from training import baselines
from training.costs import attempt_costs
from training.embed import encoder_session, padded
from training.errors import LogError
from training.graph import DECISION_INPUTS
from training.ingest import LogSource, OutcomeTable, ingest
from training.metrics import (
    FIGURES,
    Interval,
    Outcomes,
    Policy,
    calibration_error,
    choices_by_worth,
    curve,
    interval,
    policy_figures,
    reliability,
    resamples,
    worth_grid,
)

MAX_BASELINE_PROMPTS = 50_000
MIN_SEGMENT_PROMPTS = 50
_SEGMENT_RESAMPLES = 200
_AT_RANDOM = {"apgr": 0.5, "cpt50": 0.5, "cpt80": 0.8}
_BATCH_SIZE = 64


# ---- what the baselines need -----------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingPart:
    """The prompts a bundle was trained on, without their text: what baselines are fitted on, and what must not be judged.

    embedding: float32 (n_prompts, n_dims); correct: (n_prompts, n_tiers), NaN unobserved.
    mean_cost_usd: (n_tiers,). best: the tier with the highest accuracy.
    """

    groups: np.ndarray
    embedding: np.ndarray
    correct: np.ndarray
    cost_usd: np.ndarray

    @property
    def mean_cost_usd(self) -> np.ndarray:
        """Mean cost of an attempt per tier, (n_tiers,)."""
        return self.cost_usd.mean(axis=0)

    def save(self, path: Path) -> None:
        """One Parquet file."""
        columns = {"group": pa.array(self.groups.tolist())}
        for name in ("embedding", "correct", "cost_usd"):
            values = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        unfinished = path.with_name(f".{path.name}.tmp")
        pq.write_table(pa.table(columns), unfinished, compression="zstd")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> TrainingPart:
        """Raises LogError where the file is missing or of another form."""
        try:
            table = pq.read_table(path)
            arrays = {
                name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
                for name in ("embedding", "correct", "cost_usd")
            }
            return cls(groups=np.array(table["group"].to_pylist(), dtype=np.str_), **arrays)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise LogError(
                f"{path}: cannot read the training part that stands beside a bundle ({error}); "
                "evaluate needs it to leave trained-on prompts out; train again, or copy it with the bundle"
            ) from error

    @staticmethod
    def path_of(bundle: str | Path) -> Path:
        """Where the training part of a bundle stands."""
        folder = Path(bundle)
        return folder.with_name(folder.name + "-training.parquet")


# ---- results ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyResult:
    """One policy's figures and the points of its curve."""

    figures: dict[str, Interval]
    curve: Sequence[tuple[float, float]]
    aiq: np.ndarray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """M of the evaluation's JSON; figures that do not apply are null."""
        named = {name: self.figures[name].to_json() if name in self.figures else None for name in FIGURES}
        return {**named, "curve": [list(point) for point in self.curve]}


@dataclass(frozen=True)
class DialResult:
    """What one quality of the dial kept and cost."""

    quality: float
    slack: float
    promised: bool
    accuracy: Interval
    usd_per_1k: Interval
    kept: Interval

    def to_json(self) -> dict[str, Any]:
        """One entry of "dial"."""
        figures = {name: getattr(self, name).to_json() for name in ("accuracy", "usd_per_1k", "kept")}
        return {"quality": self.quality, "slack": self.slack, "promised": self.promised, **figures}


@dataclass(frozen=True)
class Evaluation:
    """All that `broker evaluate` says.

    single: (accuracy, usd_per_1k) per tier. calibration: (ece, brier) per tier.
    reliability: per tier, (mean predicted, share correct, n) per bin.
    lead: AIQ of the router minus that of the best baseline, paired.
    shares: share of requests per tier at each quality of the dial, (n_qualities, n_tiers).
    """

    bundle_id: str
    tiers: tuple[str, ...]
    best_tier: str
    n_prompts: int
    n_trained_on: int
    n_incomplete: int
    estimated_cost_share: float
    single: Mapping[str, tuple[Interval, Interval]]
    router: PolicyResult
    baselines: Mapping[str, PolicyResult]
    best_baseline: str
    lead: Interval
    calibration: Mapping[str, tuple[Interval, Interval]]
    reliability: Mapping[str, Sequence[tuple[float, float, int]]]
    dial: Sequence[DialResult]
    shares: np.ndarray
    segments: Mapping[str, Mapping[str, Any]]
    length_log_error: Mapping[str, tuple[float, float]]
    cost_ratio: Mapping[str, float]

    @cached_property
    def verdict(self) -> str:
        """Whether the router beats the best baseline, in a sentence."""
        figures = (
            f"AIQ {self.router.figures['aiq'].value:.4f} against {self.baselines[self.best_baseline].figures['aiq'].value:.4f} "
            f"of {self.best_baseline}, difference {self.lead.value:+.4f} ({self.lead.low:+.4f} to {self.lead.high:+.4f})"
        )
        if self.lead.low > 0:
            return f"The router beats the best baseline: {figures}."
        if self.lead.value > 0:
            return f"The router is ahead of the best baseline, but within noise: {figures}."
        if self.lead.high >= 0:
            return f"The router does NOT beat the best baseline (the difference is within noise): {figures}."
        return f"The router does NOT beat the best baseline: {figures}."

    def to_json(self) -> dict[str, Any]:
        """The JSON of `broker evaluate --json`."""

        def pair(values: tuple[Interval, Interval], names: tuple[str, str]) -> dict[str, Any]:
            return {name: value.to_json() for name, value in zip(names, values, strict=True)}

        worst = max(self.calibration.values(), key=lambda tier: tier[0].value)
        return {
            "verdict": self.verdict,
            "bundle_id": self.bundle_id,
            "n_prompts": self.n_prompts,
            "n_trained_on": self.n_trained_on,
            "n_incomplete": self.n_incomplete,
            "estimated_cost_share": self.estimated_cost_share,
            "tiers": list(self.tiers),
            "best_tier": self.best_tier,
            "single": {tier: pair(values, ("accuracy", "usd_per_1k")) for tier, values in self.single.items()},
            "router": self.router.to_json(),
            "baselines": {name: result.to_json() for name, result in self.baselines.items()},
            "best_baseline": self.best_baseline,
            "lead_aiq": self.lead.to_json(),
            "calibration": {
                **pair(worst, ("ece", "brier")),
                "per_tier": {tier: pair(values, ("ece", "brier")) for tier, values in self.calibration.items()},
            },
            "dial": [point.to_json() for point in self.dial],
            "segments": {name: dict(entry) for name, entry in self.segments.items()},
            "output_tokens": {
                tier: {"log_error": model, "log_error_of_mean": mean}
                for tier, (model, mean) in self.length_log_error.items()
            },
            "cost_predicted_over_measured": dict(self.cost_ratio),
        }


# ---- the graph that ships --------------------------------------------------------------------------


@dataclass(frozen=True)
class Shipped:
    """A bundle's graph, cut where estimates become decisions, so that many dials can be tried on one estimate."""

    bundle: Bundle

    @cached_property
    def _decision_part(self) -> Any:
        model = onnx.load(self.bundle.path / GRAPH_FILE)
        return encoder_session(
            onnx.utils.Extractor(model).extract_model(
                ["success", "output_tokens", *DECISION_INPUTS], ["cost_usd", "tier"]
            )
        )

    def estimates(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """success, output_tokens, cost_usd (n_prompts, n_tiers), context_tokens (n_prompts,), and the prices used."""
        encoder = self.bundle.manifest.encoder
        encodings = self.bundle.tokenizer.encode_batch_fast([prompt[: encoder.max_chars] for prompt in prompts])
        ids = [encoding.ids for encoding in encodings]
        context = np.array(
            [encoder.context_tokens(len(prompt), len(row)) for prompt, row in zip(prompts, ids, strict=True)],
            np.float32,
        )
        quotes = [self.bundle.prices.quote(tokens, self.bundle.manifest.output_tokens) for tokens in context.tolist()]
        request = {
            "context_tokens": context,
            "usd_per_mtok_input": np.concatenate([quote.usd_per_mtok_input for quote in quotes]),
            "usd_per_mtok_output": np.concatenate([quote.usd_per_mtok_output for quote in quotes]),
            "eligible": np.concatenate([quote.eligible for quote in quotes]),
            "worth_usd": np.zeros(len(ids), np.float32),
            "slack": np.zeros(len(ids), np.float32),
        }
        names = ["success", "output_tokens", "cost_usd"]
        found = {name: np.empty((len(ids), len(self.bundle.manifest.tiers)), np.float32) for name in names}
        order = np.argsort([len(row) for row in ids], kind="stable")
        for start in range(0, len(order), _BATCH_SIZE):
            rows = order[start : start + _BATCH_SIZE]
            feeds = {**padded([ids[row] for row in rows]), **{name: value[rows] for name, value in request.items()}}
            for name, value in zip(names, self.bundle.session.run(names, feeds), strict=True):
                found[name][rows] = value
        return {**request, **found}

    def choices(self, estimates: Mapping[str, np.ndarray], worth_usd: float, slack: float) -> np.ndarray:
        """The tier chosen for every prompt at one setting of the dials, int (n_prompts,)."""
        n = len(estimates["context_tokens"])
        feeds = {name: estimates[name] for name in ("success", "output_tokens", *DECISION_INPUTS)}
        feeds |= {"worth_usd": np.full(n, worth_usd, np.float32), "slack": np.full(n, slack, np.float32)}
        (tier,) = self._decision_part.run(["tier"], feeds)
        return np.asarray(tier)


# ---- evaluate --------------------------------------------------------------------------------------


def evaluate(
    bundle: str | Path | Bundle,
    logs: LogSource | Sequence[LogSource],
    *,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """Judge a bundle on the prompts of logs that it was not trained on and that every tier answered.

    Raises BundleError, LogError (also where no such prompt is left).
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    table = ingest(logs, loaded.prices.tiers)
    on_step("ingest")
    training = TrainingPart.load(TrainingPart.path_of(loaded.path))
    return evaluate_table(loaded, table, training, seed=seed, on_step=on_step)


def evaluate_table(
    bundle: Bundle,
    table: OutcomeTable,
    training: TrainingPart,
    *,
    vectors: np.ndarray | None = None,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """The same on an ingested table; vectors are the embeddings of its prompts, computed where not given."""
    trained_on = np.isin(table.groups, training.groups)
    complete = np.isfinite(table.correct).all(axis=1)
    judged = ~trained_on & complete
    if judged.sum() < 2:
        raise LogError(
            f"no prompt to judge: of {table.n_prompts:,} prompts {int(trained_on.sum()):,} were trained on and "
            f"{int((~complete & ~trained_on).sum()):,} lack an outcome of some tier; give a log with other prompts"
        )
    vectors = None if vectors is None else vectors[judged]
    part = table.rows(judged)
    costs = attempt_costs(part, bundle.prices.tiers)
    manifest = bundle.manifest
    best = manifest.tiers.index(manifest.best_tier)
    outcomes = Outcomes(part.correct, costs.cost_usd, best)
    weights = resamples(part.n_prompts, seed)

    shipped = Shipped(bundle)
    estimates = shipped.estimates(part.prompts)
    on_step("estimates")
    worths = worth_grid(training.mean_cost_usd)
    router_policy = Policy(
        np.stack([shipped.choices(estimates, float(worth), 1.0) for worth in worths], axis=1),
        _gain(estimates["success"], best),
    )
    policies = _baseline_policies(training, part, outcomes, vectors, bundle, worths, seed)
    on_step("baselines")
    router = _result(router_policy, outcomes, weights)
    compared = {name: _result(policy, outcomes, weights) for name, policy in policies.items()}
    if router_policy.gain is not None:  # a random order recovers of the gap what it spends on calls
        compared["random"].figures.update({name: Interval(share, share, share) for name, share in _AT_RANDOM.items()})
    on_step("bootstrap")
    rivals = [name for name in compared if name != "oracle"]
    best_baseline = max(rivals, key=lambda name: compared[name].figures["aiq"].value)
    dial, shares = _dial(shipped, estimates, outcomes, weights)
    single = {
        tier: (_mean(part.correct[:, k], weights), _mean(costs.cost_usd[:, k] * 1000, weights))
        for k, tier in enumerate(manifest.tiers)
    }
    return Evaluation(
        bundle_id=manifest.bundle_id,
        tiers=manifest.tiers,
        best_tier=manifest.best_tier,
        n_prompts=part.n_prompts,
        n_trained_on=int(trained_on.sum()),
        n_incomplete=int((~complete & ~trained_on).sum()),
        estimated_cost_share=costs.estimated_share,
        single=single,
        router=router,
        baselines=compared,
        best_baseline=best_baseline,
        lead=interval(router.aiq - compared[best_baseline].aiq),
        calibration={
            tier: (
                interval(calibration_error(estimates["success"][:, k], part.correct[:, k], weights)),
                _mean((estimates["success"][:, k] - part.correct[:, k]) ** 2, weights),
            )
            for k, tier in enumerate(manifest.tiers)
        },
        reliability={
            tier: reliability(estimates["success"][:, k], part.correct[:, k]) for k, tier in enumerate(manifest.tiers)
        },
        dial=dial,
        shares=shares,
        segments=_segments(part, outcomes, router_policy, policies, shipped, estimates, seed),
        length_log_error=_length_errors(part, estimates["output_tokens"], manifest.output_tokens, manifest.tiers),
        cost_ratio={
            tier: float(estimates["cost_usd"][:, k].sum() / costs.cost_usd[:, k].sum())
            for k, tier in enumerate(manifest.tiers)
            if costs.cost_usd[:, k].sum() > 0
        },
    )


def _gain(success: np.ndarray, best: int) -> np.ndarray | None:
    """Predicted gain of the better of two tiers; None for more tiers."""
    return success[:, best] - success[:, 1 - best] if success.shape[1] == 2 else None


def _mean(values: np.ndarray, weights: np.ndarray) -> Interval:
    return interval(weights @ values.astype(np.float32))


def _result(policy: Policy, outcomes: Outcomes, weights: np.ndarray) -> PolicyResult:
    figures = policy_figures(policy, outcomes, weights)
    return PolicyResult(
        {name: interval(values) for name, values in figures.items()}, curve(policy, outcomes), figures["aiq"]
    )


def _baseline_policies(
    training: TrainingPart,
    part: OutcomeTable,
    outcomes: Outcomes,
    vectors: np.ndarray | None,
    bundle: Bundle,
    worths: np.ndarray,
    seed: int,
) -> dict[str, Policy]:
    """Every baseline of the report; the learned ones are fitted on the bundle's own training part."""
    n, n_tiers = outcomes.correct.shape
    mean_cost = training.mean_cost_usd
    cheapest = int(mean_cost.argmin())
    rng = np.random.default_rng(seed)
    ordered = np.where(outcomes.correct >= 0.5, outcomes.cost_usd, np.inf)
    oracle = np.where(np.isfinite(ordered).any(axis=1), ordered.argmin(axis=1), outcomes.cost_usd.argmin(axis=1))
    policies = {
        "random": Policy(np.tile(np.arange(n_tiers), (n, 1))),
        "cheapest": Policy(np.full((n, 1), cheapest)),
        "strongest": Policy(np.full((n, 1), outcomes.best)),
        "oracle": Policy(oracle[:, None], _gain(outcomes.correct, outcomes.best)),
    }
    if vectors is None:
        vectors = embed_with(bundle, part.prompts)
    rows = rng.permutation(len(training.embedding))[:MAX_BASELINE_PROMPTS]
    for fit in (baselines.knn, baselines.kmeans, baselines.linear):
        success = fit(training.embedding[rows], training.correct[rows], vectors)
        policies[fit.__name__] = Policy(choices_by_worth(success, mean_cost, worths), _gain(success, outcomes.best))
    return policies


def embed_with(bundle: Bundle, prompts: Sequence[str]) -> np.ndarray:
    """Embeddings by the encoder inside a bundle's graph, float32 (n_prompts, n_dims)."""
    model = onnx.utils.Extractor(onnx.load(bundle.path / GRAPH_FILE)).extract_model(
        ["input_ids", "attention_mask"], ["embedding"]
    )
    session = encoder_session(model)
    cut = [prompt[: bundle.manifest.encoder.max_chars] for prompt in prompts]
    ids = [encoding.ids for encoding in bundle.tokenizer.encode_batch_fast(cut)]
    return np.concatenate([session.run(None, padded([row]))[0] for row in ids])


def _dial(
    shipped: Shipped, estimates: Mapping[str, np.ndarray], outcomes: Outcomes, weights: np.ndarray
) -> tuple[list[DialResult], np.ndarray]:
    """What every quality of the dial keeps, and its shares of tiers."""
    rows = np.arange(len(outcomes.correct))
    best = weights @ outcomes.correct[:, outcomes.best].astype(np.float32)
    results, shares = [], []
    for point in shipped.bundle.manifest.dial:
        choice = shipped.choices(estimates, 0.0, point.slack)
        accuracy = weights @ outcomes.correct[rows, choice].astype(np.float32)
        results.append(
            DialResult(
                point.quality,
                point.slack,
                point.promised,
                interval(accuracy),
                _mean(outcomes.cost_usd[rows, choice] * 1000, weights),
                interval(accuracy / np.maximum(best, 1e-9)),
            )
        )
        shares.append(np.bincount(choice, minlength=outcomes.correct.shape[1]) / len(rows))
    return results, np.array(shares)


def _segments(
    part: OutcomeTable,
    outcomes: Outcomes,
    router: Policy,
    policies: Mapping[str, Policy],
    shipped: Shipped,
    estimates: Mapping[str, np.ndarray],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """AIQ of router and baselines, and what the default quality keeps, for segments with enough prompts."""
    manifest = shipped.bundle.manifest
    default = shipped.choices(estimates, 0.0, manifest.dial_point(manifest.default_quality).slack)
    result: dict[str, dict[str, Any]] = {}
    for segment in np.unique(part.segments):
        rows = np.flatnonzero(part.segments == segment)
        if not segment or len(rows) < MIN_SEGMENT_PROMPTS:
            continue
        local = Outcomes(outcomes.correct[rows], outcomes.cost_usd[rows], outcomes.best)
        weights = resamples(len(rows), seed, _SEGMENT_RESAMPLES)

        def aiq(
            policy: Policy, local: Outcomes = local, weights: np.ndarray = weights, rows: np.ndarray = rows
        ) -> dict[str, float]:
            return interval(policy_figures(Policy(policy.choices[rows]), local, weights)["aiq"]).to_json()

        chosen = np.arange(len(rows)), default[rows]
        result[str(segment)] = {
            "n_prompts": len(rows),
            "router": {"aiq": aiq(router)},
            "baselines": {name: {"aiq": aiq(policy)} for name, policy in policies.items()},
            "single": {tier: float(local.correct[:, k].mean()) for k, tier in enumerate(manifest.tiers)},
            "default_quality": {
                "accuracy": _mean(local.correct[chosen], weights).to_json(),
                "usd_per_1k": _mean(local.cost_usd[chosen] * 1000, weights).to_json(),
                "cost_of_best_tier": float(local.cost_usd[:, outcomes.best].mean() * 1000),
            },
        }
    return result


def _length_errors(
    part: OutcomeTable, predicted: np.ndarray, means: Sequence[float], tiers: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Mean absolute error of log output tokens, of the model and of the tier's mean, where lengths were logged."""
    errors = {}
    for k, tier in enumerate(tiers):
        rows = part.output_tokens[:, k] > 0
        if rows.any():
            logarithm = np.log(part.output_tokens[rows, k])
            errors[tier] = (
                float(np.abs(np.log(np.maximum(predicted[rows, k], 1e-3)) - logarithm).mean()),
                float(np.abs(np.log(means[k]) - logarithm).mean()),
            )
    return errors
