"""News as they go to Redis and come back: what `exchange.lua` takes and returns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.portfolio.caps import SECONDS, WINDOW_REQUESTS
from router.portfolio.health import Condition, Key, key_of
from router.portfolio.ledger import Account
from router.portfolio.sessions import WARM_S, Warm
from router.portfolio.shadow import Routed, Worth
from router.portfolio.shared import Batch, Entry, Heard, News

GONE_S = 5.0
"""A worker that has not been heard of for so long no longer counts as one."""

KEPT_BATCHES = 2 * WINDOW_REQUESTS
"""Batches that Redis keeps at least, from which a worker that starts makes its window."""

PREFIX = "{broker:1}"
"""Of all keys: with the number of this format, in braces that put them on one node of a cluster."""


@dataclass
class Place:
    """Where a worker is in what it has read. versions: of the conditions of offers, by the offer as JSON."""

    last_batch: str = "0-0"
    last_turn: str = "0-0"
    versions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    """What one exchange sends. accounts: whose totals come back, in their order."""

    keys: Sequence[str]
    arguments: Sequence[str]
    accounts: Sequence[Account]


def message_of(news: News, place: Place, *, ahead_s: float, raises: bool) -> Message:
    """What to send. ahead_s: by how many seconds the server's clock is ahead of this worker's.

    raises: whether spend in Redis is raised to what this worker knows of.
    """
    worker = news.batch.worker
    accounts = tuple(dict.fromkeys((*news.known, *news.spent)))
    periods = list(dict.fromkeys((account.per, account.begin) for account in accounts))
    batch = news.batch
    told = {
        "number": news.number,
        "batch": _batch_text(batch) if batch.asked or batch.settled else None,
        "keep": KEPT_BATCHES,
        "gone_ms": GONE_S * 1000,
        "raise": raises,
        "spent": [
            [
                1 + periods.index((account.per, account.begin)),
                json.dumps([account.provider, account.region, account.tier]),
                str(news.spent.get(account, 0)),
                str(news.known.get(account, 0)),
                2000 * (SECONDS[account.per] or 31 * 86_400),
            ]
            for account in accounts
        ],
        "turns": _turns_text(news.turns) if news.turns else None,
        "warm_ms": WARM_S * 1000,
        "conditions": [
            [offer := json.dumps(key), place.versions.get(offer, 0), each.is_opened, _condition_in(each, ahead_s)]
            for key, each in news.conditions.items()
        ],
        "probes": [[json.dumps(key), round(for_s * 1000)] for key, for_s in news.probes.items()],
        "last_batch": place.last_batch,
        "last_turn": place.last_turn,
    }
    names = ["requests", "turns", "workers", f"number:{worker}", "conditions", "probes"]
    names += [f"spent:{per}:{begin}" for per, begin in periods]
    told = {name: value for name, value in told.items() if value is not None}
    return Message([f"{PREFIX}:{name}" for name in names], [worker, json.dumps(told)], accounts)


def heard_of(
    reply: Sequence[Any], message: Message, place: Place, *, at_s: float, ahead_s: float, probe_s: float
) -> Heard:
    """What a reply says. It moves `place` on.

    at_s: when the server has made it at the earliest, in seconds of time.monotonic.
    """
    now_ms, workers, batches, turns, totals, conditions, may_probe = reply
    worker = message.arguments[0]
    seen_ms = {name.decode(): float(score) for name, score in zip(workers[::2], workers[1::2], strict=True)}
    names = sorted(seen_ms)
    if batches:
        place.last_batch = batches[-1][0].decode()
    if turns:
        place.last_turn = turns[-1][0].decode()
    turn = int(place.last_batch.split("-")[0])  # Whoever has read as far has the same.
    return Heard(
        batches=_needed([_batch_of(fields[b"batch"]) for _, fields in _stream(batches)]),
        spent=dict(zip(message.accounts, map(int, totals), strict=True)),
        others_s=[at_s - (float(now_ms) - ms) / 1000 for name, ms in seen_ms.items() if name != worker],
        rank=(names.index(worker) + turn) % len(names),
        conditions=_changed(conditions, place, worker, ahead_s),
        may_probe={Key(*json.loads(offer)): probe_s for offer in may_probe},
        turns=[
            (bytes.fromhex(after), int(id_.split(b"-")[0]) / 1000 - ahead_s, Warm(Key(*offer), tokens))
            for id_, fields in _stream(turns)
            for after, offer, tokens in json.loads(fields[b"turns"])
        ],
    )


def _stream(entries: Sequence[Any]) -> list[tuple[bytes, Mapping[bytes, bytes]]]:
    return [(id_, dict(zip(fields[::2], fields[1::2], strict=True))) for id_, fields in entries]


def _needed(batches: list[Batch]) -> list[Batch]:
    """The last batches, as many as fill a window."""
    n, first = 0, len(batches)
    while first > 0 and n < WINDOW_REQUESTS:
        first -= 1
        n += len(batches[first].asked)
    return batches[first:]


def _batch_text(batch: Batch) -> str:
    """A batch as JSON, in which each offer stands once."""
    numbers: dict[tuple[str, Key], int] = {}

    def number(tier: str, offer: Key) -> int:
        return numbers.setdefault((tier, offer), len(numbers))

    asked, settled = (
        [[entry.number, number(entry.tier, entry.offer), entry.nano] for entry in entries]
        for entries in (batch.asked, batch.settled)
    )
    routed = [
        [
            number(each.tier, key_of(each.offer)),
            _short(each.usd),
            [[number(tier, key), _short(value), _short(cost)] for tier, key, value, cost in each.offers or ()],
        ]
        for each in batch.routed
    ]
    offers = [[tier, *key] for tier, key in numbers]
    return json.dumps([batch.worker, offers, asked, settled, routed], separators=(",", ":"))


def _batch_of(text: bytes) -> Batch:
    worker, offers, asked, settled, routed = json.loads(text)
    who: list[tuple[str, Key]] = [(tier, Key(*key)) for tier, *key in offers]
    return Batch(
        worker=worker,
        asked=[Entry(number, who[at][0], who[at][1], nano) for number, at, nano in asked],
        settled=[Entry(number, who[at][0], who[at][1], nano) for number, at, nano in settled],
        routed=[
            Routed(
                tier=who[at][0],
                offer=who[at][1],
                usd=usd,
                offers=[Worth(who[n][0], who[n][1], value, cost) for n, value, cost in worths],
            )
            for at, usd, worths in routed
        ],
    )


def _short(usd: float) -> float:
    return float(f"{usd:.5g}")


def _turns_text(turns: Mapping[bytes, Warm]) -> str:
    return json.dumps([[after.hex(), warm.offer, warm.tokens] for after, warm in turns.items()])


def _condition_in(condition: Condition, ahead_s: float) -> dict[str, Any]:
    """A condition at the server's time; false where it is not down: Lua drops what is null."""
    down_until = condition.down_until
    return {
        "down_until": down_until is not None and down_until + ahead_s,
        "pause_s": condition.pause_s,
        "share": condition.share,
        "why": condition.why,
    }


def _changed(fields: Sequence[bytes], place: Place, worker: str, ahead_s: float) -> dict[Key, Condition]:
    """The conditions that other workers have changed since the last reply."""
    found = {}
    for offer, text in zip(fields[::2], fields[1::2], strict=True):
        name, said = offer.decode(), json.loads(text)
        is_new = said["version"] != place.versions.get(name, 0)
        place.versions[name] = said["version"]
        if is_new and said["worker"] != worker:
            down_until = said["down_until"]
            found[Key(*json.loads(name))] = Condition(
                None if down_until is False else down_until - ahead_s, said["pause_s"], said["share"], said["why"]
            )
    return found
