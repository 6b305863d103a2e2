"""The command `broker`: results on stdout, all else on stderr, exit codes that mean what the contract says."""

import io
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points

import pandas as pd
import pytest
from tqdm import tqdm

from router import Router
from router.cli import COMMAND_GROUP, main
from router.command import own_command
from router.plans.checks import CheckModel
from training.demo import DEMO_PROMPTS
from training.progress import StepBar

PROMPT = "What is 17 * 23?"


@pytest.fixture(scope="module")
def sample(request):
    folder = request.config.rootpath / "data"
    return folder / "sample-log.parquet", folder / "tiers.toml"


@pytest.fixture(scope="module")
def small_log(sample, tmp_path_factory):
    """Three hundred prompts as JSONL, with a broken line."""
    frame = pd.read_parquet(sample[0])
    some = frame[frame.prompt.isin(sorted(frame.prompt.unique())[::10][:300])]
    path = tmp_path_factory.mktemp("logs") / "small.jsonl"
    some.to_json(path, orient="records", lines=True, date_format="iso")
    path.write_text(path.read_text() + "this is no JSON\n")
    return path


@pytest.fixture(scope="module")
def small_bundle(small_log, sample, tmp_path_factory):
    """Trained by the command itself; the document that it printed stands beside the bundle."""
    out = tmp_path_factory.mktemp("models") / "small"
    words = ["train", "--logs", small_log, "--tiers", sample[1], "--out", out, "--tracking-uri", "none", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "router", *map(str, words)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "train:" in done.stderr
    out.with_name("printed.json").write_text(done.stdout)
    return out


@pytest.fixture
def run(capsys):
    """Runs `broker` in this process: exit code, stdout, stderr."""

    def run(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return run


def stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def assert_refused(result, code, *words):
    """The exit code, nothing on stdout, and one readable line on stderr; a slow machine shows progress, too."""
    found, stdout, stderr = result
    assert (found, stdout) == (code, "")
    (message,) = (line for line in stderr.splitlines() if line.strip() and not re.search(r"^(train|evaluate): ", line))
    assert message.startswith("broker: ")
    assert "Traceback" not in stderr
    assert all(word in stderr for word in words), stderr


# ---- route -----------------------------------------------------------------------------------------


def test_route_says_where_and_why(run, bundle):
    code, stdout, stderr = run("route", "--bundle", bundle, PROMPT)
    decision = Router.load(bundle).route(PROMPT)
    assert (code, stderr) == (0, "")
    assert stdout.startswith(f"{decision.tier}  ->  {decision.offer.model}")
    assert decision.reason in stdout
    assert all(tier in stdout for tier in decision.success)


@pytest.mark.parametrize("dials", [{}, {"quality": 0.9}, {"worth_usd": 0.01}, {"quality": 0.8, "worth_usd": 0.1}])
def test_route_prints_the_decision_of_the_python_interface(run, bundle, dials):
    options = [word for name, value in dials.items() for word in (f"--{name.replace('_', '-')}", value)]
    code, stdout, _ = run("route", "--bundle", bundle, "--json", *options, PROMPT)
    assert code == 0
    shown, expected = json.loads(stdout), json.loads(Router.load(bundle).route(PROMPT, **dials).to_json())
    assert shown.pop("decision_id") != expected.pop("decision_id")
    assert shown == expected


def test_route_critical_and_with_other_prices(run, bundle, tmp_path):
    assert json.loads(run("route", "--bundle", bundle, "--critical", "--json", PROMPT)[1])["tier"] == "frontier"
    prices = tmp_path / "prices.toml"
    prices.write_text((bundle / "tiers.toml").read_text().replace("= 5.00", "= 0.01").replace("= 1.25", "= 0.01"))
    code, stdout, _ = run("route", "--bundle", bundle, "--prices", prices, "--quality", "0.8", "--json", PROMPT)
    assert (code, json.loads(stdout)["tier"]) == (0, "frontier")


def test_route_answers_every_line_of_jsonl_and_marks_the_broken_ones(run, bundle, monkeypatch):
    lines = [
        json.dumps({"prompt": PROMPT, "request_id": "a"}).encode(),
        b"",
        b"{broken",
        json.dumps({"messages": [{"role": "user", "content": PROMPT}], "quality": 0.9}).encode(),
        b'{"prompt": "\xff"}',
        b'["no object"]',
        b'{"prompt": "x", "colour": "red"}',
        b'{"prompt": "x", "quality": 2}',
        b'{"prompt": "x", "quality": [1]}',
        b"[" * 100_000,
        json.dumps({"prompt": PROMPT, "worth_usd": 0.5}).encode(),
    ]
    stdin(monkeypatch, b"\n".join(lines) + b"\n")
    code, stdout, _ = run("route", "--bundle", bundle, "-")
    answers = [json.loads(line) for line in stdout.splitlines()]
    assert code == 2
    assert len(answers) == 10
    assert ["error" in answer for answer in answers] == [0, 1, 0, 1, 1, 1, 1, 1, 1, 0]
    assert answers[0]["request_id"] == "a"
    assert answers[2]["quality"] == 0.9
    assert answers[1]["error"].startswith("line 3: ")


def test_a_whole_stream_of_requests_is_done(run, bundle, monkeypatch):
    stdin(monkeypatch, b'{"prompt": "a"}\n{"prompt": "\xe4\xbd\xa0\xe5\xa5\xbd"}')
    code, stdout, stderr = run("route", "--bundle", bundle, "--quality", "0.9", "-")
    assert (code, stderr) == (0, "")
    assert [json.loads(line)["quality"] for line in stdout.splitlines()] == [0.9, 0.9]


# ---- plan ------------------------------------------------------------------------------------------


def test_plan_prints_reason_and_tree(run, bundle):
    code, stdout, stderr = run("plan", "--bundle", bundle, "--quality", "0.9", PROMPT)
    lines = stdout.splitlines()
    assert (code, stderr) == (0, "") and "being proven" not in lines[0] and lines[1].startswith("ask ")
    assert any("return the answer of" in line for line in lines[2:])


@pytest.mark.parametrize(
    "check", ["agreement", "tests:sensitivity=1,specificity=0.86", "tests:sensitivity=1,specificity=0.9,usd=0.0001"]
)
def test_plan_prints_the_plan_of_the_python_interface(run, bundle, check):
    code, stdout, _ = run("plan", "--bundle", bundle, "--check", check, "--worth-usd", "0.01", "--json", PROMPT)
    router = Router.load(bundle)
    checks = [CheckModel.declared_by(check, len(router.bundle.manifest.tiers)) if ":" in check else check]
    printed, found = json.loads(stdout), json.loads(router.plan(PROMPT, checks=checks, worth_usd=0.01).to_json())
    assert code == 0 and printed["checks"] == [check.partition(":")[0]]
    for document in (printed, found):
        del document["decision"]["decision_id"]
    assert printed == found


def test_plan_with_one_call_is_direct(run, bundle):
    code, stdout, _ = run("plan", "--bundle", bundle, "--max-calls", "1", "--json", PROMPT)
    assert code == 0 and json.loads(stdout)["is_direct"]


@pytest.mark.parametrize(
    "words", [("--check", "unheard_of"), ("--check", "tests:sensitivity=2"), ("--max-calls", "4"), ("--quality", "2")]
)
def test_a_plan_that_cannot_be_made_is_bad_input(run, bundle, words):
    assert_refused(run("plan", "--bundle", bundle, *words, PROMPT), 2, "expected" if words[1] != "unheard_of" else "")


# ---- verify ----------------------------------------------------------------------------------------


def test_verify_passes_what_training_wrote_and_fails_what_was_touched(run, bundle, tmp_path):
    code, stdout, stderr = run("verify", "--bundle", bundle)
    assert (code, stderr) == (0, "")
    assert "20 golden prompts, 20 plans, all as expected" in stdout
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "tiers.toml").write_text((copy / "tiers.toml").read_text().replace("1.25", "1.26"))
    assert_refused(run("verify", "--bundle", copy), 1, "tiers.toml", "SHA-256")
    code, stdout, _ = run("verify", "--bundle", copy, "--json")
    assert (code, json.loads(stdout)["ok"]) == (1, False)
    (copy / "manifest.json").unlink()
    assert_refused(run("verify", "--bundle", copy), 1, "no complete bundle")


def test_verify_prints_one_document(run, bundle, trained):
    code, stdout, _ = run("verify", "--bundle", bundle, "--json")
    document = json.loads(stdout)
    assert code == 0
    assert document["ok"] and document["bundle_id"] == trained.manifest.bundle_id
    assert document["n_prompts"] == document["n_plans"] == 20 and document["other_tier"] == document["other_plan"] == []


# ---- train and evaluate ----------------------------------------------------------------------------


def test_train_on_three_hundred_prompts_prints_one_document_and_keeps_to_its_place(small_bundle):
    document = json.loads(small_bundle.with_name("printed.json").read_text())
    assert document["bundle_id"] == Router.load(small_bundle).bundle.manifest.bundle_id
    assert document["n_prompts"] == document["n_embedded"] == 300
    assert document["rows_quarantined"] == 1
    assert document["mlflow_run_id"] is None
    assert document["log"]["quarantined"] == {"not a JSON object": 1}
    assert document["log"]["quarantine"] == str(small_bundle.with_name("small-quarantine.parquet"))
    assert sum(document["label_distribution"].values()) == pytest.approx(1)
    assert {path.name for path in small_bundle.parent.iterdir()} == {
        "small", "small-training.parquet", "small-quarantine.parquet", ".cache", "printed.json",
    }  # fmt: skip


def test_evaluate_prints_one_json_document_and_nothing_else(run, small_bundle, small_log, tmp_path):
    quarantine = tmp_path / "broken.parquet"
    words = ["--bundle", small_bundle, "--logs", small_log, "--quarantine", quarantine]
    code, stdout, _ = run("evaluate", *words, "--json")
    assert code == 0
    document = json.loads(stdout)
    assert document["log"]["quarantined"] == {"not a JSON object": 1}
    assert document["log"]["quarantine"] == str(quarantine) and len(pd.read_parquet(quarantine)) == 1
    assert document["tiers"] == ["edge", "distilled", "frontier"]
    assert document["n_trained_on"] + document["n_prompts"] + document["n_incomplete"] == 300


def test_evaluate_judges_plans_with_checks_of_stated_figures(run, small_bundle, small_log):
    check = "perfect:sensitivity=1,specificity=1"
    words = ["evaluate", "--bundle", small_bundle, "--logs", small_log, "--simulate-check", check]
    code, stdout, _ = run(*words, "--tables")
    assert code == 0 and "PLANS: COST RELATIVE TO THE BEST TIER" in stdout
    for who in ("fixed cascade", "thresholds", "cascade routing", "plans"):
        assert f"{who}, perfect" in stdout and f"{who}, agreement" in stdout
    assert "LOG LIKELIHOOD" in stdout and "right after a failure" in stdout and "right where two agree" in stdout
    assert_refused(run(*words[:-1], "perfect"), 2, "expected")


def test_the_reason_of_a_decision_names_the_number_of_the_report(run, small_bundle, small_log, sample):
    manifest = Router.load(small_bundle).bundle.manifest
    refused = [point for point in manifest.dial if not point.promised and point.n_needed]
    assert refused
    code, stdout, _ = run("audit", "--logs", small_log, "--tiers", sample[1], "--json")
    n_training = json.loads(stdout)["n_training"]
    assert (code, manifest.promise["n_prompts"]) == (0, n_training)
    card = (small_bundle / "README.md").read_text()
    for point in refused:
        code, stdout, _ = run("route", "--bundle", small_bundle, "--quality", point.quality, "--json", PROMPT)
        counted = (
            f"about {point.n_needed:,} prompts that every tier answered, in the training part: there are {n_training}"
        )
        assert code == 0 and counted in json.loads(stdout)["reason"]
        assert f"| {point.quality:.2f} | no | about {point.n_needed:,} |" in card


def test_evaluate_begins_with_the_headline_and_prints_all_tables_where_asked(run, small_bundle, small_log):
    code, stdout, _ = run("evaluate", "--bundle", small_bundle, "--logs", small_log)
    assert code == 0 and stdout.startswith("At quality 0.98 the router keeps ") and "ROUTER AND BASELINES" not in stdout
    assert len(stdout.splitlines()) < 30 and "--tables" in stdout
    code, stdout, _ = run("evaluate", "--bundle", small_bundle, "--logs", small_log, "--tables")
    assert code == 0 and stdout.startswith("At quality 0.98 the router keeps ")
    beside = small_bundle.with_name("small-evaluation-quarantine.parquet")
    assert "1 rows quarantined: not a JSON object" in stdout and f"broken rows are in {beside}" in stdout
    beside.unlink()
    assert "ROUTER AND BASELINES" in stdout


def test_the_demo_says_the_headline_routes_what_the_log_covers_and_shows_commands_to_paste(
    run, trained, router, monkeypatch, tmp_path
):
    monkeypatch.setattr("training.demo.train", lambda *rest, **more: trained)
    code, stdout, _ = run("demo", "--out", trained.bundle)
    assert code == 0 and trained.evaluation.headline.text in " ".join(stdout.split())
    assert "The curve" not in stdout and len(stdout.splitlines()) < 40
    assert f"broker play --bundle {trained.bundle}" in stdout and "mlflow" in stdout
    decisions = [router.route(prompt) for prompt in DEMO_PROMPTS]
    assert {decision.familiarity for decision in decisions} == {1.0}
    assert {decision.tier for decision in decisions} == set(router.bundle.manifest.tiers)


def test_a_command_that_is_shown_is_the_one_that_ran(tmp_path, monkeypatch):
    script = tmp_path / ".venv" / "bin" / "broker"
    script.parent.mkdir(parents=True)
    (tmp_path / ".venv" / "lib").mkdir()
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "demo"])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert own_command() == ".venv/bin/broker"
    monkeypatch.chdir(script.parent)
    assert own_command() == "./broker"
    monkeypatch.chdir(tmp_path / ".venv" / "lib")
    assert own_command() == str(script)
    monkeypatch.setenv("PATH", str(script.parent))
    assert own_command() == "broker"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "router" / "__main__.py")])
    assert own_command().endswith(" -m router")


