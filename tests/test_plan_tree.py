"""Laws of the picture of plans: every request is in it once."""

import pytest

from training.reports.figures import report_figures
from training.reports.plan_tree import LEAST_SHARE, branches

SHARES = {
    ("cheap",): 0.2,
    ("cheap", "middle"): 0.3,
    ("cheap", "middle", "best"): 0.25,
    ("cheap", "middle", "other"): 0.01,
    ("cheap", "middle", "rare"): 0.01,
    ("best",): 0.23,
}


def ends(branch):
    return sum(map(ends, branch.next)) if branch.next else branch.share


def test_every_branch_has_the_share_of_what_follows_it():
    tree = branches(SHARES)
    assert sum(map(ends, tree)) == pytest.approx(sum(SHARES.values()))
    cheap, best = tree
    assert (cheap.tier, best.tier, best.next) == ("cheap", "best", ())
    assert cheap.share == pytest.approx(0.77) and ends(cheap) == pytest.approx(cheap.share)
    answered, middle = cheap.next
    assert (answered.tier, answered.share) == (None, 0.2) and middle.tier == "middle"
    assert [each.words for each in middle.next] == ["answered", "best", "2 others"]


def test_rare_branches_are_drawn_together_and_a_single_one_as_it_is():
    rare = LEAST_SHARE / 2
    assert [each.words for each in branches({("a",): 1 - rare, ("b",): rare})] == ["a", "b"]
    assert [each.words for each in branches({("a",): 1 - 2 * rare, ("b",): rare, ("c",): rare})] == ["a", "2 others"]


def test_the_report_draws_the_plans_that_are_used(trained):
    figures = report_figures(trained.evaluation)
    used = [found for found in trained.evaluation.plans.values() if found.asked]
    assert ("plan_trees" in figures) == bool(used)
    if used:
        assert len(figures["plan_trees"].axes) == len(used)
        texts = " ".join(text.get_text() for text in figures["plan_trees"].axes[0].texts)
        assert next(iter(used[0].asked))[0] in texts and "asked first" in texts
