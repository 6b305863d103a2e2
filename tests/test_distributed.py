"""Laws of training on a cluster: the same table as in one process, and the same decisions, whoever did the work."""

import ast
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from lightgbm.basic import LightGBMError

from router import Router
from router.portfolio.tiers import read_tiers
from training import TrainingConfig, train
from training.context import RunContext
from training.distributed import cluster as clusters
from training.distributed import workers
from training.encoders.embed import embed
from training.encoders.static import StaticRecipe, learn_static
from training.errors import ClusterError, ConfigError, LabelError, LogError
from training.evaluation.training_data import TrainingData
from training.fit.estimator import label_forest_of
from training.fit.task import Task
from training.log.costs import attempt_costs
from training.log.ingest import ingest
from training.log.split import Split, group_positions
from training.log.table import CELL_MEASURES
from training.tracking import NoTracker

pytest.importorskip("dask.distributed", reason="Dask is not installed: pip install 'token-broker[distributed]'")

import dask  # noqa: E402
from dask.distributed import Client, LocalCluster  # noqa: E402

ROOT = Path(__file__).parent.parent
COLUMNS = ("prompt_ids", "groups", "segments", "asked_at")


@pytest.fixture(scope="module")
def two_workers():
    """The address of a scheduler with two worker processes of one thread each."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=None) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def log_files(sample_log, tmp_path_factory):
    """The sample log in several files and formats, all that a summary speaks of, a file that cannot be read."""
    folder = tmp_path_factory.mktemp("logs")
    log = pd.read_parquet(sample_log).head(4500)
    log["timestamp"] = log["timestamp"].astype(str)
    first, second, third = (log.iloc[rows::3].copy() for rows in range(3))
    first["output_tokens"] = first.output_tokens.where(np.arange(len(first)) % 50 > 0, 0)
    first.assign(usd_per_mtok_input=1.0, pscore=0.5).to_parquet(folder / "a.parquet")
    second.astype({"correct": object}).assign(
        correct=np.where(np.arange(len(second)) % 197, second.correct, 7)
    ).to_json(folder / "b.jsonl", orient="records", lines=True)
    pd.concat([third, third.head(50)]).to_csv(folder / "c.csv", index=False)
    (folder / "d.parquet").write_bytes(b"not a table")
    return folder


def at(address, folder, config=TrainingConfig()):  # noqa: B008
    context = RunContext(config, folder / "cache", NoTracker(), done=lambda step: None)
    return clusters.cluster_at(address, context)


def table_of(address, log_files, tiers, folder):
    with at(address, folder) as cluster:
        return cluster.ingest(log_files, tiers, folder / "quarantine.parquet")


def test_the_table_is_that_of_one_process_whatever_the_number_of_parts(
    two_workers, log_files, sample_tiers, tmp_path, monkeypatch
):
    tiers = read_tiers(sample_tiers)
    whole = ingest(log_files, tiers, quarantine=tmp_path / "local.parquet")
    assert whole.summary.quarantined and whole.summary.repeated and whole.summary.unknown and whole.summary.not_used
    for rows_per_part in (clusters.ROWS_PER_PART, 700):
        monkeypatch.setattr(clusters, "ROWS_PER_PART", rows_per_part)
        monkeypatch.setattr(clusters, "ROWS_PER_READ", rows_per_part)
        found = table_of(two_workers, log_files, tiers, tmp_path)
        for name in (*COLUMNS, *CELL_MEASURES):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
        assert found.prompts == whole.prompts
        assert found.summary == whole.summary and found.digest == whole.digest
        assert (found.first_timestamp, found.last_timestamp) == (whole.first_timestamp, whole.last_timestamp)
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / "quarantine.parquet"), pd.read_parquet(tmp_path / "local.parquet")
        )


def test_a_cluster_reads_answers_and_checks_as_one_process_does(
    two_workers, sample_log, sample_tiers, tmp_path, monkeypatch
):
    monkeypatch.setattr(clusters, "ROWS_PER_PART", 400)
    monkeypatch.setattr(clusters, "ROWS_PER_READ", 400)
    tiers, folder = read_tiers(sample_tiers), tmp_path / "log"
    folder.mkdir()
    log = pd.read_parquet(sample_log, columns=["prompt", "model", "correct"]).head(1500)
    log["answer"] = np.where(log.correct > 0, "right", "wrong " + log.model.astype(str))
    log.iloc[:500].assign(check_tests=0.5, check_tests_usd=0.25).to_parquet(folder / "a.parquet")
    rare = np.where(np.isin(np.arange(500), [7, 207]), 1.0, np.nan)  # most parts have no such verdict
    log.iloc[400:900].assign(check_rare=rare).to_json(folder / "b.jsonl", orient="records", lines=True)
    log.iloc[900:].drop(columns="answer").to_csv(folder / "c.csv", index=False)
    whole, found = ingest(folder, tiers), table_of(two_workers, folder, tiers, tmp_path)
    assert whole.summary.repeated and list(found.checks) == list(whole.checks) == ["rare", "tests"]
    np.testing.assert_array_equal(found.answer_number, whole.answer_number)
    assert found.answer_number.dtype == whole.answer_number.dtype
    for name, cells in whole.checks.items():
        np.testing.assert_array_equal(found.checks[name].score, cells.score)
        np.testing.assert_array_equal(found.checks[name].cost_usd, cells.cost_usd)
    assert found.summary == whole.summary and found.digest == whole.digest
    log.assign(check_agreement=1).to_parquet(folder / "d.parquet")
    with pytest.raises(LogError, match="check_agreement"):
        table_of(two_workers, folder, tiers, tmp_path)


def test_a_cluster_reads_columns_that_are_made_from_others(two_workers, sample_log, sample_tiers, tmp_path):
    tiers, path = read_tiers(sample_tiers), tmp_path / "stars.jsonl"
    stars = pd.read_parquet(sample_log, columns=["prompt", "model", "correct"]).head(900)
    stars.assign(correct=stars.correct * 4 + 1).to_json(path, orient="records", lines=True)
    with pytest.raises(LabelError, match=r"stars.jsonl.*: 5 \("):
        table_of(two_workers, path, tiers, tmp_path)
    maps = ("correct=correct:5",)
    with at(two_workers, tmp_path, TrainingConfig(maps=maps)) as cluster:
        found = cluster.ingest(path, tiers, tmp_path / "quarantine.parquet")
    np.testing.assert_array_equal(found.correct, ingest(stars, tiers).correct)
    with at(two_workers, tmp_path, TrainingConfig(maps=("correct=score",))) as cluster:
        with pytest.raises(LogError, match="no log has the column score"):
            cluster.ingest(path, tiers, tmp_path / "quarantine.parquet")


def test_a_sample_has_whole_groups_and_a_digest_of_all_that_it_was_drawn_from(
    two_workers, log_files, sample_tiers, tmp_path, monkeypatch
):
    tiers = read_tiers(sample_tiers)
    whole = ingest(log_files, tiers)
    monkeypatch.setattr(clusters, "MAX_SAMPLE", 500)
    digests = set()
    for rows_per_part in (clusters.ROWS_PER_PART, 1000):
        monkeypatch.setattr(clusters, "ROWS_PER_PART", rows_per_part)
        sample = table_of(two_workers, log_files, tiers, tmp_path)
        digests.add(sample.digest)
        in_sample = group_positions(whole.groups, seed=2) < 500 / whole.n_prompts
        np.testing.assert_array_equal(sample.prompt_ids, whole.prompt_ids[in_sample])
        np.testing.assert_array_equal(sample.correct, whole.correct[in_sample])
        assert sample.summary == whole.summary and 400 < sample.n_prompts < 600
    in_test = Split(0.2, 0).in_test(sample.groups).mean()
    assert 0.15 < in_test < 0.25, "the sample is drawn by other positions than the test part is"
    assert len(digests) == 1 and digests != {replace(sample, drawn_from="").digest}


def decisions(result, trained):
    """The tiers chosen for the prompts held out, and the estimates of success."""
    held_out = trained.log.rows(Split(0.2, 0).in_test(trained.log.groups)).prompts
    routed = Router.load(result.bundle).route_batch(held_out)
    return np.array([each.tier for each in routed]), np.array([list(each.success.values()) for each in routed])


def test_a_cluster_decides_as_one_process_does(two_workers, trained, sample_log, sample_tiers, tmp_path, monkeypatch):
    """In four parts on two workers LightGBM bags other rows, as with another seed: benchmarks/scale.md."""
    monkeypatch.setattr(clusters, "ROWS_PER_PART", 2500)
    result = train(sample_log, sample_tiers, tmp_path / "m" / "bundle", cluster=two_workers, tracking_uri="none")
    assert result.manifest.training["data_digest"] == trained.manifest.training["data_digest"]
    assert result.manifest.training["n_trained_on"] == trained.manifest.training["n_trained_on"]
    (ours, our_success), (theirs, their_success) = decisions(result, trained), decisions(trained, trained)
    assert np.mean(ours == theirs) >= 0.92
    assert np.abs(our_success - their_success).mean() <= 0.03
    assert sorted(path.name for path in (tmp_path / "m" / ".cache").iterdir()) == ["embeddings", "encoders"]


def test_in_one_part_the_classifier_is_that_of_one_process(two_workers, trained, sample_log, sample_tiers, tmp_path):
    tiers, log = read_tiers(sample_tiers), trained.log
    known = log.rows(~Split(0.2, 0).in_test(log.groups))
    encoder = learn_static(known.prompts, StaticRecipe(vocab_size=400, n_lsa=8, n_distilled=8))
    vectors = embed(encoder, known.prompts, known.prompt_ids).vectors
    costs = attempt_costs(known, tiers)
    ones = np.ones_like(known.correct)
    task = Task.prepare(vectors, known.correct, costs.cost_usd, known.groups, 0, ones)
    with at(two_workers, tmp_path) as cluster:
        cluster.ingest(sample_log, tiers, tmp_path / "quarantine.parquet")
        fit = cluster.fit_label_forest(encoder, tiers, costs.mean_output_tokens)
        for left_out in (2, None):
            expected = label_forest_of(task)(left_out).raw_scores(vectors)
            np.testing.assert_allclose(fit(left_out).raw_scores(vectors), expected, atol=1e-6)
    assert cluster.n_trained_on(0) == known.n_prompts


def test_what_was_trained_on_beyond_the_sample_is_never_judged(
    two_workers, trained, sample_log, sample_tiers, tmp_path, monkeypatch
):
    monkeypatch.setattr(clusters, "MAX_SAMPLE", 600)
    monkeypatch.setattr(clusters, "ROWS_PER_PART", 2500)
    result = train(sample_log, sample_tiers, tmp_path / "bundle", cluster=two_workers, tracking_uri="none")
    facts = result.manifest.training
    assert facts["n_prompts"] == trained.log.n_prompts > facts["n_sampled"] == result.log.n_prompts
    assert facts["n_trained_on"] == trained.manifest.training["n_trained_on"]
    part = TrainingData.load(result.bundle)
    np.testing.assert_array_equal(part.saw(trained.log.groups), ~Split(0.2, 0).in_test(trained.log.groups))
    assert f"sample of {facts['n_sampled']:,}" in (result.bundle / "README.md").read_text()


def test_logs_that_cannot_be_used_are_refused_as_in_one_process(two_workers, sample_tiers, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"prompt": "a"}\nbroken\n')
    with pytest.raises(LogError, match="no usable row .*no model"):
        table_of(two_workers, tmp_path / "log.jsonl", read_tiers(sample_tiers), tmp_path)
    with pytest.raises(ConfigError, match="DataFrame"):
        table_of(two_workers, pd.DataFrame(), read_tiers(sample_tiers), tmp_path)


def test_a_scheduler_that_does_not_answer_is_refused(sample_log, sample_tiers, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://"):
        with pytest.raises(ConfigError, match=f"no Dask scheduler answers at {address}"):
            train(sample_log, sample_tiers, tmp_path / "bundle", cluster=address, tracking_uri="none")
    assert not (tmp_path / "bundle").exists()


def test_a_scheduler_without_workers_is_refused(sample_log, sample_tiers, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "CONNECT_SECONDS", 1)
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0") as nobody:
        with pytest.raises(ConfigError, match="no worker"):
            train(sample_log, sample_tiers, tmp_path / "bundle", cluster=nobody.scheduler_address, tracking_uri="none")


def test_other_versions_and_files_out_of_sight_are_refused(two_workers, log_files, sample_tiers, tmp_path, monkeypatch):
    def other_versions():
        return {"lightgbm": "0.1"}

    with monkeypatch.context() as patch:
        patch.setattr(workers, "facts_of_a_process", other_versions)
        with pytest.raises(ConfigError, match=r"lightgbm .*here it is 0\.1"):
            table_of(two_workers, log_files, read_tiers(sample_tiers), tmp_path)
    with at(two_workers, tmp_path) as cluster, pytest.raises(ConfigError, match="does not see"):
        cluster.workers.check([tmp_path / "elsewhere.parquet"])


def die(_):
    """What a worker does that runs out of memory."""
    os._exit(1)


def test_workers_that_die_are_a_clear_error_and_nothing_is_left(tmp_path):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        with at(cluster.scheduler_address, tmp_path) as place:
            with pytest.raises(ClusterError, match="could not finish .*KilledWorker"):
                place.workers.run(die, [0])
    assert not list((tmp_path / "cache").iterdir())


def test_a_worker_that_goes_while_lightgbm_is_fitted_is_a_clear_error(
    two_workers, sample_log, sample_tiers, tmp_path, monkeypatch
):
    """The others would wait for it for ever. The cluster starts another in its place."""
    monkeypatch.setattr(clusters, "ROWS_PER_PART", 5000)
    monkeypatch.setattr(clusters, "LABEL_ROUNDS", 100_000)
    with Client(two_workers) as client:
        [process, _] = client.run(os.getpid).values()

    def kill_soon(step):
        if step == "vectors and labels":
            Timer(1, os.kill, (process, signal.SIGKILL)).start()

    with pytest.raises(ClusterError, match="nothing was written"):
        train(
            sample_log, sample_tiers, tmp_path / "bundle",
            cluster=two_workers, tracking_uri="none", on_step=kill_soon,
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cache"]


def test_a_fit_is_tried_again_where_a_connection_breaks():
    """For a while: LightGBM's workers do not survive a system call that is interrupted."""
    alive = workers.Workers(SimpleNamespace(nthreads=lambda: {"tcp://a": 1}))
    failures = [LightGBMError("Socket recv error")] * (workers.ATTEMPTS - 1)

    def work():
        if failures:
            raise failures.pop()
        return "trees"

    assert alive.while_all_live(work) == "trees"
    failures += [LightGBMError("Socket recv error")] * workers.ATTEMPTS
    with pytest.raises(ClusterError, match="Socket recv error"):
        alive.while_all_live(work)


