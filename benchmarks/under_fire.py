"""What a router keeps while processes are killed, bundles reloaded and providers fail.

    .venv/bin/python benchmarks/under_fire.py --bundle models/NAME

Takes about two minutes on two cores, and the extras `outcomes` and `gateway`. It talks to the loopback only and writes
into a temporary folder only. Processes, kills and files are real; providers are simulated. Prints a Markdown table:
what was done, how often, and how often a promise of docs/reliability.md did not hold.
"""

import argparse
import http.client
import itertools
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
from gateway import free_port, wait_until_alive

from router import BundleError, PriceError, Router
from router.bundle.manifest import GOLDEN_FILE, GRAPH_FILE, TIERS_FILE
from router.outcomes import OutcomeLog

KILL_S, RELOAD_S = 25.0, 15.0
N_THREADS = 16
N_REQUESTS, N_AT_ONCE = 40, 8
SETTINGS = {"num_retries": 0, "stream_timeout": 3, "timeout": 60, "allowed_fails": 1, "cooldown_time": 30}
"""`router_settings` of examples/litellm/config.yaml."""

Row = tuple[str, str, str]
"""What was done, how often, what did not hold."""

WRITER = """
import sys
from router import Router
from router.outcomes import OutcomeLog
decision, log = Router.load(sys.argv[1]).route("Hello!"), OutcomeLog(sys.argv[2])
from dataclasses import replace
from uuid import uuid4
while True:
    one = replace(decision, decision_id=uuid4().hex)
    log.decided(one, "Hello!")
    log.outcome(one.decision_id, correct=True, ended="complete")
    print(one.decision_id, flush=True)
"""
COMPACTOR = """
import sys
from router.outcomes import OutcomeLog
while True:
    OutcomeLog(sys.argv[2]).compact()
"""
HOOK = """
from router import Router, Watcher
from router.gateway import BrokerHook
from router.outcomes import OutcomeLog
router = Router.load({bundle!r})
watcher = Watcher(router, prices={prices!r}, interval_s=0.1).start()
broker = BrokerHook(router, OutcomeLog({log!r}))
"""


def rows_of(log: Path) -> list[dict]:
    """All rows of an outcome log, compacted before."""
    OutcomeLog(log).compact()
    columns = ["decision_id", "attempt_id", "model", "ended", "correct"]
    return [row for file in log.glob("day=*/*.parquet") for row in pq.ParquetFile(file).read(columns).to_pylist()]


# ---- kills -----------------------------------------------------------------------------------------


def kills(bundle: Path, folder: Path) -> list[Row]:
    """Two writers and a compactor, each killed and started again at random moments."""
    log, taken, n_kills = folder / "killed", set[str](), Counter[str]()

    def writer(number: int) -> None:
        while time.monotonic() < deadline:
            output = folder / f"taken-{number}"
            with output.open("wb") as file:
                live(WRITER, random.Random(n_kills["writers"]).uniform(0.5, 2.5), stdout=file)
            n_kills["writers"] += 1
            taken.update(line for line in output.read_text().split("\n")[:-1] if line)

    def compactor() -> None:
        while time.monotonic() < deadline:
            live(COMPACTOR, random.Random(n_kills["compactors"]).uniform(0.3, 1.5))
            n_kills["compactors"] += 1

    def live(script: str, seconds: float, **options: object) -> None:
        process = subprocess.Popen([sys.executable, "-c", script, str(bundle), str(log)], **options)  # type: ignore[call-overload]
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            raise SystemExit("a writer or a compactor ended by itself; its error is above")
        process.kill()
        process.wait()

    deadline = time.monotonic() + KILL_S
    with ThreadPoolExecutor(3) as threads:
        for running in [*(threads.submit(writer, number) for number in range(2)), threads.submit(compactor)]:
            running.result()
    rows = rows_of(log)
    found = Counter(row["decision_id"] for row in rows)
    n_unjudged = len({row["decision_id"] for row in rows if row["correct"] is None} & taken)
    done = f"{len(taken):,} decisions, each with an outcome; {n_kills['writers']} writers and "
    done += f"{n_kills['compactors']} compactions killed"
    n_lost, n_doubled = len(taken - found.keys()), sum(n > 1 for n in found.values())
    wrong = f"{n_lost} decisions lost, {n_doubled} doubled, {n_unjudged} outcomes lost"
    return [("the log, under `kill -9`", done, wrong)]


# ---- reloads ---------------------------------------------------------------------------------------


def cheaper(text: str, factor: float) -> str:
    """A tiers.toml with its prices multiplied."""
    lines = (line.partition(" = ") for line in text.split("\n"))
    return "\n".join(
        f"{name} = {float(value) * factor!r}" if name.startswith("usd_per_mtok") else name + equals + value
        for name, equals, value in lines
    )


