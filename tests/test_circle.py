"""The circle closes: what the router's own decisions brought makes the next router better, and promises are kept."""

import sys
from itertools import islice

import pytest


@pytest.fixture(scope="module")
def weeks(request, tmp_path_factory):
    """Five simulated weeks of routing, logging, retraining; prompts get harder, prices fall."""
    sys.path.insert(0, str(request.config.rootpath / "benchmarks"))
    import circle

    world = circle.World.simulated(n_first=500, n_a_week=250, seed=0)
    turns = circle.turns(world, 500, 250, tmp_path_factory.mktemp("circle"), seed=0, panel_share=0.4)
    return list(islice(turns, 5))


def test_regret_falls_against_the_frozen_first_router(weeks):
    assert len(weeks) == 5
    assert sum(week.regret for week in weeks) < 0.95 * sum(week.frozen_regret for week in weeks)
    last = weeks[-3:]
    assert sum(week.regret for week in last) < sum(week.frozen_regret for week in last)


def test_no_week_breaks_the_promise(weeks):
    """By the true success of the tiers chosen; three standard errors are left to the choice of the week's requests."""
    assert any(week.promised for week in weeks)
    for week in weeks:
        if week.promised:
            assert week.kept >= week.promised - 3 * week.kept_error


def test_a_champion_falls_only_to_a_receipt_that_says_why(weeks):
    assert any(week.receipt.promoted for week in weeks)
    for before, week in zip(weeks, weeks[1:], strict=False):
        assert (week.receipt.champion != before.receipt.champion) == (week.receipt.promoted or week.is_lowered)
        if week.receipt.promoted:
            assert week.receipt.reason.startswith(("net value is better", "the champion no longer keeps"))
            assert week.receipt.n_judged >= 100


def test_a_router_that_follows_the_store_reads_what_the_log_took(weeks):
    """Every request of every week was read by retrain: one new row each, and one per tier of the panel."""
    for week in weeks:
        assert week.n_panel >= 100
        assert week.receipt.rows_new == 250 + 3 * week.n_panel
        assert week.receipt.rows_quarantined == 0
