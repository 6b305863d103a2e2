"""An audit in the terminal and as a self-contained HTML page with pictures."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from training.audit.checks import AgreementAudit, CheckAudit
from training.audit.figures import audit_figures
from training.audit.result import MIN_LOSS, Audit, Pair, PromptsNeeded, TierAudit
from training.dial.dial import COMPLETE_PROMPTS
from training.evaluation.metrics import Interval
from training.reports.html import page, picture, png
from training.reports.tables import Table

_WIDTH = 110
_MAX_PAIRS = 6  # in the terminal; the page has all
_MAX_NAME = 20
_PAIRS = "Pairs"
_AGREEMENT = "Pairs whose answers agree"

_CAPTIONS = {
    "cost_accuracy": "Single tiers, their mixtures, a router that knows each prompt's difficulty, ceiling, oracle.",
    "errors": "Correlation of errors: two tiers that always fail together are like one.",
    "needed": f"About how many {COMPLETE_PROMPTS} a promise of quality takes.",
}


def audit_text(audit: Audit) -> str:
    """The audit for a terminal of 110 columns, the verdict first; about 60 lines."""
    facts = "\n".join(textwrap.fill(fact, _WIDTH) for fact in audit_facts(audit))
    log = "\n".join(
        textwrap.fill(line, _WIDTH, break_long_words=False, break_on_hyphens=False)
        for line in audit.log.lines.splitlines()
    )
    return "\n\n".join([textwrap.fill(audit.verdict, _WIDTH), log, *map(_table_text, audit_tables(audit)), facts])


def _table_text(table: Table) -> str:
    """A table for the terminal: long names cut, costs without their interval, only the pairs that are most alike."""
    rest = max(0, len(table.rows) - _MAX_PAIRS) if table.title in (_PAIRS, _AGREEMENT) else 0
    rows = table.rows[: len(table.rows) - rest]
    shown = replace(table, rows=tuple(tuple(map(_short, row)) for row in rows))
    return shown.text() + (f"\nand {rest} more, less alike" if rest else "")


def audit_html(audit: Audit) -> str:
    """The audit as one HTML document."""
    pictures = "".join(picture(png(figure), _CAPTIONS[name]) for name, figure in audit_figures(audit).items())
    facts = "".join(f"<p>{html.escape(fact)}</p>" for fact in [audit.log.lines, *audit_facts(audit)])
    tables = "".join(table.html() for table in audit_tables(audit))
    return page("Routing audit", audit.verdict, f"{pictures}{facts}{tables}")


def audit_tables(audit: Audit) -> list[Table]:
    """Every table of the audit; without enough complete prompts only what each tier did on its own prompts."""
    if audit.per_tier is None or audit.pairs is None or audit.needed is None:
        return [_observed_table(audit)]
    tables = [_tier_table(audit.per_tier), _pair_table(audit.pairs), _money_table(audit), _needed_table(audit.needed)]
    tables += [_agreement_table(audit.agreement)] if audit.agreement else []
    return tables + ([_check_table(audit.checks)] if audit.checks else [])


def _observed_table(audit: Audit) -> Table:
    def accuracy(tier: str) -> str | None:
        observed = audit.observed_accuracy[tier]
        return None if observed is None else f"{observed:.1%}"

    return Table.of(
        "Tiers, each on its own prompts (not comparable)",
        audit.tiers,
        [("tier", str), ("outcomes", lambda tier: f"{audit.n_outcomes[tier]:,}"), ("accuracy", accuracy)],
    )


def _tier_table(tiers: Mapping[str, TierAudit]) -> Table:
    return Table.of(
        "Tiers",
        tiers,
        [
            ("tier", str),
            ("outcomes", lambda tier: f"{tiers[tier].n_outcomes:,}"),
            ("accuracy", lambda tier: _percent(tiers[tier].accuracy)),
            ("USD/1k", lambda tier: tiers[tier].usd_per_1k.text()),
            ("$/1k right", lambda tier: _number(tiers[tier].usd_per_correct.value * 1000, ".3g")),
            ("tok/right", lambda tier: _number(tiers[tier].output_tokens_per_correct)),
            ("only it", lambda tier: f"{tiers[tier].only_right.value:.1%}"),
            ("cheapest", lambda tier: f"{tiers[tier].cheapest_correct:.1%}"),
            ("pays", lambda tier: "yes" if tiers[tier].pays else "never"),
        ],
    )


def _pair_table(pairs: Mapping[tuple[str, str], Pair]) -> Table:
    return Table.of(
        _PAIRS,
        sorted(pairs, key=lambda tiers: -pairs[tiers].phi),
        [
            ("pair", " + ".join),
            ("both right", lambda tiers: f"{pairs[tiers].both_right:.1%}"),
            ("one right", lambda tiers: f"{pairs[tiers].one_right:.1%}"),
            ("none right", lambda tiers: f"{pairs[tiers].none_right:.1%}"),
            ("error correlation", lambda tiers: f"{pairs[tiers].phi:.2f}"),
        ],
    )


def _money_table(audit: Audit) -> Table:
    return Table.of(
        "Cost relative to always asking the best tier",
        audit.money,
        [
            ("accuracy kept", lambda money: f"{money.quality:.0%}"),
            ("mix of single tiers", lambda money: _percent(money.mix_of_singles)),
            ("knowing difficulty alone", lambda money: _percent(money.knowing_difficulty)),
            ("oracle, luck included", lambda money: _percent(money.knowing_outcomes)),
        ],
    )


def _agreement_table(pairs: Sequence[AgreementAudit]) -> Table:
    def share(value: float | None) -> str | None:
        return None if value is None else f"{value:.1%}"

    return Table.of(
        _AGREEMENT,
        sorted(pairs, key=lambda pair: -pair.agree),
        [
            ("pair", lambda pair: " + ".join(pair.tiers)),
            ("answers agree", lambda pair: share(pair.agree)),
            ("first right then", lambda pair: share(pair.right_when_agree)),
            ("first right else", lambda pair: share(pair.right_when_differ)),
        ],
    )


def _check_table(checks: Sequence[CheckAudit]) -> Table:
    return Table.of(
        "Looking at answers: the best fixed cascade of two or three tiers",
        checks,
        [
            ("check (assumed sensitivity / specificity)", lambda check: check.check),
            ("cost at 98 %", lambda check: _percent(check.cost_at_98)),
            ("cost at 100 %", lambda check: _percent(check.cost_at_100)),
            ("most accuracy kept", lambda check: _percent(check.most_kept)),
        ],
    )


def _needed_table(needed: Mapping[float, PromptsNeeded]) -> Table:
    def about(n_prompts: int | None) -> str:
        return f"about {n_prompts:,}" if n_prompts else "no number is enough"

    return Table.of(
        "Prompts that a promise takes",
        needed,
        [
            ("quality", lambda quality: f"{quality:g}"),
            ("a router like the best tier", lambda quality: about(needed[quality].like_best)),
            ("as accurate, right elsewhere", lambda quality: about(needed[quality].like_substitute)),
        ],
    )


def audit_facts(audit: Audit) -> list[str]:
    """What the figures mean and what they rest on, a sentence or two each."""
    counted = f"{audit.n_complete:,} of {audit.n_prompts:,} prompts were answered by every tier"
    if audit.ceiling is None or audit.oracle is None or audit.effective_models is None:
        return [f"{counted}: which tier is better on which prompt cannot be said."]
    ceiling = audit.ceiling
    facts = [
        f"Prompts, as `broker train` would split them: {audit.counts}.",
        f"{counted}. All figures but the outcomes per tier rest on these. In brackets: 95 % bootstrap intervals.",
        f"The oracle, which knows which tier is right, reaches {_percent(audit.oracle)}. Luck and shared "
        f"difficulty alone would give an oracle of {ceiling.lucky_oracle:.1%}. The best possible router lies between "
        f"{ceiling.low:.1%} ({audit.best}) and {ceiling.high:.1%}. "
        f"The estimate without that luck is {_percent(ceiling.estimate)}.",
        f"Effective independent models: {audit.effective_models.value:.1f} of {len(audit.tiers)}.",
    ]
    if ceiling.lucky_oracle > audit.oracle.high:
        facts.append(
            "The oracle is lower than luck and difficulty would make it: tiers fail together for other reasons too, or "
            "outcomes are fractions, so what knowing the difficulty saves may be overstated."
        )
    if len(audit.tiers) == 2:
        facts.append("Two tiers, one attempt each: skill cannot be told from luck; the estimate treats it all as luck.")
    if ceiling.repeats and ceiling.label_noise is not None:
        low, high = ceiling.repeats
        facts.append(
            f"Repeated attempts bound the ceiling by {low:.1%} and {high:.1%}. "
            f"The variance of an outcome on the same prompt is {ceiling.label_noise:.3f}."
        )
    if audit.estimated_cost_share > 0:
        facts.append(
            f"The log lacks the cost of {audit.estimated_cost_share:.0%} of the attempts; these are list prices times "
            "logged or typical tokens: read costs as ratios."
        )
    facts.append(
        "A tier never pays where mixing others is at least as good, and a router that knows the difficulty loses less "
        f"than {MIN_LOSS:.1%} without it at any worth of an answer. "
        "Only training shows how much of this a router can learn from the prompts."
    )
    facts.append(
        f"Promises are counted in {COMPLETE_PROMPTS}: {audit.n_training:,} of the {audit.n_complete:,}. With so many "
        "as a promise takes it is made about every second time, with twice as many mostly. How many it takes depends "
        f"on the router at slack 0: the first figure is for one that always asks {audit.best}, the second for one that "
        "is as accurate but right on other prompts, as the best substitute is. A router that is more accurate than "
        f"{audit.best} takes fewer, and only such a router can promise 1; a less accurate one takes more. The report "
        "of a trained router says its own."
    )
    return facts


def _short(cell: str) -> str:
    """A cell for the terminal: long names cut (the page has them whole), costs without their interval."""
    if cell[0:1].isdigit() and " (" in cell and "%" not in cell:
        return cell.split(" (")[0]
    names = (name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…" for name in cell.split(" + "))
    return cell if "%" in cell or "enough" in cell else " + ".join(names)


def _percent(figure: Interval) -> str:
    return f"{figure.value:.1%} ({figure.low * 100:.1f} to {figure.high * 100:.1f})"


def _number(value: float, form: str = ",.0f") -> str | None:
    """None where the number is not finite."""
    return format(value, form) if np.isfinite(value) else None
