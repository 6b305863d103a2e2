"""Laws of examples/local: tasks with exact answers, a price that is that of the machine's time, and real models."""

import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from router import Router
from router.portfolio.tiers import parse_tiers

FOLDER = Path(__file__).parent.parent / "examples" / "local"
sys.path.insert(0, str(FOLDER))

from asking import Asked, CorePrice, tiers_toml  # noqa: E402
from servers import MODELS, missing  # noqa: E402
from tasks import EXAMPLES, KINDS, make_tasks  # noqa: E402

LIMIT_S = 900


def test_the_same_seed_makes_the_same_tasks_and_no_task_is_asked_twice():
    tasks = make_tasks(600)
    assert tasks == make_tasks(600) != make_tasks(600, seed=2)
    assert len({task.prompt for task in tasks}) == 600
    assert len({task.kind for task in tasks}) == len(KINDS)
    assert not {task.prompt for task in tasks} & {question for question, _ in EXAMPLES}


def test_the_right_answer_is_right_in_a_sentence_too_and_nothing_else_is():
    for task in make_tasks(600):
        for text in (task.right, f" {task.right}", f"It is {task.right}.", f"{task.right.upper()}\nQuestion: more"):
            assert task.is_right(text), (task, text)
        for text in ("", "\n", "perhaps", "-7"):
            assert not task.is_right(text), (task, text)
        if task.choices:
            assert task.right in task.choices
            assert not any(task.is_right(choice) for choice in task.choices if choice != task.right)


def test_more_tasks_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr("tasks.KINDS", [kind for kind in KINDS if kind.__name__ == "_capital"])
    with pytest.raises(ValueError, match="only 48 different ones"):
        make_tasks(49)


def test_at_the_price_in_tiers_toml_all_tokens_cost_what_all_answers_cost():
    price = CorePrice(watts=12, bandwidth_usd_per_hour=0.001, utilization=0.4)
    rows = [{"input_tokens": 40 + n, "output_tokens": n, "cost_usd": n * price.usd_per_second} for n in range(1, 9)]
    asked = Asked(model=MODELS[0], rows=rows, core_s=sum(range(1, 9)))
    (tier,) = parse_tiers(tiers_toml([asked], price, "a machine"))
    tokens = sum(row["input_tokens"] + row["output_tokens"] for row in rows)
    logged = sum(row["cost_usd"] for row in rows)
    assert tokens / 1e6 * tier.offers[0].usd_per_mtok_input == pytest.approx(logged, rel=2e-3)
    assert logged == pytest.approx(36 / 3600 * (0.012 * 0.3 + 0.001 + 100 / 35064) / 0.4, rel=1e-3)


@pytest.mark.skipif(bool(missing()), reason=f"{', '.join(missing())} not installed: make test-local installs them")
def test_two_real_models_answer_ninety_tasks_and_the_router_trained_on_them_serves(tmp_path):
    bundle = tmp_path / "local"
    train_on_ninety_tasks(bundle)
    if find_spec("litellm") is not None:
        serve_and_ask(bundle)


def train_on_ninety_tasks(bundle: Path) -> None:
    """The whole example; training takes sixty prompts and what is held out."""
    command = [sys.executable, FOLDER / "run.py", "--tasks", "90", "--out", bundle]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    log = pd.read_parquet(bundle.with_name("local-log.parquet"))
    assert len(log) == 180 and log["prompt"].nunique() == 90
    assert (log["cost_usd"] > 0).all() and (log["output_tokens"] <= 16).all()
    assert all(0.2 < of_model["correct"].mean() < 0.9 for _, of_model in log.groupby("model"))
    for command in ("audit", "train", "route", "plan"):
        assert f"$ broker {command}" in done.stdout
    assert {tier.name for tier in Router.load(bundle).prices.tiers} == {model.tier for model in MODELS}


def serve_and_ask(bundle: Path) -> None:
    """Both models behind the broker, on a free port: one question, its answer, and an end when asked to."""
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = "sk-local-example"
    environment = {**os.environ, "LITELLM_MASTER_KEY": key, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, FOLDER / "serve.py", "--bundle", bundle, "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert any("The broker answers" in line for line in process.stdout)
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json={"model": "broker", "messages": [{"role": "user", "content": make_tasks(1)[0].prompt}]},
            timeout=LIMIT_S,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"].strip()
        assert answer.headers["x-broker-tier"] in {model.tier for model in MODELS}
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