def test_dask_is_imported_only_where_a_cluster_is_asked_for():
    """By our own modules: lightgbm imports it wherever it is installed."""
    for path in [*(ROOT / "training").rglob("*.py"), *(ROOT / "router").rglob("*.py")]:
        imports = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in imports for alias in node.names} | {getattr(n, "module", "") for n in imports}
        assert not {name for name in names if name and name.split(".")[0] in ("dask", "distributed")}, path
        may_name_it = path.name == "backend.py" or path.parent.name == "distributed"
        assert may_name_it or "training.distributed" not in path.read_text(), path


def test_without_dask_the_extra_is_named(sample_log, sample_tiers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ConfigError, match=r"token-broker\[distributed\]"):
        train(sample_log, sample_tiers, tmp_path / "bundle", cluster="tcp://127.0.0.1:8786", tracking_uri="none")


def test_where_no_worker_is_left_it_says_so():
    nobody = workers.Workers(SimpleNamespace(nthreads=dict))
    with pytest.raises(ClusterError, match="no worker is left"):
        nobody.run(len, ["a"])


def test_a_worker_that_joins_later_with_another_version_does_nothing():
    other = {**workers.facts_of_a_process(), "duckdb": "0.1"}
    with pytest.raises(ConfigError, match="joined later has duckdb .*, here it is 0.1"):
        workers._done_by_a_worker(other, len, "a")
    assert workers._done_by_a_worker(workers.facts_of_a_process(), len, "a") == 1


def test_rows_of_a_text_file_are_estimated_from_its_first_lines(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text("".join(f'{{"prompt": "{"x" * 2000}", "model": "m{number}"}}\n' for number in range(3000)))
    assert 0.9 < clusters._n_rows(path) / 3000 < 1.1
