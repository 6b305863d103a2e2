"""The shadow prices at which some requests would just keep to the limits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router.portfolio.caps import REQUESTS, Budget, Cap, Limit

_MOST_ROUNDS = 20
_MOST_USD_PER_USD = 2.0**20
_BISECTIONS = 30


def clearing_prices(
    values: np.ndarray,
    costs: np.ndarray,
    counts: np.ndarray,
    limits: Sequence[Limit],
    budgets_usd: Sequence[float | None],
    prices: Sequence[float],
) -> list[float]:
    """The least shadow price of each limit at which the requests, each taking its best offer, keep to all limits.

    In turn, each price is set to the least that will do at the present prices of the others, until none moves any more:
    the tatonnement of Walras, which finds the equilibrium where offers are substitutes for each other (Kelso & Crawford
    1982). They are the duals of the linear programme that gives each request to its best offer under the limits.

    values, costs: in USD, float (n_requests, n_offers); a value of -inf where an offer may not answer.
    counts: whether an offer counts for a limit, bool (n_limits, n_offers).
    budgets_usd: what each budget allows for all these requests; None for a cap, and for no limit.
    prices: to begin with. Returns USD per request for a cap on requests, else USD per USD.
    """
    found = list(prices)
    tolerance = 1e-4 * float(np.ptp(values[np.isfinite(values)])) if np.isfinite(values).any() else 0.0
    for _ in range(_MOST_ROUNDS):
        moved = 0.0
        for number, limit in enumerate(limits):
            others = _priced(values, costs, counts, limits, [*found[:number], 0.0, *found[number + 1 :]])
            if isinstance(limit, Cap) and limit.of == REQUESTS:
                price = _least_per_request(others, counts[number], limit.max_share)
                moved = max(moved, abs(price - found[number]))
            else:
                weights, most = _spend(costs, counts[number], limit, budgets_usd[number])
                price = 0.0 if most is None else _least_per_usd(others, weights, most)
                moved = max(moved, abs(price - found[number]) * float(costs.max(initial=0.0)))
            found[number] = price
        if moved <= tolerance:
            break
    return found


def _priced(
    values: np.ndarray, costs: np.ndarray, counts: np.ndarray, limits: Sequence[Limit], prices: Sequence[float]
) -> np.ndarray:
    """What each offer is worth after shadow prices."""
    worth = values
    for number, (limit, price) in enumerate(zip(limits, prices, strict=True)):
        if price:
            worth = worth - price * _weights(costs, counts[number], limit)
    return worth


def _weights(costs: np.ndarray, counts: np.ndarray, limit: Limit) -> np.ndarray:
    """How much of a limit each request would use at each offer."""
    if isinstance(limit, Budget):
        return np.asarray(costs * counts)
    if limit.of == REQUESTS:
        return np.asarray(np.broadcast_to(counts.astype(float), costs.shape))
    return np.asarray(costs * (counts - limit.max_share))  # What others cost makes room for these.


def _spend(
    costs: np.ndarray, counts: np.ndarray, limit: Limit, budget_usd: float | None
) -> tuple[np.ndarray, float | None]:
    """What each request would use of a limit on spend at each offer, and the most that all may use; None for any."""
    return _weights(costs, counts, limit), budget_usd if isinstance(limit, Budget) else 0.0


def _least_per_request(worth: np.ndarray, inside: np.ndarray, max_share: float) -> float:
    """The least price at which at most a share of the requests prefers the offers inside to the others."""
    n, most = len(worth), int(max_share * len(worth) + 1e-9)
    if not inside.any() or most >= n:
        return 0.0
    if inside.all():
        return 0.0  # There is nobody else to ask.
    gain = worth[:, inside].max(axis=1) - worth[:, ~inside].max(axis=1)
    gain = np.where(np.isnan(gain), -np.inf, gain)  # Neither inside nor outside may answer.
    finite = gain[np.isfinite(gain)]
    bar = float(np.partition(gain, n - most - 1)[n - most - 1])
    if bar == np.inf:  # More requests than are allowed have no other offer.
        bar = float(finite.max(initial=0.0))
    return max(0.0, bar)


def _least_per_usd(worth: np.ndarray, weights: np.ndarray, most: float) -> float:
    """The least price per USD at which all requests together use at most so much of a limit."""
    rows = np.arange(len(worth))

    def used(price: float) -> float:
        return float(weights[rows, (worth - price * weights).argmax(axis=1)].sum())

    if used(0.0) <= most:
        return 0.0
    low, high = 0.0, 1.0
    while used(high) > most and high < _MOST_USD_PER_USD:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if used(middle) <= most else (middle, high)
    return high
