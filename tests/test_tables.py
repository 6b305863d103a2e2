"""Tables are never ragged, whatever a log leaves out, and print as text, HTML and Markdown."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.cli import main
from router.command import usd_text
from training.evaluation.metrics import Interval
from training.evaluation.training_data import TrainingData
from training.reports.evaluation_tables import evaluation_tables, usd_cell
from training.reports.tables import Table

cells = st.one_of(st.none(), st.text(max_size=12))
grids = st.integers(1, 5).flatmap(
    lambda width: st.tuples(
        st.lists(st.text(max_size=12), min_size=width, max_size=width),
        st.lists(st.lists(cells, min_size=width, max_size=width), max_size=5),
    )
)


def table_of(header, rows):
    columns = [(name, lambda row, k=k: row[k]) for k, name in enumerate(header)]
    return Table.of("title", rows, columns)


def assert_prints(table):
    """Every rendering has every row, and every row every column."""
    n_rows, n_columns = len(table.rows), len(table.header)
    assert all(len(row) == n_columns for row in table.rows)
    assert len(table.text().split("\n")) == 2 + n_rows
    page = table.html()
    assert page.count("<tr>") == 1 + n_rows
    assert (page.count("<th>"), page.count("<td>")) == (n_columns, n_rows * n_columns)
    title, empty, *lines = table.markdown().split("\n")
    assert (title, empty, len(lines)) == (f"## {table.title}", "", 2 + n_rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {n_columns + 1}


@given(grids)
def test_a_table_of_any_cells_is_whole_in_every_form(grid):
    assert_prints(table_of(*grid))


def test_a_missing_cell_is_empty_and_a_ragged_row_cannot_be():
    assert table_of(["a", "b"], [["1", None]]).rows == (("1", ""),)
    for row in (("1",), ("1", "2", "3")):
        with pytest.raises(ValueError, match=f"'title': found a row of {len(row)} cells; expected 2"):
            Table(title="title", header=("a", "b"), rows=(row,))


def test_markup_in_a_cell_is_text():
    table = table_of(["a|b"], [["<b> | \n c"]])
    assert "&lt;b&gt;" in table.html() and "<b>" not in table.html()
    assert "| a\\|b |" in table.markdown() and "| <b> \\| c |" in table.markdown()


def test_columns_stand_below_each_other():
    assert table_of(["tier", "n"], [["edge", "1"], ["frontier", "20"]]).text().split("\n") == [
        "TITLE",
        "tier      n",
        "edge      1",
        "frontier  20",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(data=st.data())
def test_an_evaluation_without_some_figures_of_some_tiers_is_whole_in_every_form(trained, data):
    def some(figures):
        kept = data.draw(st.sets(st.sampled_from(trained.evaluation.tiers)))
        return {tier: figure for tier, figure in figures.items() if tier in kept}

    known = trained.evaluation
    evaluation = replace(
        known,
        output_tokens_per_correct=some(known.output_tokens_per_correct),
        length_log_error=some(known.length_log_error),
        cost_ratio=some(known.cost_ratio),
        dial=[replace(point, output_tokens_per_correct=None) for point in known.dial],
        segments=data.draw(st.sampled_from([{}, known.segments])),
    )
    for table in evaluation_tables(evaluation):
        assert_prints(table)
    json.dumps(evaluation.to_json(), allow_nan=False)


# ---- from a log to what is printed -----------------------------------------------------------------


def required_only(log):
    return log[["prompt", "model", "correct"]]


def without_lengths(log):
    return log.drop(columns="output_tokens")


def without_lengths_and_costs(log):
    return log.drop(columns=["output_tokens", "cost_usd"])


def edge_without_lengths(log):
    return log.assign(output_tokens=log.output_tokens.mask(log.model.str.contains("edge")))


def edge_without_tokens_and_costs(log):
    is_edge = log.model.str.contains("edge")
    return log.assign(**{name: log[name].mask(is_edge) for name in ("input_tokens", "output_tokens", "cost_usd")})


def any_columns(seed):
    """Each optional column is whole, lacks one tier, or is not there: drawn at random."""

    def part(log):
        rng = np.random.default_rng(seed)
        for name in sorted({*log.columns} - {"prompt", "model", "correct"}):
            state = rng.choice(["whole", "lacks a tier", "gone"])
            if state == "lacks a tier":
                log = log.assign(**{name: log[name].mask(log.model == rng.choice(log.model.unique()))})
            elif state == "gone":
                log = log.drop(columns=name)
        return log

    return part


def printed(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def printed_json(capsys, *words):
    """One document, in which every number is finite."""
    return json.loads(printed(capsys, *words, "--json"), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def log(trained, sample_log):
    """Some rows of the sample log, most of prompts that training did not see."""
    rows = pd.read_parquet(sample_log)
    seen = TrainingData.load(trained.bundle).groups
    return pd.concat([rows[~rows.question_key.isin(seen)].head(800), rows[rows.question_key.isin(seen)].head(100)])


@pytest.mark.parametrize(
    "part",
    [required_only, without_lengths, without_lengths_and_costs, edge_without_lengths, edge_without_tokens_and_costs],
)
def test_evaluate_and_audit_print_what_a_log_has(part, bundle, log, sample_tiers, tmp_path, capsys):
    path, page = tmp_path / "log.parquet", tmp_path / "audit.html"
    rows = part(log)
    rows.to_parquet(path)
    text = printed(capsys, "evaluate", "--tables", "--bundle", bundle, "--logs", path)
    assert "SINGLE TIERS" in text and "QUALITY DIAL" in text
    assert "PAIRS" in printed(capsys, "audit", "--logs", path, "--tiers", sample_tiers, "--html", page)
    assert page.read_text().count("<table>") == 5 + ("answer" in rows)


@pytest.mark.parametrize("part", [required_only, any_columns(0), any_columns(1)], ids=["required", "any 0", "any 1"])
def test_evaluate_and_audit_print_documents_of_what_a_log_has(part, bundle, log, sample_tiers, tmp_path, capsys):
    path = tmp_path / "log.parquet"
    part(log).to_parquet(path)
    assert printed_json(capsys, "evaluate", "--bundle", bundle, "--logs", path)["tiers"]
    assert printed_json(capsys, "audit", "--logs", path, "--tiers", sample_tiers)["per_tier"]


@pytest.mark.parametrize(("amount", "text"), [(1.404e-6, "0.00000140"), (0.5, "0.500000"), (0, "0.000000")])
def test_a_tiny_amount_keeps_three_digits(amount, text):
    assert usd_text(amount) == text


def test_tiny_costs_in_a_report_keep_three_digits():
    assert usd_cell(Interval(0.0014, 0.001, 0.00191)) == "0.00140 (0.00100 to 0.00191)"
    assert usd_cell(Interval(1.5, 1.0, 2.0)) == "1.500 (1.000 to 2.000)"
    assert usd_cell(Interval(0, 0, 0)) == "0.000 (0.000 to 0.000)"
    assert usd_cell(None) is None


@pytest.mark.parametrize("part", [required_only, edge_without_lengths])
def test_a_bundle_is_trained_and_reported_on_what_a_log_has(part, sample_log, sample_tiers, tmp_path, capsys):
    path, bundle = tmp_path / "log.parquet", tmp_path / "bundle"
    part(pd.read_parquet(sample_log).head(900)).to_parquet(path)
    out = ("--tiers", sample_tiers, "--out", bundle, "--tracking-uri", "none")
    assert str(bundle / "report.html") in printed(capsys, "train", "--logs", path, *out)
    lengths = json.loads((bundle / "report.json").read_text())["output_tokens"]
    assert "edge" not in lengths and (len(lengths) == 2) == (part is edge_without_lengths)
    assert "## Estimates" in (bundle / "README.md").read_text()
    document = json.loads(printed(capsys, "evaluate", "--bundle", bundle, "--logs", path, "--json"))
    assert document["single"]["edge"]["output_tokens_per_correct"] is None


def test_retraining_on_what_logs_have_prints_a_receipt(sample_log, sample_tiers, tmp_path, capsys):
    """One day with the required columns alone, then one that lacks what a tier used."""
    rows, logs = pd.read_parquet(sample_log), tmp_path / "logs"
    logs.mkdir()
    words = ("--tiers", sample_tiers, "--store", tmp_path / "store", "--tracking-uri", "none")
    required_only(rows.head(900)).to_parquet(logs / "1.parquet")
    assert printed_json(capsys, "retrain", "--logs", logs, *words)["promoted"]
    edge_without_tokens_and_costs(rows.iloc[900:1500]).to_parquet(logs / "2.parquet")
    receipt = printed(capsys, "retrain", "--logs", logs, *words)
    assert "promoted: " in receipt or "challenger" in receipt
    for receipt in (tmp_path / "store").rglob("receipt*.json"):
        json.loads(receipt.read_text(), parse_constant=pytest.fail)
