"""Simulated providers in a process of their own, which fail as a script says and count what they have sent.

`load.py` starts it. Each provider listens on a port of its own. Answers are streams of WORDS, a word a token, or come
at once where the request is no stream. Commands on standard input: `die NAME`, `live NAME`, and `count`, which
prints all attempts as one line of JSON. The prompt says which request it is: `request 17 of load: ...`. Only requests
of `load` meet faults: errors, stalls (before the first word, or in the middle) and cut streams.
"""

import asyncio
import json
import random
import re
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from aiohttp import web

WORDS = "the sum of two even numbers is even since each of them is twice a whole number so it is too".split(" ")
WORD_S, QUICK_WORD_S = 0.25, 0.02
"""Seconds between two words, under load and otherwise."""

STALL_S = 30.0
FAULTS = {"error": 0.05, "stall": 0.05, "cut": 0.05}
NUMBER = re.compile(r"request (\d+) of (\w+)")


@dataclass
class Attempt:
    """What a provider has done for one attempt. usd: what it bills for that; nothing where it has sent nothing."""

    number: int
    kind: str
    model: str
    fault: str
    usd: float = 0.0
    sent: int = 0
    whole: bool = False


@dataclass
class Upstreams:
    """The providers. prices: USD for a million tokens of input and of output, by model."""

    prices: dict[str, tuple[float, float]]
    attempts: list[Attempt] = field(default_factory=list)
    runners: dict[str, web.AppRunner] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    running: dict[str, dict[int, web.Request]] = field(default_factory=dict)

    async def live(self, name: str) -> None:
        """Listen for a provider, on the port that it had before, if any."""
        app = web.Application()

        async def answer(request: web.Request) -> web.StreamResponse:
            self.running.setdefault(name, {})[id(request)] = request
            try:
                return await self.answer(request)
            finally:
                del self.running[name][id(request)]

        app.router.add_post("/v1/chat/completions", answer)
        self.runners[name] = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runners[name].setup()
        site = web.TCPSite(self.runners[name], "127.0.0.1", self.ports.get(name, 0))
        await site.start()
        self.ports[name] = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def die(self, name: str) -> None:
        """Break all streams of a provider and refuse connections."""
        for request in list(self.running.get(name, {}).values()):
            if request.transport is not None:
                request.transport.abort()
        await self.runners[name].cleanup()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One attempt."""
        body = await request.json()
        prompt = str(body["messages"][-1]["content"])
        found = NUMBER.search(prompt)
        number, kind = (int(found[1]), found[2]) if found else (-1, "other")
        nth = sum(each.number == number and each.kind == kind for each in self.attempts[-2000:])
        fault = drawn(f"{number}:{nth}") if kind == "load" else ""
        attempt = Attempt(number, kind, body["model"], fault)
        self.attempts.append(attempt)
        n_input = max(1, len(prompt) // 4)
        if fault == "error":
            return web.json_response({"error": {"message": "simulated", "type": "server_error"}}, status=500)
        if fault == "stall" and number % 2:
            await asyncio.sleep(STALL_S)
            return web.json_response({"error": {"message": "too late", "type": "server_error"}}, status=500)
        if not body.get("stream"):
            self.bill(attempt, n_input, len(WORDS))
            return web.json_response({**head(body["model"]), "choices": [whole_choice()], "usage": usage(n_input)})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        breaks_at = len(WORDS) // 2 if fault in ("cut", "stall") else len(WORDS)
        for place, word in enumerate(WORDS[:breaks_at]):
            try:
                await response.write(event(body["model"], f"{word} "))
            except ConnectionError:  # The provider has died, or the service has.
                return response
            self.bill(attempt, n_input, place + 1)
            await asyncio.sleep(WORD_S if kind in ("load", "alone") else QUICK_WORD_S)
        if fault == "cut":
            if request.transport is not None:
                request.transport.abort()
            return response
        if fault == "stall":
            await asyncio.sleep(STALL_S)
            return response
        last = {**head(body["model"], "chat.completion.chunk"), "choices": [], "usage": usage(n_input)}
        end = event(body["model"], "", finish="stop") + f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode()
        with suppress(ConnectionError):
            await response.write(end)
            attempt.whole = True
        return response

    def bill(self, attempt: Attempt, n_input: int, n_output: int) -> None:
        """What the attempt has cost so far."""
        usd_input, usd_output = self.prices[attempt.model]
        attempt.sent = n_output
        attempt.usd = (n_input * usd_input + n_output * usd_output) / 1e6


def drawn(seed: str) -> str:
    """The fault of an attempt; empty for none."""
    draw = random.Random(seed).random()
    for fault, share in FAULTS.items():
        if draw < share:
            return fault
        draw -= share
    return ""


def head(model: str, kind: str = "chat.completion") -> dict[str, object]:
    """What all answers and chunks begin with."""
    return {"id": "1", "created": int(time.time()), "model": model, "object": kind}


def whole_choice() -> dict[str, object]:
    """An answer in one piece."""
    return {"index": 0, "message": {"role": "assistant", "content": " ".join(WORDS)}, "finish_reason": "stop"}


def usage(n_input: int) -> dict[str, int]:
    """The provider's own count."""
    return {"prompt_tokens": n_input, "completion_tokens": len(WORDS), "total_tokens": n_input + len(WORDS)}


def event(model: str, text: str, finish: str | None = None) -> bytes:
    """A chunk of a stream."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return f"data: {json.dumps({**head(model, 'chat.completion.chunk'), 'choices': [choice]})}\n\n".encode()


async def main() -> None:
    """Serve until standard input ends. First line of output: the ports by provider."""
    setup = json.loads(sys.argv[1])
    upstreams = Upstreams(prices={name: tuple(pair) for name, pair in setup["prices"].items()})
    for name in setup["providers"]:
        await upstreams.live(name)
    print(json.dumps(upstreams.ports), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        command, _, name = line.partition(" ")
        if command == "count":
            print(json.dumps([asdict(attempt) for attempt in upstreams.attempts]), flush=True)
        else:
            await (upstreams.die if command == "die" else upstreams.live)(name)
            print("{}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
