"""The service in one file serves: it asks whom the router chose, takes outcomes, and follows prices."""

import importlib.util
import shutil
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed; the extra gateway brings it")
testclient = pytest.importorskip("fastapi.testclient", reason="httpx is not installed; the extra gateway brings it")

SERVICE = Path(__file__).parent.parent / "examples" / "service" / "service.py"
CHAT = {"messages": [{"role": "user", "content": "What is 17 * 23?"}]}
DEADLINE_S = 60


@pytest.fixture(scope="module")
def service():
    """The module, from its file."""
    spec = importlib.util.spec_from_file_location("service_example", SERVICE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def client(service, bundle, tmp_path):
    shutil.copy(bundle / "tiers.toml", tmp_path / "tiers.toml")
    app = service.make_app(bundle, tmp_path / "tiers.toml", tmp_path / "logs", interval_s=0.05)
    with testclient.TestClient(app) as running:
        yield running


def health_until(client, holds) -> dict:
    deadline = time.monotonic() + DEADLINE_S
    while not holds(state := client.get("/healthz").json()):
        assert time.monotonic() < deadline, state
        time.sleep(0.02)
    return state


def test_a_chat_is_answered_by_the_tier_that_was_chosen_and_its_outcome_reaches_the_log(service, client, tmp_path):
    answer = client.post("/chat", json={**CHAT, "quality": 0.9}).json()
    assert answer["answer"] == f"{answer['model']} would answer here." and answer["tier"] in answer["reason"]
    said = {"decision_id": answer["decision_id"], "correct": 1}
    assert client.post("/outcomes", json=said).json() == {"stored": True}
    log = service.OutcomeLog(tmp_path / "logs")
    log.compact()
    (row,) = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "logs").to_pylist()
    assert row["decision_id"] == answer["decision_id"] and row["correct"] == 1 and row["output_tokens"] == 8
    assert row["model"] == answer["model"] and row["ended"] == "complete" and "17 * 23" in row["prompt"]


def test_new_prices_are_followed_and_broken_ones_are_not(client, tmp_path):
    before = health_until(client, lambda state: state["watching"] and not state["trouble"])
    prices = tmp_path / "tiers.toml"
    prices.write_text(prices.read_text() + "\n# another day\n")
    after = health_until(client, lambda state: state["price_table_id"] != before["price_table_id"])
    prices.write_text("[[tiers]]")
    broken = health_until(client, lambda state: state["trouble"])
    assert broken["price_table_id"] == after["price_table_id"] and broken["lost"] == 0
    assert client.post("/chat", json=CHAT).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/chat", {**CHAT, "quality": 2}, 400), ("/chat", {"messages": []}, 422), ("/chat", {}, 422),
     ("/outcomes", {"decision_id": "x", "correct": 1}, 422),
     ("/outcomes", {"decision_id": "0" * 32, "correct": 3}, 422)],
    ids=str,
)  # fmt: skip
def test_what_is_no_request_is_refused(client, path, body, status):
    assert client.post(path, json=body).status_code == status
