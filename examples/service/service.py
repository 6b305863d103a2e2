"""A service of your own in one file: FastAPI asks the router, the router's choice is asked, and outcomes come back.

    python examples/service/service.py --bundle models/demo --prices data/tiers.toml --logs logs/service

POST /chat      {"messages": [...], "quality"?, "worth_usd"?} -> the answer, and the decision_id to judge it by
POST /outcomes  {"decision_id", "correct"} -> whether the answer was right
GET  /healthz   which bundle and prices are in use, and what is wrong, if anything is
"""

from __future__ import annotations

import argparse
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from router import DialError, Offer, Router, Watcher
from router.outcomes import OutcomeLog


class Chat(BaseModel):
    """A chat, oldest message first, and the dials of this request."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    quality: float | None = None
    worth_usd: float | None = None


class Outcome(BaseModel):
    """Whether the answer to a decision was right, or a score from 0 to 1."""

    decision_id: str = Field(pattern="^[0-9a-f]{32}$")
    correct: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class Reply:
    """What a provider answered, and the tokens that it bills."""

    text: str
    input_tokens: int
    output_tokens: int


Ask = Callable[[Offer, list[dict[str, Any]]], Awaitable[Reply]]


async def ask_nobody(offer: Offer, messages: list[dict[str, Any]]) -> Reply:
    """Stand in for a provider. Put the call of your own client here: `offer.model`, at `offer.provider`."""
    text = f"{offer.model} would answer here."
    return Reply(text=text, input_tokens=sum(len(str(message)) // 4 for message in messages), output_tokens=8)


def make_app(bundle: Path, prices: Path, logs: Path, ask: Ask = ask_nobody, interval_s: float = 5.0) -> FastAPI:
    """The service.

    bundle: a folder, or a link such as store/champion; prices: a tiers.toml. Both are followed on disk.
    logs: the folder of the outcome log, which `broker train --logs` reads. ask: asks a model.
    """
    router = Router.load(bundle)
    watcher = Watcher(router, bundle, prices=prices, interval_s=interval_s)
    log = OutcomeLog(logs, keep_prompts=True)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with watcher, log:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/chat")
    async def chat(request: Chat) -> dict[str, Any]:
        try:
            decision = router.route(messages=request.messages, quality=request.quality, worth_usd=request.worth_usd)
        except DialError as error:
            raise HTTPException(400, str(error)) from error
        if decision.offer is None:
            raise HTTPException(503, decision.reason)
        log.decided(decision, messages=request.messages)
        began = time.monotonic()
        reply = await ask(decision.offer, request.messages)
        log.outcome(
            decision.decision_id,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            latency_ms=1000 * (time.monotonic() - began),
            ended="complete",
        )
        chosen = {"tier": decision.tier, "model": decision.offer.model, "reason": decision.reason}
        return {"answer": reply.text, "decision_id": decision.decision_id, **chosen}

    @app.post("/outcomes")
    async def outcomes(outcome: Outcome) -> dict[str, bool]:
        if not log.outcome(outcome.decision_id, correct=outcome.correct):
            raise HTTPException(503, "the outcome could not be stored")
        return {"stored": True}

    @app.get("/healthz")
    async def health() -> dict[str, Any]:
        state = {"bundle_id": router.bundle.manifest.bundle_id, "price_table_id": router.prices.id}
        return {**state, "watching": watcher.alive, "trouble": watcher.trouble, "lost": log.n_lost}

    return app


def main() -> None:
    """Serve on 127.0.0.1 until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A service that routes, asks and logs.")
    parser.add_argument("--bundle", type=Path, default=Path("models/demo"))
    parser.add_argument("--prices", type=Path, default=Path("data/tiers.toml"))
    parser.add_argument("--logs", type=Path, default=Path("logs/service"))
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(make_app(options.bundle, options.prices, options.logs), port=options.port)


if __name__ == "__main__":
    main()
