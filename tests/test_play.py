"""`broker play`: the page says what Python says, keeps nothing, and answers to nobody but itself."""

import http.client
import json
import re
import shutil
import subprocess
import threading
from html import unescape
from importlib.resources import files

import pytest

from router import Router
from router.bundle.bundle import Bundle
from router.cli import main
from router.errors import CheckError, DialError, PlayError
from router.play.command import play
from router.play.server import MOST_BYTES, PlayServer, content_policy
from router.play.trial import Trial, with_prices
from router.portfolio.prices import PriceTable

PROMPT = "Write a SQL query that returns the three newest orders of each customer."
EVIL = '<img src=x onerror="document.title=1">'
DEADLINE_S = 120


@pytest.fixture(scope="module")
def trial(bundle):
    loaded = Bundle.load(bundle)
    return Trial(loaded, EVIL, loaded.prices)


@pytest.fixture(scope="module")
def server(trial):
    with PlayServer(trial) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def ask(server, method="GET", path="/", body=None, **headers):
    """Status, headers and text of one answer. headers: with underscores for hyphens."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=DEADLINE_S)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if method == "POST":
        named.setdefault("Content-Type", "application/json")
    connection.request(method, path, body if body is None or isinstance(body, bytes) else json.dumps(body), named)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


# ---- what it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dials", [{}, {"quality": 0.8}, {"worth_usd": 0.01}, {"quality": 0.9, "worth_usd": 0.002}, {"critical": True}]
)
def test_the_page_is_told_the_decision_and_explanation_of_python(server, router, dials):
    status, _, text = ask(server, "POST", "/decide", {"prompt": PROMPT, **dials})
    told, decision = json.loads(text), router.route(PROMPT, **dials)
    expected = json.loads(decision.to_json())
    del told["decision"]["decision_id"], expected["decision_id"]
    assert status == 200 and told["decision"] == expected and told["plan"] is None
    assert told["explanation"] == json.loads(json.dumps(decision.explain().to_json()))


def test_the_page_is_told_the_plan_of_python_once_it_is_proven(trial, router):
    router.prove_plans(["rubric"])
    expected = json.loads(router.plan(PROMPT, checks=["rubric"]).to_json())
    request = {"prompt": PROMPT, "checks": ["rubric"]}
    snapshot = trial._snapshot({})
    first = trial.answer(request)["plan"]
    assert not first["is_proving"] or first["is_direct"]
    snapshot.plan_dials.proven(snapshot.bundle.planner.looks(["rubric"], 3))
    plan = trial.answer(request)["plan"]
    assert not plan["is_proving"] and plan["steps"] == expected["steps"]
    assert {name: plan[name] for name in ("success", "cost_usd", "reason", "promised")} == {
        name: expected[name] for name in ("success", "cost_usd", "reason", "promised")
    }


def test_prices_of_the_page_decide_as_the_same_prices_in_a_file(trial, bundle, tmp_path):
    dear = tmp_path / "prices.toml"
    dear.write_text((bundle / "tiers.toml").read_text().replace("= 5.00", "= 0.02").replace("= 1.25", "= 0.01"))
    router = Router.load(bundle)
    router.update_prices(dear)
    decision = router.route(PROMPT, quality=0.8)
    told = trial.answer({"prompt": PROMPT, "quality": 0.8, "prices": {"frontier": [[0.01, 0.02]]}})["decision"]
    assert told["tier"] == decision.tier == "frontier"
    assert told["cost_usd"] == pytest.approx(dict(decision.cost_usd))
    assert trial.answer({"prompt": PROMPT, "quality": 0.8})["decision"]["price_table_id"] == router.bundle.prices.id


def test_the_same_prices_are_the_same_table_and_other_limits_do_not_count(trial):
    assert with_prices(trial.prices, {"frontier": [(1.25, 5.0)]}) is trial.prices
    changed = with_prices(trial.prices, {"frontier": [(2.0, 5.0)]})
    assert changed.id != trial.prices.id and changed.limits == ()


def test_samples_are_of_the_log_only_where_the_bundle_kept_some(trial):
    about = trial.about()
    assert about["checks"] == ["agreement", "rubric"] and about["best_tier"] == "frontier"
    examples = {each for cluster in trial.bundle.clusters for each in cluster.examples}
    assert about["samples"] and (not examples or {each["prompt"] for each in about["samples"]} <= examples)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ([], PlayError, "JSON object"),
        ({"prompt": 1}, PlayError, "text `prompt`"),
        ({"prompt": "x", "colour": "red"}, PlayError, "keys"),
        ({"prompt": "x", "quality": 2}, DialError, "quality"),
        ({"prompt": "x", "worth_usd": "much"}, DialError, "worth_usd"),
        ({"prompt": "x", "checks": ["unheard"]}, CheckError, "unheard"),
        ({"prompt": "x", "checks": "rubric"}, PlayError, "list of names"),
        ({"prompt": "x", "prices": {"frontier": [[1, float("nan")]]}}, PlayError, "per million"),
        ({"prompt": "x", "prices": {"frontier": [[1, -1]]}}, PlayError, "per million"),
        ({"prompt": "x", "prices": {"frontier": [[1, 1], [1, 1]]}}, PlayError, "1 offers"),
        ({"prompt": "x", "prices": {"nobody": []}}, PlayError, "nobody"),
    ],
)
def test_a_request_of_another_form_says_what_is_expected(trial, server, request_, error, words):
    with pytest.raises(error, match=re.escape(words)):
        trial.answer(request_)
    status, _, text = ask(server, "POST", "/decide", request_)
    assert status == 400 and words in json.loads(text)["error"]


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b'{"prompt": "\\ud800", "checks": ["\\ud800"]}'])
def test_what_is_no_json_is_refused_and_the_server_goes_on(server, body):
    assert ask(server, "POST", "/decide", body)[0] == 400
    assert ask(server, "POST", "/decide", {"prompt": "\ud800 x"})[0] == 200


# ---- to whom ---------------------------------------------------------------------------------------


def test_it_stands_on_the_loopback_interface_only(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/", "/bundle", "/decide"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "127.0.0.1:1"])
def test_a_request_for_another_host_is_refused(server, host, path):
    method = "POST" if path == "/decide" else "GET"
    status, _, text = ask(server, method, path, {"prompt": PROMPT}, Host=host)
    assert status == 421 and "frontier" not in text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Content_Type": "text/plain"},
    ],
)
def test_a_request_from_another_site_is_refused(server, headers):
    assert ask(server, "POST", "/decide", {"prompt": PROMPT}, **headers)[0] in (403, 415)


def test_its_own_page_is_answered_under_both_names(server):
    for host in ("127.0.0.1", "localhost"):
        at = f"{host}:{server.server_port}"
        headers = {"Host": at, "Origin": f"http://{at}", "Sec_Fetch_Site": "same-origin"}
        assert ask(server, "POST", "/decide", {"prompt": PROMPT}, **headers)[0] == 200


def test_other_addresses_and_large_bodies_are_refused(server):
    assert ask(server, path="/../manifest.json")[0] == 404
    assert ask(server, "POST", "/decide", b"", Content_Length=str(MOST_BYTES + 1))[0] == 413
    assert ask(server, "POST", "/decide", b"", Content_Length="-1")[0] == 411
    assert ask(server, "PUT", "/decide", b"")[0] == 501


def test_nothing_of_a_prompt_is_kept_or_printed(server, capfd):
    secret = "the password is kumquat"
    status, headers, text = ask(server, "POST", "/decide", {"prompt": secret, "checks": ["rubric"]})
    assert status == 200 and "kumquat" not in text and headers["Cache-Control"] == "no-store"
    assert "kumquat" not in "".join(capfd.readouterr())


# ---- the page --------------------------------------------------------------------------------------


def test_the_page_may_run_its_own_script_and_nothing_else(server):
    page = files("router.play").joinpath("page.html").read_text(encoding="utf-8")
    status, headers, text = ask(server)
    assert status == 200 and text == page
    assert headers["Content-Security-Policy"] == content_policy(page)
    assert "unsafe" not in content_policy(page) and content_policy(page).count("'sha256-") == 2
    assert not re.search(r"https?://|innerHTML|\son[a-z]+=|localStorage|sessionStorage|cookie", page)


@pytest.fixture(scope="module")
def shown(server, bundle, tmp_path_factory):
    """The page as chromium has made it, with a model whose name is a tag."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is missing: the page is tested in a browser")
    trial = server.trial
    text = trial.prices.text.replace('"sim/edge-4b"', f"'{EVIL}'")
    server.trial = Trial(trial.bundle, EVIL, PriceTable.parse(text))
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--virtual-time-budget=10000",
        "--dump-dom",
    ]
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    try:
        done = subprocess.run(
            [chromium, *words, profile, server.url], capture_output=True, text=True, timeout=DEADLINE_S
        )
        return done.stdout, server.trial
    finally:
        server.trial = trial


