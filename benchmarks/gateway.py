"""What the broker adds to a request through LiteLLM's proxy.

    .venv/bin/python benchmarks/gateway.py --bundle models/NAME --prompts LOG [--requests 300]

One proxy, one simulated provider that answers at once, one kept-alive connection, one request at a time. Each prompt,
all of them different, goes through twice: once with the model of the offer that the router chooses (LiteLLM alone)
and once with `broker`; the two take turns in going first, so that a change of the machine's speed meets both alike.
Prints a Markdown table of milliseconds, with the difference per prompt.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from router import Router

WARM_UP_PROMPTS = 30
START_LIMIT_S = 120
HOOK = """
from router import Router
from router.gateway import BrokerHook

broker = BrokerHook(Router.load({bundle!r}))
"""
ANSWER = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "simulated",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()


class Provider(BaseHTTPRequestHandler):
    """Answers every request with the same few words, at once."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave in one packet

    def do_POST(self) -> None:  # noqa: D102, N802
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: object) -> None:  # noqa: D102
        pass


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def provide(port: int) -> None:
    """Be the provider until killed."""
    ThreadingHTTPServer(("127.0.0.1", port), Provider).serve_forever()


@contextmanager
def provider() -> Iterator[str]:
    """The base URL of a provider in a process of its own."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=provide, args=(port,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.join()


@contextmanager
def proxy(bundle: Path, models: list[str], provider_url: str) -> Iterator[tuple[int, str]]:
    """Port and key of LiteLLM's proxy with the broker in it."""
    port, key = free_port(), f"sk-{secrets.token_hex(32)}"
    params = {"model": "openai/simulated", "api_base": provider_url, "api_key": "none"}
    config = {  # JSON is YAML too
        "model_list": [{"model_name": model, "litellm_params": params} for model in models],
        "litellm_settings": {"callbacks": "broker_hook.broker"},
        "general_settings": {"master_key": key},
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        Path(folder, "broker_hook.py").write_text(HOOK.format(bundle=str(bundle.resolve())), encoding="utf-8")
        command = [Path(sys.executable).with_name("litellm"), "--config", Path(folder, "config.yaml")]
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until_alive(port, process)
            yield port, key
        finally:
            process.kill()
            process.wait()


def wait_until_alive(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return once the proxy answers; raises SystemExit where it does not."""
    deadline = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/health/liveliness")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise SystemExit("LiteLLM's proxy did not start; try examples/litellm to see why")


def ask(connection: http.client.HTTPConnection, key: str, model: str, prompt: str) -> float:
    """Milliseconds of one chat completion; raises SystemExit where it fails."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}]}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    start = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    answer = response.read()
    elapsed_ms = (time.perf_counter() - start) * 1000
    if response.status != 200:
        raise SystemExit(f"{model}: found status {response.status}, expected 200: {answer.decode()}")
    return elapsed_ms


def measure(bundle: Path, prompts: list[str]) -> np.ndarray:
    """Milliseconds, shape (n_prompts, 2): LiteLLM alone, and with the broker."""
    router = Router.load(bundle)
    offers = [router.route(messages=[{"role": "user", "content": prompt}]).offer for prompt in prompts]
    models = [offer.model for tier in router.prices.tiers for offer in tier.offers]
    found_ms = np.zeros((len(prompts), 2))
    with provider() as url, proxy(bundle, models, url) as (port, key):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for row, (prompt, offer) in enumerate(zip(prompts, offers, strict=True)):
            if offer is None:
                raise SystemExit(f"prompt {row} fits no offer; leave it out")
            ways = [(0, offer.model), (1, "broker")]
            for column, model in ways if row % 2 else reversed(ways):
                found_ms[row, column] = ask(connection, key, model, prompt)
        connection.close()
    return found_ms[WARM_UP_PROMPTS:]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What the broker adds to a request through LiteLLM's proxy.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="Parquet files with a column prompt")
    parser.add_argument("--requests", type=int, default=300, help="requests each way")
    options = parser.parse_args()
    texts = sorted({text for log in options.prompts for text in pq.read_table(log)["prompt"].to_pylist()})
    np.random.default_rng(0).shuffle(texts)
    found_ms = measure(options.bundle, texts[: options.requests + WARM_UP_PROMPTS])
    alone, broker = found_ms.T
    print(f"{len(found_ms)} different prompts\n\n| ms | p50 | p95 |\n|---|---|---|")
    for name, milliseconds in {
        "LiteLLM alone": alone,
        "LiteLLM with the broker": broker,
        "difference per prompt": broker - alone,
    }.items():
        p50, p95 = np.percentile(milliseconds, [50, 95])
        print(f"| {name} | {p50:.2f} | {p95:.2f} |")
    print(f"\nAdded p50: {np.median(broker) - np.median(alone):.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