def test_a_bar_knows_all_steps_and_skips_those_that_a_run_leaves_out(capsys, monkeypatch):
    monkeypatch.setattr("training.progress.tqdm", lambda **how: tqdm(**{**how, "delay": 0, "mininterval": 0}))
    with StepBar("train", ("a", "b", "c")) as bar:
        bar.done("b")
        bar.done("something else")
        bar.under_way("c", 0.4)
    shown = capsys.readouterr().err
    assert "2 of 3 steps" in shown and "c 40 %" in shown
    assert shown.rstrip().rpartition("\r")[2].startswith("train: 100%")


def test_audit_says_what_it_did_not_read_and_where_that_is(run, small_log, sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiers = tmp_path / "tiers.toml"
    tiers.write_text(sample[1].read_text().replace("sim/edge-4b", "sim/nano-1b"))
    words = ["audit", "--logs", small_log, "--tiers", tiers]
    code, stdout, _ = run(*words)
    assert code == 0 and "1 rows quarantined: not a JSON object" in stdout and "rows of models in no tier" in stdout
    assert "broken rows are in audit-quarantine.parquet" in stdout and (tmp_path / "audit-quarantine.parquet").exists()
    log = json.loads(run(*words, "--json", "--html", tmp_path / "page.html")[1])["log"]
    assert sum(log["in_no_tier"].values()) > 200 and log["n_used"] < log["n_rows"] - 200
    assert log["quarantine"] == str(tmp_path / "page-quarantine.parquet")
    assert "not a JSON object" in (tmp_path / "page.html").read_text()


def test_maps_reach_every_command(run, small_log, small_bundle, sample, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in small_log.read_text().splitlines()[:-1]]
    thumbs = tmp_path / "thumbs.jsonl"
    thumbs.write_text("".join(json.dumps({**row, "correct": 1 if row["correct"] else -1}) + "\n" for row in rows))
    how = ["--map", "correct=correct:1"]
    for words in (["audit", "--tiers", sample[1]], ["evaluate", "--bundle", small_bundle]):
        assert_refused(run(*words, "--logs", thumbs), 2, "-1 (", "--map correct=correct/5")
        code, stdout, _ = run(*words, "--logs", thumbs, *how)
        assert code == 0 and "quarantined" not in stdout
    assert_refused(train_with(run, tmp_path, thumbs, sample[1]), 2, "-1 (")
    assert_refused(train_with(run, tmp_path, thumbs, sample[1], "--map", "correct"), 2, "the map 'correct'")
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(thumbs.read_text().splitlines()[:9]))
    assert_refused(train_with(run, tmp_path, few, sample[1], *how), 2, "found")


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["fly"], ["route"], ["route", "--bundle", "x"], ["verify", "--colour", "red"]])
def test_wrong_usage_is_2_and_says_how(run, words):
    code, stdout, stderr = run(*words)
    assert (code, stdout) == (2, "")
    assert "usage: broker" in stderr