def test_the_page_shows_what_python_decides(shown):
    page, trial = shown
    first = trial.about()["samples"][0]["prompt"]
    decision, explanation = (
        trial.answer({"prompt": first, "quality": 0.98})[name] for name in ("decision", "explanation")
    )
    assert f'class="tier">{decision["tier"]}</p>' in page
    assert f'value="{decision["success"][decision["tier"]]}"' in page
    shown_text = unescape(re.sub(r"<[^>]*>", " ", page))
    assert all(line in shown_text for line in explanation["why"])
    assert all(change["text"] in shown_text for change in explanation["changes"])
    assert f'data-tier="{decision["tier"]}"' in page and 'class="row chosen"' in page


def test_a_name_that_is_a_tag_is_shown_as_text(shown):
    page, _ = shown
    assert "<img" not in page and "&lt;img src=x onerror=" in page
    assert "<title>1</title>" not in page


# ---- the command -----------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_stopped(bundle, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("router.play.command.webbrowser.open", opened.append)

    def stopped_at_once(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(PlayServer, "serve_forever", stopped_at_once)
    assert main(["play", "--bundle", str(bundle), "--port", "0"]) == 0
    assert main(["play", "--bundle", str(bundle), "--port", "0", "--no-browser"]) == 0
    (address,) = opened
    assert address in capsys.readouterr().out and address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("port", ["taken", "70000"])
def test_a_port_that_cannot_be_had_says_what_to_do(bundle, server, capsys, port):
    port = str(server.server_port) if port == "taken" else port
    assert main(["play", "--bundle", str(bundle), "--port", port, "--no-browser"]) == 2
    assert "--port" in capsys.readouterr().err


def test_it_needs_no_extra():
    assert play.help and "extra" not in play.help
