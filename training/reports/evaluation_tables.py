"""The tables of an evaluation, for terminal, page and model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from router.bundle.manifest import DialPoint, Manifest
from training.evaluation.dials import DialResult, dials_text
from training.evaluation.metrics import FIGURES, Interval
from training.evaluation.off_policy import OffPolicyReport
from training.evaluation.plan_result import Conditional, PlanEvaluation
from training.evaluation.result import Evaluation, FullEvaluation, OffPolicyEvaluation, PolicyResult
from training.reports.tables import Table

_SEGMENT_RIVALS = {"knn": "knn", "kmeans": "kmeans", "linear": "linear", "random": "mix of single tiers"}


def evaluation_tables(evaluation: Evaluation) -> list[Table]:
    """Every table of an evaluation."""
    if isinstance(evaluation, FullEvaluation):
        return _full_tables(evaluation)
    if isinstance(evaluation, OffPolicyEvaluation) and evaluation.router is not None:
        return [_off_policy_table(evaluation, evaluation.router)]
    return []


def first_table(evaluation: FullEvaluation) -> Table:
    """What one reads first: the router at the dials that were judged, plans, and the tiers one could ask always."""
    best = evaluation.single[evaluation.best_tier]
    dial = evaluation.chosen
    by_cost = sorted(evaluation.tiers, key=lambda tier: evaluation.single[tier][1].value)
    rows = [
        (f"always {tier}", accuracy.value / best[0].value, usd.value, usd.value / best[1].value)
        for tier in dict.fromkeys((by_cost[0], evaluation.best_tier))
        for accuracy, usd in [evaluation.single[tier]]
        if best[0].value > 0 and best[1].value > 0
    ]
    for point in (dial, evaluation.headline.instead):
        if point is not None:
            label = dials_text(point.quality, point.worth_usd).removeprefix("at ")
            rows.append((f"router, {label}", point.kept.value, point.usd_per_1k.value, point.cost_of_best.value))
    for name, found in evaluation.plans.items():
        at = next((point for point in found.dial if point.quality == dial.quality and not dial.worth_usd), None)
        if at is not None and not at.is_direct:
            rows.append((f"plans that look at {name}", at.kept.value, at.usd_per_1k.value, at.cost_share.value))
    return Table.of(
        f"Compared with always asking {evaluation.best_tier}",
        rows,
        [
            ("who", lambda row: row[0]),
            ("accuracy kept", lambda row: f"{100 * row[1]:.1f} %"),
            ("cost", lambda row: f"{100 * row[3]:.0f} %"),
            ("USD per 1,000 requests", lambda row: f"{row[2]:.3g}"),
        ],
    )


def promise_line(manifest: Manifest) -> str:
    """Up to which quality the dial is promised, and on how many prompts that rests."""
    n_prompts, quality = manifest.promise.get("n_prompts", 0), manifest.default_quality
    promised = [point.quality for point in manifest.dial if point.promised]
    which = f"every quality up to {max(promised):g}" if promised else "no quality"
    needed = manifest.dial_point(quality).n_needed
    takes = f"; {quality:g} takes about {needed:,} with this router" if needed else ""
    return f"Promised with {100 * manifest.confidence:.0f} % confidence: {which}, on {n_prompts:,} prompts{takes}."


def label_table(labels: Mapping[str, Mapping[str, float]]) -> Table:
    """Shares of the cheapest-correct label, overall and per segment. labels: of `label_distribution`."""

    def share(label: str) -> Callable[[str], str]:
        return lambda segment: f"{labels[segment][label]:.1%}"

    return Table.of(
        "Cheapest-correct label", labels, [("segment", str), *((label, share(label)) for label in labels["all"])]
    )


def promise_tables(manifest: Manifest) -> list[Table]:
    """What the dial promises, how many prompts a promise takes, and what is kept within segments."""
    promise = Table.of(
        "The promise",
        manifest.dial,
        [
            ("quality", lambda point: f"{point.quality:.2f}"),
            ("promised", lambda point: "yes" if point.promised else "no"),
            (
                "prompts a promise takes",
                lambda point: f"about {point.n_needed:,}" if point.n_needed else "none known",
            ),
            ("kept at least", lambda point: f"{point.kept:.3f}"),
        ],
    )
    segments = sorted(manifest.dial[0].segments)
    if not segments:
        return [promise]

    def kept(point: DialPoint) -> Callable[[str], str]:
        return lambda segment: f"{point.segments[segment]:.3f}"

    within = Table.of(
        "Accuracy kept within segments, at least, by quality",
        segments,
        [("segment", str), *((f"{point.quality:.2f}", kept(point)) for point in manifest.dial)],
    )
    return [promise, within]


def _off_policy_table(evaluation: OffPolicyEvaluation, router: OffPolicyReport) -> Table:
    """What the log says of router and single tiers."""
    reports = {f"router {dials_text(evaluation.quality, evaluation.worth_usd)}": router}
    reports |= {f"always {tier}": report for tier, report in evaluation.single.items()}
    return Table.of(
        "Off-policy",
        reports.items(),
        [
            ("policy", lambda entry: entry[0]),
            ("accuracy", lambda entry: _cell(entry[1].accuracy)),
            ("USD per 1,000 requests", lambda entry: usd_cell(entry[1].usd_per_1k)),
            ("effective sample size", lambda entry: f"{entry[1].effective_sample_size:,.0f}"),
            ("not judged because", lambda entry: entry[1].refused),
        ],
    )


def _full_tables(evaluation: FullEvaluation) -> list[Table]:
    tables = [
        _policy_table(evaluation),
        _tier_table(evaluation),
        _estimate_table(evaluation),
        _dial_table(evaluation),
    ]
    if evaluation.net_value.break_even:
        tables.append(_worth_table(evaluation))
    if evaluation.plans:
        tables += [_plan_table(evaluation), *(_plan_dial_table(found) for found in evaluation.plans.values())]
        tables += [_conditional_table(evaluation), _joint_table(evaluation)]
    if evaluation.segments:
        tables.append(_segment_table(evaluation))
    return tables


def _policy_table(evaluation: FullEvaluation) -> Table:
    policies: dict[str, PolicyResult] = {"router": evaluation.router, **evaluation.baselines}

    def figure(name: str) -> Callable[[str], str | None]:
        return lambda policy: _cell(policies[policy].figures.get(name))

    names = [name for name in FIGURES if name in evaluation.router.figures]
    return Table.of("Router and baselines", policies, [("policy", str), *((name, figure(name)) for name in names)])


def _tier_table(evaluation: FullEvaluation) -> Table:
    return Table.of(
        "Single tiers",
        evaluation.tiers,
        [
            ("tier", str),
            ("accuracy", lambda tier: _cell(evaluation.single[tier][0])),
            ("USD per 1,000 requests", lambda tier: usd_cell(evaluation.single[tier][1])),
            ("USD per 1,000 correct answers", lambda tier: usd_cell(evaluation.usd_per_correct[tier].times(1000))),
            (
                "output tokens per correct answer",
                lambda tier: _cell(evaluation.output_tokens_per_correct.get(tier)),
            ),
        ],
    )


def _estimate_table(evaluation: FullEvaluation) -> Table:
    def length_error(index: int) -> Callable[[str], str | None]:
        errors = evaluation.length_log_error
        return lambda tier: f"{errors[tier][index]:.3f}" if tier in errors else None

    return Table.of(
        "Estimates",
        evaluation.tiers,
        [
            ("tier", str),
            ("ECE of success", lambda tier: _cell(evaluation.calibration[tier][0])),
            ("ECE by chance", lambda tier: f"{evaluation.ece_by_chance[tier]:.3f}"),
            ("Brier score", lambda tier: _cell(evaluation.calibration[tier][1])),
            ("predicted / measured cost", lambda tier: _cell(evaluation.cost_ratio.get(tier))),
            ("cost explained by tokens", lambda tier: _share(evaluation.cost_explained.get(tier))),
            ("log error of output tokens", length_error(0)),
            ("log error of the tier's mean", length_error(1)),
        ],
    )


def _dial_table(evaluation: FullEvaluation) -> Table:
    def remark(point: DialResult) -> str | None:
        return "costs more than it saves" if point.cost_of_best.value > 1 else None

    remarks = [("remark", remark)] if any(map(remark, evaluation.dial)) else []
    return Table.of(
        "Quality dial",
        evaluation.dial,
        [
            ("quality", lambda point: f"{point.quality:.2f}"),
            ("slack", lambda point: f"{point.slack:.3f}"),
            ("promised", lambda point: "yes" if point.promised else "no"),
            ("accuracy kept", lambda point: _cell(point.kept)),
            ("cost relative to the best tier", lambda point: _cell(point.cost_of_best)),
            ("USD per 1,000 requests", lambda point: usd_cell(point.usd_per_1k)),
            ("USD per 1,000 correct answers", lambda point: usd_cell(point.usd_per_correct.times(1000))),
            ("output tokens per correct answer", lambda point: _cell(point.output_tokens_per_correct)),
            *remarks,
        ],
    )


def _plan_table(evaluation: FullEvaluation) -> Table:
    plans = list(evaluation.plans.values())
    families = [("direct", plans[0].direct)]
    for found in plans:
        families += [(f"{name}, {found.check}", figures) for name, figures in found.families.items()]
    return Table.of(
        "Plans: cost relative to the best tier, and the highest accuracy relative to it",
        families,
        [
            ("who", lambda family: family[0]),
            ("cost at 95 %", lambda family: _cell(family[1].cost_at["cost_at_95"])),
            ("cost at 98 %", lambda family: _cell(family[1].cost_at["cost_at_98"])),
            ("cost at 100 %", lambda family: _cell(family[1].cost_at["cost_at_100"])),
            ("most kept", lambda family: _cell(family[1].max_kept)),
        ],
    )


def _plan_dial_table(found: PlanEvaluation) -> Table:
    used = ", ".join(f"{shape} {share:.0%}" for shape, share in list(found.shapes.items())[:3])
    simulated = "simulated verdicts; " if found.simulated else ""
    return Table.of(
        f"Quality of plans that look at {found.check} ({simulated}most used: {used or 'direct routing'})",
        found.dial,
        [
            ("quality", lambda point: f"{point.quality:.2f}"),
            ("promised", lambda point: "yes" if point.promised else "no"),
            ("by", lambda point: "direct routing" if point.is_direct else "plans"),
            ("accuracy kept", lambda point: _cell(point.kept)),
            ("cost relative to the best tier", lambda point: _cell(point.cost_share)),
            ("USD per 1,000 requests", lambda point: usd_cell(point.usd_per_1k)),
        ],
    )


def _conditional_table(evaluation: FullEvaluation) -> Table:
    found: dict[str, Conditional] = {}
    for plans in evaluation.plans.values():
        found |= plans.conditionals
    return Table.of(
        "What one answer says of another: how often it is right",
        found.items(),
        [
            ("answers", lambda entry: entry[0]),
            ("cases", lambda entry: f"{entry[1].n_cases:,}"),
            ("measured", lambda entry: f"{entry[1].measured:.3f}"),
            ("expected", lambda entry: f"{entry[1].expected:.3f}"),
            ("ECE", lambda entry: _cell(entry[1].calibration_error)),
            ("expected if tiers failed on their own", lambda entry: f"{entry[1].if_independent:.3f}"),
            ("its ECE", lambda entry: _cell(entry[1].calibration_error_if_independent)),
        ],
    )


def _joint_table(evaluation: FullEvaluation) -> Table:
    joint = next(iter(evaluation.plans.values())).joint
    return Table.of(
        f"Which of {joint.n_tiers} tiers are right on a prompt: log likelihood in nats",
        [joint],
        [
            ("by the bundle", lambda fit: _cell(fit.log_likelihood)),
            ("if tiers failed on their own", lambda fit: _cell(fit.if_independent)),
            ("gain", lambda fit: _cell(fit.gain)),
        ],
    )


def _worth_table(evaluation: FullEvaluation) -> Table:
    changes = evaluation.net_value.break_even
    best_from = [("0", changes[0].cheaper), *((f"{change.worth_usd:.4g}", change.dearer) for change in changes)]
    return Table.of(
        "Single tiers by the worth of a correct answer",
        best_from,
        [("worth in USD, from", lambda entry: entry[0]), ("best single tier", lambda entry: entry[1])],
    )


def _segment_table(evaluation: FullEvaluation) -> Table:
    def aiq(entry: Mapping[str, Any]) -> str:
        return f"{entry['aiq']['value']:.3f}"

    def of_rival(name: str) -> Callable[[str], str]:
        return lambda segment: aiq(evaluation.segments[segment]["baselines"][name])

    return Table.of(
        "Segments (AIQ)",
        evaluation.segments,
        [
            ("segment", str),
            ("prompts", lambda segment: f"{evaluation.segments[segment]['n_prompts']:,}"),
            ("router", lambda segment: aiq(evaluation.segments[segment]["router"])),
            *((title, of_rival(name)) for name, title in _SEGMENT_RIVALS.items()),
        ],
    )


def _cell(figure: Interval | None) -> str | None:
    """A figure with its interval and as many decimals as its size needs; None where there is no figure."""
    if figure is None:
        return None
    return _with_digits(figure, 3 if abs(figure.value) < 10 else 2 if abs(figure.value) < 100 else 0)


def usd_cell(figure: Interval | None) -> str | None:
    """As `_cell`, but amounts below 0.01 keep three digits that say something."""
    if figure is None or not 0 < abs(figure.value) < 0.01:
        return _cell(figure)
    return _with_digits(figure, 2 - math.floor(math.log10(abs(figure.value))))


def _with_digits(figure: Interval, digits: int) -> str:
    value, low, high = (round(number, digits) + 0.0 for number in (figure.value, figure.low, figure.high))  # no -0.0
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"
