"""The one figure that a judgement comes to: what the dial keeps, and what it costs.

Terminal, report, model card, picture and MLflow all take it from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.evaluation.dials import DialResult, dials_text
from training.evaluation.metrics import Interval


@dataclass(frozen=True)
class Headline:
    """What the router keeps and costs at the dials that were judged, against always asking the best tier.

    dial: the figures. instead: those of the highest promised quality, where that of `dial` is not promised and a lower
    one is. best_usd_per_1k: what 1,000 requests cost with the best tier. n_prompts: judged, none of which training had
    seen.
    """

    dial: DialResult
    instead: DialResult | None
    best_tier: str
    best_usd_per_1k: float
    n_prompts: int

    @property
    def short(self) -> str:
        """Such as "quality 0.98: 99.5 % of frontier's accuracy for 62 % of its cost"."""
        dials = dials_text(self.dial.quality, self.dial.worth_usd).removeprefix("at ")
        return (
            f"{dials}: {100 * self.dial.kept.value:.1f} % of {self.best_tier}'s accuracy "
            f"for {100 * self.dial.cost_of_best.value:.0f} % of its cost"
        )

    @property
    def text(self) -> str:
        """The figures with their intervals and in money, in two sentences."""
        dial = self.dial
        shares = ", ".join(f"{tier} {100 * share:.0f} %" for tier, share in dial.shares.items() if share > 0)
        return (
            f"{dials_text(dial.quality, dial.worth_usd).capitalize()} the router keeps {_percent(dial.kept, 1)} of "
            f"{self.best_tier}'s accuracy for {_percent(dial.cost_of_best, 0)} of its cost: USD "
            f"{dial.usd_per_1k.value:.3g} instead of {self.best_usd_per_1k:.3g} per 1,000 requests, on "
            f"{self.n_prompts:,} prompts that training had not seen. Requests go to {shares}.{self._unproven}"
        )

    @property
    def _unproven(self) -> str:
        """That the quality is not promised, and what a promised one would bring; empty where it is promised."""
        if self.dial.promised or self.dial.quality is None:
            return ""
        text = f" The log does not support a promise of this quality, so {self.best_tier} answers."
        if self.instead is None:
            return f"{text} No lower quality is promised."
        return (
            f"{text} The highest that is promised, {self.instead.quality:g}, keeps {_percent(self.instead.kept, 1)} "
            f"for {_percent(self.instead.cost_of_best, 0)}."
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The same figures for an experiment tracker, by name."""
        dial = self.dial
        return {
            "headline.kept": dial.kept.value,
            "headline.cost_of_best": dial.cost_of_best.value,
            "headline.usd_per_1k": dial.usd_per_1k.value,
            "headline.usd_per_1k_of_best": self.best_usd_per_1k,
            **({} if dial.quality is None else {"headline.quality": dial.quality}),
        }


def _percent(figure: Interval, digits: int) -> str:
    """Such as "62 % (57 to 67)"."""
    value, low, high = (f"{100 * each:.{digits}f}" for each in (figure.value, figure.low, figure.high))
    return f"{value} % ({low} to {high})"