@pytest.mark.parametrize(
    ("command", "rest"), [("route", ["hello"]), ("verify", []), ("evaluate", ["--logs", "nowhere.parquet"])]
)
def test_a_missing_bundle_is_bad_input(run, tmp_path, command, rest):
    assert_refused(run(command, "--bundle", tmp_path / "nowhere", *rest), 2, "nowhere")


@pytest.mark.parametrize("dial", [["--quality", "2"], ["--quality", "nan"], ["--worth-usd", "-1"]])
def test_a_dial_out_of_range_is_bad_input(run, bundle, dial):
    assert_refused(run("route", "--bundle", bundle, *dial, "hello"), 2, "expected")


def test_a_price_table_of_other_tiers_is_bad_input(run, bundle, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text("[[tiers]]")
    assert_refused(run("route", "--bundle", bundle, "--prices", prices, "hello"), 2, "price table refused")


def train_with(run, tmp_path, logs, tiers, *more):
    words = ["train", "--logs", logs, "--tiers", tiers, "--out", tmp_path / "out", "--tracking-uri", "none", *more]
    result = run(*words)
    assert not (tmp_path / "out").exists()
    return result


def test_broken_tiers_are_bad_input(run, small_log, tmp_path):
    tiers = tmp_path / "tiers.toml"
    for text in ("[[tiers]", "", '[[tiers]]\nname = "edge"'):
        tiers.write_text(text)
        assert_refused(train_with(run, tmp_path, small_log, tiers), 2, "tiers.toml")
    assert_refused(train_with(run, tmp_path, small_log, tmp_path / "none.toml"), 2, "none.toml")


def test_logs_that_cannot_be_learned_from_are_bad_input(run, sample, small_log, tmp_path):
    one_tier = tmp_path / "one-tier.jsonl"
    rows = [json.loads(line) for line in small_log.read_text().splitlines()[:-1]]
    one_tier.write_text("\n".join(json.dumps(row) for row in rows if "edge" in row["model"]))
    assert_refused(train_with(run, tmp_path, one_tier, sample[1]), 2, "two tiers")
    assert_refused(train_with(run, tmp_path, tmp_path / "nowhere.parquet", sample[1]), 2, "nowhere.parquet")
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(json.dumps(row) for row in rows[:9]))
    assert_refused(train_with(run, tmp_path, few, sample[1]), 2)


