"""The service in a process of its own, simulated providers in another, and clients that ask it: for `load.py`."""

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from faulty_upstreams import WORDS
from gateway import free_port, wait_until_alive
from prometheus_client.parser import text_string_to_metric_families

from router import Router

N_PAIRS, WARM_UP_PAIRS, TURN = 300, 30, 10
RAMP_S = 5.0
"""Seconds in which the clients begin, one after the other."""


@dataclass
class Asked:
    """A request as its client saw it."""

    number: int
    is_broker: bool
    status: int = 0
    decision_id: str = ""
    first_word_ms: float = 0.0
    is_whole: bool = False
    error: str = ""
    trouble: str = ""  # the connection broke

    @property
    def is_clear(self) -> bool:
        """Whether the client knows what became of it: all of the answer, or an error that says so."""
        return self.is_whole != bool(self.error)


@dataclass
class Service:
    """`broker serve` in a process of its own, on a log and upstreams that outlive it."""

    bundle: Path
    log: Path
    urls: dict[str, str]
    port: int = field(default_factory=free_port)
    key: str = field(default_factory=lambda: f"sk-{secrets.token_hex(32)}")

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Yields its process once it answers; ends it as SIGTERM does."""
        command = [sys.executable, "-m", "router", "serve", "--bundle", str(self.bundle), "--outcomes", str(self.log)]
        bases = {f"{name.replace('-', '_').upper()}_API_BASE": url for name, url in self.urls.items()}
        process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            env={**os.environ, **bases, "LITELLM_MASTER_KEY": self.key, "NO_PROXY": "127.0.0.1"},
            stdout=subprocess.DEVNULL,
            stderr=(self.log.parent / "err").open("ab"),
        )
        try:
            wait_until_alive(self.port, process)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(90)

    @property
    def headers(self) -> dict[str, str]:
        """With the key."""
        return {"Authorization": f"Bearer {self.key}"}

    def url(self, path: str) -> str:
        """The address of a path."""
        return f"http://127.0.0.1:{self.port}{path}"


class Upstreams:
    """The process of the simulated providers."""

    def __init__(self, bundle: Path) -> None:
        offers = [offer for tier in Router.load(bundle).prices.tiers for offer in tier.offers]
        prices = {offer.model: (offer.usd_per_mtok_input, offer.usd_per_mtok_output) for offer in offers}
        setup = {"prices": prices, "providers": sorted({offer.provider for offer in offers})}
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("faulty_upstreams.py"), json.dumps(setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.urls = {name: f"http://127.0.0.1:{port}/v1" for name, port in self._line().items()}
        self.models = {offer.provider: offer.model for offer in offers}

    def tell(self, command: str) -> Any:
        """What it says to a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class Clients:
    """Clients that ask one stream after the other. prompts: asked in turn, with the number of the request."""

    def __init__(self, service: Service, session: aiohttp.ClientSession, prompts: Sequence[str], alone: str) -> None:
        self._service, self._session, self._prompts, self._alone = service, session, prompts, alone
        self.asked: list[Asked] = []
        self.told: dict[str, float] = {}
        """Outcomes that were acknowledged, by decision_id."""

    async def run(self, n_clients: int, seconds: float, kind: str, *, judged_of: int = 10) -> None:
        """Ask with so many clients at once until the time is over, or their connection breaks.

        kind: "load" asks for `broker` with every other client, others always. judged_of: one in so many is judged.
        """
        end_s = time.monotonic() + seconds

        async def client(place: int) -> None:
            await asyncio.sleep(RAMP_S * place / n_clients)
            while time.monotonic() < end_s:
                asked = Asked(len(self.asked), is_broker=kind != "load" or place % 2 == 0)
                self.asked.append(asked)
                await self._ask(asked, kind if asked.is_broker else "alone")
                if asked.trouble:
                    return
                if asked.is_broker and asked.is_whole and asked.number % judged_of == 0:
                    await self._judge(asked)

        await asyncio.gather(*(client(place) for place in range(n_clients)))

    async def _ask(self, asked: Asked, kind: str) -> None:
        prompt = f"request {asked.number} of {kind}: {self._prompts[asked.number % len(self._prompts)]}"
        model = "broker/quality=0.9" if asked.is_broker else self._alone
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": prompt}]}
        began_s, words, is_done = time.perf_counter(), 0, False
        try:
            async with self._post("/v1/chat/completions", body) as response:
                asked.status, asked.decision_id = response.status, response.headers.get("x-broker-decision-id", "")
                if response.status != 200:
                    asked.error = str((await response.json())["error"]["message"])
                    return
                async for line in response.content:
                    if not line.startswith(b"data: "):
                        continue
                    if line.startswith(b"data: [DONE]"):
                        is_done = True
                        continue
                    chunk = json.loads(line[6:])
                    asked.error = asked.error or str(chunk.get("error") or "")
                    new = sum(bool(c["delta"].get("content")) for c in chunk.get("choices") or [])
                    if new and not words:
                        asked.first_word_ms = (time.perf_counter() - began_s) * 1000
                    words += new
        except (aiohttp.ClientError, ConnectionError, TimeoutError, ValueError, KeyError) as error:
            asked.trouble = f"{type(error).__name__}: {error}"
        asked.is_whole = is_done and words == len(WORDS) and not asked.error

    async def _judge(self, asked: Asked) -> None:
        correct = asked.number % 3 > 0
        body = {"decision_id": asked.decision_id, "correct": correct}
        with suppress(aiohttp.ClientError, ConnectionError):  # The service may have been killed.
            async with self._post("/v1/outcomes", body) as response:
                if response.status == 200:
                    self.told[asked.decision_id] = float(correct)

    async def pairs(self) -> tuple[list[float], list[float]]:
        """Milliseconds of LiteLLM alone and with the broker, of pairs that are asked one by one, each way first."""
        alone, broker = list[float](), list[float]()
        for number in range(N_PAIRS + WARM_UP_PAIRS):
            ways = [(self._alone, alone), ("broker", broker)]
            for model, found in ways if number % 2 else reversed(ways):
                found.append(await self._whole_ms(model, number))
        return alone[WARM_UP_PAIRS:], broker[WARM_UP_PAIRS:]

    async def processor_ms(self, process: subprocess.Popen[bytes]) -> tuple[float, float]:
        """Processor time of the service for a request to LiteLLM alone and to the broker, in turns of ten requests."""
        found = [0.0, 0.0]
        for turn in range(2 * N_PAIRS // TURN):
            before_ms = processor_ms(process.pid)
            for number in range(TURN):
                await self._whole_ms(("broker" if turn % 2 else self._alone), turn * TURN + number)
            found[turn % 2] += processor_ms(process.pid) - before_ms
        return found[0] / N_PAIRS, found[1] / N_PAIRS

    async def _whole_ms(self, model: str, number: int) -> float:
        """Milliseconds of one request that is no stream."""
        content = f"request {number} of pair: {self._prompts[number % len(self._prompts)]}"
        began_s = time.perf_counter()
        body = {"model": model, "messages": [{"role": "user", "content": content}]}
        async with self._post("/v1/chat/completions", body) as response:
            await response.read()
        return (time.perf_counter() - began_s) * 1000

    def _post(self, path: str, body: Any) -> Any:
        return self._session.post(self._service.url(path), json=body, headers=self._service.headers)

    async def metrics(self) -> dict[tuple[str, str], float]:
        """The counters of the service that can be compared with its log, by name and label."""
        async with self._session.get(self._service.url("/metrics"), headers=self._service.headers) as response:
            text = await response.text()
        found: dict[tuple[str, str], float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                label = sample.labels.get("ended") or sample.labels.get("tier") or ""
                found[sample.name, label] += sample.value
        return found


def processor_ms(pid: int) -> float:
    """Processor time that a process has used so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1000
