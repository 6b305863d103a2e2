"""How logs, decisions, plans and evaluations show themselves in a notebook."""

import pandas as pd

from training.log.ingest import ingest

EVIL = "<script>alert(1)</script>"


def test_a_decision_shows_every_tier_and_which_was_chosen(router):
    decision = router.route("Prove that the square root of 2 is irrational.", quality=0.9)
    shown = decision._repr_html_()
    assert all(tier in shown for tier in decision.success)
    assert shown.count("chosen") == 1
    assert decision.reason in shown


def test_a_decision_that_could_not_be_made_shows_its_reason(router):
    decision = router.route(b"\xff")
    assert decision.fallback
    assert "<p>" in decision._repr_html_()


def test_a_plan_shows_its_tree(router):
    plan = router.plan("Prove it.", checks=["agreement"], worth_usd=0.01)
    assert "ask " in plan._repr_html_() and "<pre>" in plan._repr_html_()


def test_a_log_shows_its_tiers_and_no_prompt_and_text_is_escaped(sample_log, router):
    rows = pd.read_parquet(sample_log).head(60).assign(dataset=EVIL)
    table = ingest(rows, router.bundle.prices.tiers)
    shown = table._repr_html_()
    assert all(tier in shown for tier in table.tiers)
    assert EVIL not in shown and "&lt;script&gt;" in shown
    assert not any(prompt in shown for prompt in table.prompts)


def test_an_evaluation_shows_its_verdict_and_the_whole_dial(trained):
    shown = trained.evaluation._repr_html_()
    assert all("<td" in shown and f">{point.quality:g}<" in shown for point in trained.evaluation.dial)
    assert "AIQ" in shown