def test_a_log_that_was_all_trained_on_is_bad_input(run, small_bundle, small_log, tmp_path):
    part = pd.read_parquet(small_bundle.with_name("small-training.parquet"))
    rows = [json.loads(line) for line in small_log.read_text().splitlines()[:-1]]
    seen = tmp_path / "seen.jsonl"
    seen.write_text("\n".join(json.dumps(row) for row in rows if row["question_key"] in set(part.group)))
    assert_refused(run("evaluate", "--bundle", small_bundle, "--logs", seen), 2, "no prompt to judge")


def test_a_tracking_server_that_does_not_answer_is_bad_input_before_training(
    run, sample, small_log, tmp_path, silent_server
):
    result = train_with(run, tmp_path, small_log, sample[1], "--tracking-uri", silent_server)
    assert_refused(result, 2, f"tracking at {silent_server} failed", "--tracking-uri", "MLFLOW_TRACKING_URI")


def test_a_folder_that_cannot_be_written_to_is_bad_input_before_training(run, sample, small_log, unwritable):
    words = ["--logs", small_log, "--tiers", sample[1]]
    result = run("train", *words, "--out", unwritable / "mine", "--tracking-uri", "none")
    assert_refused(result, 2, f"{unwritable} cannot be written to", "--out")
    assert_refused(run("retrain", *words, "--store", unwritable), 2, f"{unwritable} cannot be written to", "--store")


