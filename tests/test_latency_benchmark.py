"""The latency benchmark runs, on a short list of contenders, and says what it leaves out."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "latency.py"


def test_every_contender_answers_every_prompt_and_what_is_missing_is_named(bundle, sample_log):
    command = [sys.executable, SCRIPT, "--static", bundle, "--prompts", sample_log, "--json"]
    command += ["--tokens", "48", "5000", "--most", "120", "--contenders"]
    command += ["bare tokenizer", "static bundle", "minilm bundle"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(run.stdout)
    assert "minilm bundle: left out, it needs --minilm" in run.stderr
    assert "5000 tokens: left out" in run.stderr
    rows = {row["contender"]: row for row in document["latency"]}
    assert set(rows) == {"bare tokenizer", "static bundle"}
    assert rows["bare tokenizer"]["ratio"] == 1
    for row in rows.values():
        assert row["n"] == 120
        assert 0 < row["p50_us"] <= row["p95_us"] <= row["p99_us"]
    ratios = {(row["contender"], row["to"]): row["ratios"] for row in document["ratios"]}
    assert ratios["static bundle", "bare tokenizer"] == {"48": rows["static bundle"]["ratio"]}
    assert ratios["minilm bundle", "bare MiniLM encoder"] == {"48": None}


def test_a_folder_that_is_no_bundle_is_refused(tmp_path, sample_log):
    command = [sys.executable, SCRIPT, "--static", tmp_path, "--prompts", sample_log]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert "found no manifest.json" in run.stderr
