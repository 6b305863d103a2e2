"""Is a promise in doubt? A sequential test by betting on the champion's panel, which may be looked at after every run.

A panel prompt is one that every tier was asked and that the champion was not trained on. On each of them two bets are
placed, with stakes that are fixed beforehand:

- `outcomes`: that the champion keeps less than it promises. The gain is q x b - y, where y is the outcome of the tier
  chosen, b that of the best tier, and q the quality promised. Where the promise is kept, its mean is 0 at most
  (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86).
- `requests`: that the requests are harder than those that the promise speaks of. A prompt's rank among all earlier
  ones, by the success that the champion expects of its answer, is uniform as long as requests do not move, whatever
  they are (conformal test martingale: Vovk, Gammerman & Shafer 2022, "Algorithmic Learning in a Random World",
  chapter 8). The gain is 1 - 2 x rank: positive where less is expected than before. A promise is about the share kept,
  and harder requests may keep it. But it was proven on easier ones, and this shows in some hundred prompts what
  outcomes alone would show in thousands.

The wealth of each bet is 1 at first. Without drift it never rises on average, so that it comes to 1 / ALPHA with
probability ALPHA at most, over the whole life of a champion and however often it is looked at (Ville's inequality).
The same holds of any average of such wealths. Here it is over both bets, over STAKES, and over the runs in which one
could have begun to bet: the part that begins late has lost nothing in the years before, so a change is seen soon after
it happens, whenever that is (Shin, Ramdas & Rinaldo 2023, "E-detectors", section 2).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

ALPHA = 0.05
"""Chance at most that a champion whose requests do not move, and that keeps its promise, is ever doubted."""

STAKES = np.array([0.1, 0.3, 0.9])
"""Shares of the wealth that the worst outcome loses: for small and large changes."""

N_BETS = 2

Growth = tuple[tuple[float, ...], ...]
"""How much the log wealth grew in one run, by bet and stake: (N_BETS, len(STAKES))."""


def outcome_gains(chosen: np.ndarray, best: np.ndarray, quality: float) -> np.ndarray:
    """Gains of the bet that less than the quality is kept, -1..1, (n_prompts,).

    chosen, best: outcomes, 0..1, of the tier that answers and of the best tier, (n_prompts,).
    """
    return np.asarray(quality * best - chosen)


def rank_gains(values: np.ndarray, former: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Gains of the bet that values get lower, -1..1, (n_prompts,): 1 - 2 x the rank of each among all earlier values.

    values: in the order in which they came, (n_prompts,). former: values before them, (n_former,).
    ties: uniform numbers, 0..1, independent of all else, (n_prompts,): they break ties, and make ranks exactly uniform.
    """
    known: list[float] = np.sort(former).tolist()
    gains = []
    for value, tie in zip(values.tolist(), ties.tolist(), strict=True):
        n_lower, n_not_higher = bisect_left(known, value), bisect_right(known, value)
        rank = (n_lower + tie * (n_not_higher - n_lower + 1)) / (len(known) + 1)
        gains.append(1 - 2 * rank)
        known.insert(n_lower, value)
    return np.array(gains, dtype=float)


def growth_of(*gains: np.ndarray) -> Growth:
    """How much the log wealth grows by the gains of each bet, at each stake."""
    return tuple(tuple(np.log1p(STAKES * of_bet[:, None]).sum(axis=0).tolist()) for of_bet in gains)


def wealth_after(runs: Sequence[Growth]) -> np.ndarray:
    """The wealth after each run, (n_runs,): an average over bets, stakes, and the run in which the betting begins.

    The part of the wealth that begins in run k is 1 / (k (k + 1)); what has not begun yet is held in cash.
    """
    growth = np.array(runs, dtype=float).reshape(len(runs), N_BETS * len(STAKES))
    until = np.vstack([np.zeros(growth.shape[1]), growth.cumsum(axis=0)])
    k = np.arange(1, len(runs) + 1)
    share = 1 / (k * (k + 1))
    return np.array(
        [1 / (n + 1) + share[:n] @ np.exp(until[n] - until[:n]).mean(axis=1) for n in range(1, len(runs) + 1)]
    )


@dataclass(frozen=True)
class Watch:
    """What panels have said of a champion's promise since it took over.

    former: prompt_ids of panel prompts that were there when it took over; ranks begin with them. bet_on: those that
    were bet on since, in the order in which they came. runs: how the log wealth grew, by run, bet and stake.
    moved: how requests moved away from those that the promise was proven on, in words; "" where no run saw it.
    """

    former: tuple[str, ...] = ()
    bet_on: tuple[str, ...] = ()
    runs: tuple[Growth, ...] = ()
    moved: str = ""

    @property
    def wealth(self) -> float:
        """What the bets against the promise have come to; 1 at first."""
        return float(wealth_after(self.runs)[-1]) if self.runs else 1.0

    @property
    def is_in_doubt(self) -> bool:
        """Whether the wealth has come to 1 / ALPHA after any run: a promise in doubt stays so until it is replaced."""
        return bool((wealth_after(self.runs) >= 1 / ALPHA).any())

    def after(self, prompt_ids: Sequence[str], growth: Growth) -> Watch:
        """The watch after a run that bet on these prompts."""
        return replace(self, bet_on=(*self.bet_on, *prompt_ids), runs=(*self.runs, growth))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Watch:
        """From what state.json holds. Raises TypeError, ValueError or KeyError where it is of another form."""
        runs = tuple(tuple(tuple(map(float, of_bet)) for of_bet in growth) for growth in document["runs"])
        wealth_after(runs)
        return cls(
            former=tuple(document["former"]),
            bet_on=tuple(document["bet_on"]),
            runs=runs,
            moved=str(document.get("moved", "")),  # which older stores have not
        )
