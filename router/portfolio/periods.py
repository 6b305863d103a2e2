"""The hours, days and months (UTC) of budgets."""

from __future__ import annotations

from datetime import UTC, datetime

from router.portfolio.caps import SECONDS, Budget


def period_start(budget: Budget, now: float) -> float:
    """When the period of a budget that is now began. Both in seconds since 1970."""
    if seconds := SECONDS[budget.per]:
        return now - now % seconds
    moment = datetime.fromtimestamp(now, UTC)
    return datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp()


def period_end(budget: Budget, now: float) -> float:
    """When the period of a budget that is now will end. Both in seconds since 1970."""
    if seconds := SECONDS[budget.per]:
        return now - now % seconds + seconds
    moment = datetime.fromtimestamp(now, UTC)
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    return datetime(year, month, 1, tzinfo=UTC).timestamp()


def seconds_left(budget: Budget, now: float) -> float:
    """Seconds until the present period of a budget ends."""
    return period_end(budget, now) - now