def test_a_setting_out_of_range_is_bad_input(run, sample, small_log, tmp_path):
    assert_refused(train_with(run, tmp_path, small_log, sample[1], "--default-quality", "1.5"), 2, "default_quality")


# ---- the command itself ----------------------------------------------------------------------------


def test_help_names_every_command_without_loading_what_they_need():
    code = "import sys; from router.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert all(name in shown for name in ("route", "verify", "train", "evaluate", "demo"))
    assert not {"training", "lightgbm", "pandas", "duckdb", "mlflow"} & set(shown.split())


def test_python_m_router_is_broker():
    done = subprocess.run([sys.executable, "-m", "router", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: broker")


def test_commands_of_the_extra_are_entry_points_and_their_absence_says_what_to_install(run, monkeypatch):
    assert {entry.name for entry in entry_points(group=COMMAND_GROUP)} >= {"train", "evaluate", "demo"}
    monkeypatch.setattr("router.cli.entry_points", lambda group: [])
    for name in ("train", "evaluate", "demo"):
        assert_refused(run(name), 2, f"broker {name}", "pip install")


def test_commands_stand_in_the_order_in_which_one_needs_them(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    places = [shown.index(f"\n    {name}") for name in ("demo", "audit", "train", "route", "serve", "retrain")]
    assert places == sorted(places)
    assert "where to begin:" in shown


def test_without_a_command_it_says_where_to_begin(capsys):
    assert main([]) == 2
    assert "broker demo" in capsys.readouterr().err


def test_it_knows_its_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("token-broker ")