def reloads(bundle: Path, folder: Path) -> list[Row]:
    """Threads route while bundle and prices change, and while broken ones are offered."""
    prompts = [json.loads(line)["prompt"] for line in (bundle / GOLDEN_FILE).read_text().split("\n") if line]
    tables = [folder / f"prices-{number}.toml" for number in range(2)]
    for number, table in enumerate(tables):
        table.write_text(cheaper((bundle / TIERS_FILE).read_text(), 0.1 ** (number + 1)))
    expected = {}
    for table in [None, *tables]:
        router = Router.load(bundle)
        if table is not None:
            router.update_prices(table)
        expected[router.prices.id] = [router.route(prompt) for prompt in prompts]
    broken = Path(shutil.copytree(bundle, folder / "broken"))
    graph = bytearray((broken / GRAPH_FILE).read_bytes())
    graph[len(graph) // 2] ^= 1
    (broken / GRAPH_FILE).write_bytes(graph)
    (folder / "broken.toml").write_text("[[tiers")
    router, stop, counts = Router.load(bundle), threading.Event(), Counter[str]()

    def work() -> tuple[int, int]:
        n_routes = n_mixed = 0
        for row in itertools.cycle(range(len(prompts))):
            decision = router.route(prompts[row])
            n_routes += 1
            n_mixed += decision != expected[decision.price_table_id][row]
            if stop.is_set():
                return n_routes, n_mixed
        raise AssertionError

    def refused(change: Callable[[], None], error: type[Exception]) -> None:
        counts["broken"] += 1
        try:
            change()
            counts["taken"] += 1
        except error:
            pass

    with ThreadPoolExecutor(N_THREADS) as threads:
        running = [threads.submit(work) for _ in range(N_THREADS)]
        try:
            deadline = time.monotonic() + RELOAD_S
            for number in itertools.takewhile(lambda _: time.monotonic() < deadline, itertools.count()):
                router.reload(bundle, tables[number % 2])
                router.update_prices(tables[(number + 1) % 2])
                counts["reloads"] += 1
                refused(lambda: router.reload(broken), BundleError)
                refused(lambda: router.update_prices(folder / "broken.toml"), PriceError)
        finally:
            stop.set()
        routes, mixed = (sum(each) for each in zip(*(each.result() for each in running), strict=True))
    return [
        (f"reloads, {N_THREADS} busy threads", f"{routes:,} routes, {counts['reloads']} reloads", f"{mixed} mixed"),
        ("broken bundles and price files offered", f"{counts['broken']}", f"{counts['taken']} taken"),
    ]


# ---- providers that fail ---------------------------------------------------------------------------


class Provider(BaseHTTPRequestHandler):
    """Streams an answer of twenty words, or fails in the way that the model's name says."""

    asked: Counter[str] = Counter()
    stopping = threading.Event()

    def do_POST(self) -> None:  # noqa: D102, N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model, pause_s = body["model"], 0.2 if "slowly" in str(body["messages"]) else 0.02
        self.asked[model] += 1
        if model == "hanging":
            self.stopping.wait(20)
            return
        if model in ("limited", "failing"):
            self.send_error(429 if model == "limited" else 500)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", "100000")
        self.end_headers()
        with suppress(OSError):  # The client may have left.
            for number in range(20):
                last = number == 19
                choice = {"index": 0, "delta": {"content": f"word{number} "}, "finish_reason": "stop" if last else None}
                head = {"id": "1", "created": 1, "model": model, "object": "chat.completion.chunk"}
                self.wfile.write(f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode())
                if model == "dying" and number == 5:
                    return
                self.stopping.wait(pause_s)
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:  # noqa: D102
        pass


FAULTS = ("hanging", "limited", "failing", "dying")


def price_table(tiers: tuple[str, ...], cheapest: str) -> str:
    """A price table whose cheapest offer is this one, and whose next one is `good`."""
    usd = {name: 0.5 for name in FAULTS} | {"good": 0.2, cheapest: 0.1}
    lines: list[str] = []
    for number, tier in enumerate(tiers):
        lines += ["[[tiers]]", f'name = "{tier}"']
        for model, price in usd.items() if number == 0 else [(f"good-{tier}", 900.0)]:
            lines += ["[[tiers.offers]]", f'model = "{model}"', 'provider = "p"', 'region = "r"']
            lines += ["context_window = 100000", f"usd_per_mtok_input = {price}", f"usd_per_mtok_output = {price}"]
    return "\n".join(lines)


@contextmanager
def proxy(bundle: Path, folder: Path, tiers: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Port and key of LiteLLM's proxy with the hook, before the simulated providers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, port, key = f"http://127.0.0.1:{server.server_address[1]}/v1", free_port(), f"sk-{secrets.token_hex(32)}"
    models = [*FAULTS, "good", *(f"good-{tier}" for tier in tiers[1:])]
    offers = [
        {"model_name": m, "litellm_params": {"model": f"openai/{m}", "api_base": url, "api_key": "x"}} for m in models
    ]
    config = {  # JSON is YAML too
        "model_list": offers,
        "litellm_settings": {"callbacks": "broker_hook.broker"},
        "router_settings": SETTINGS,
        "general_settings": {"master_key": key},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "prices.toml").write_text(price_table(tiers, "good"))
    paths = {"bundle": str(bundle.resolve()), "prices": str(folder / "prices.toml"), "log": str(folder / "served")}
    (folder / "broker_hook.py").write_text(HOOK.format(**paths))
    process = subprocess.Popen(
        [Path(sys.executable).with_name("litellm"), "--config", folder / "config.yaml", "--host", "127.0.0.1"]
        + ["--port", str(port)],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_alive(port, process)
        yield port, key
    finally:
        Provider.stopping.set()
        process.kill()
        process.wait()
        server.shutdown()


def ask(port: int, key: str, n_lines: int | None = None) -> tuple[str, float, bool]:
    """A streamed request: decision_id, seconds, and whether its answer was whole. n_lines: leave after so many."""
    start = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    prompt = "Hello!" if n_lines is None else "Hello, slowly!"
    body = {"model": "broker/worth=0", "stream": True, "messages": [{"role": "user", "content": prompt}]}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    text = b""
    for number in itertools.count():
        line = response.readline()
        text += line
        if not line or number == n_lines:
            break
    connection.close()
    return response.headers["x-broker-decision-id"], time.monotonic() - start, b"word19" in text


def providers(bundle: Path, folder: Path) -> list[Row]:
    """Requests whose cheapest offer hangs, is limited, fails or dies, and clients that leave."""
    tiers = Router.load(bundle).bundle.manifest.tiers
    found: list[Row] = []
    with proxy(bundle, folder, tiers) as (port, key), ThreadPoolExecutor(N_AT_ONCE) as threads:
        asked: dict[str, list[tuple[str, float, bool]]] = {}
        for phase in (*FAULTS, "left"):
            (folder / "next.toml").write_text(price_table(tiers, "good" if phase == "left" else phase))
            (folder / "next.toml").replace(folder / "prices.toml")
            time.sleep(1)
            n_lines = [8 if phase == "left" else None] * N_REQUESTS
            asked[phase] = list(threads.map(lambda n: ask(port, key, n), n_lines))
        time.sleep(3)
    rows = rows_of(folder / "served")
    ends = Counter((row["model"], row["ended"]) for row in rows)
    for phase in FAULTS:
        n_asked, n_logged = Provider.asked[phase], ends[phase, "cut" if phase == "dying" else "failed"]
        n_whole, seconds = sum(each[2] for each in asked[phase]), sorted(each[1] for each in asked[phase])
        done = f"{len(seconds)} requests, {n_asked} asked it first; {n_whole} whole answers, {ends[phase, 'cut']} cut; "
        done += f"p50 {seconds[len(seconds) // 2]:.1f} s, longest {seconds[-1]:.1f} s"
        n_without = len(seconds) - n_whole - ends[phase, "cut"]
        wrong = f"{n_without} without an answer, {abs(n_asked - n_logged)} attempts without a row"
        found.append((f"the cheapest offer is {phase}", done, wrong))
    left = {each[0] for each in asked["left"]}
    n_left = len({row["decision_id"] for row in rows if row["ended"] == "left"} & left)
    found.append(("clients that leave a stream", f"{len(left)} requests", f"{len(left) - n_left} not logged as left"))
    decisions = Counter(row["decision_id"] for row in rows if row["attempt_id"] is None)
    n_requests = sum(len(each) for each in asked.values())
    wrong = f"{n_requests - len(decisions)} decisions lost, {sum(n > 1 for n in decisions.values())} doubled"
    found.append(("all these requests", f"{n_requests} requests", wrong))
    return found


def main() -> int:
    """Do it all and print the table."""
    parser = argparse.ArgumentParser(description="What a router keeps while things die around it.")
    parser.add_argument("--bundle", type=Path, required=True)
    options = parser.parse_args()
    print("| | done | what did not hold |\n|---|---|---|")
    for part in (kills, reloads, providers):
        with tempfile.TemporaryDirectory() as folder:
            for row in part(options.bundle, Path(folder)):
                print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
