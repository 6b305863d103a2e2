"""Conversations whose beginning a provider still has in its prompt cache, so that leaving it costs more than staying.

A provider reads the tokens of a conversation's earlier turns from its cache at a lower price, for some minutes. So the
next turn is cheaper at the offer that answered the last one, and it is that lower cost with which the offer competes.
Nothing else pins a conversation: where another tier is worth more all the same, the request goes there.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from router.portfolio.health import Key, key_of
from router.portfolio.tiers import Offer

WARM_S = 300.0
"""How long a conversation is taken to stay in a provider's cache after a turn: five minutes, the usual least."""

LEAST_TOKENS = 1024
"""Providers cache no shorter beginning than this."""

_MOST_SESSIONS = 20_000


class Turn(NamedTuple):
    """What names a request's conversation before and after it. before: None for its first turn."""

    before: bytes | None
    after: bytes


class Warm(NamedTuple):
    """The offer that has a conversation's beginning in its cache, and of how many tokens."""

    offer: Key
    tokens: float

    def cached_tokens(self, offer: Offer, context_tokens: float) -> float:
        """How many of a request's input tokens an offer is expected to read from its cache."""
        if offer.usd_per_mtok_cached_input is None or key_of(offer) != self.offer:
            return 0.0
        return min(self.tokens, context_tokens)


class Sessions:
    """The conversations of the last minutes. It keeps digests, no text. clock: seconds.

    untold: the turns that other workers don't know of yet; None where there are no others.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: OrderedDict[bytes, tuple[float, Warm]] = OrderedDict()
        self.untold: dict[bytes, Warm] | None = None

    def warm(self, turn: Turn | None) -> Warm | None:
        """Where a request's conversation is in a cache; None where it is in none."""
        if turn is None or turn.before is None:
            return None
        found = self._last.get(turn.before)
        if found is None or self._clock() - found[0] > WARM_S:
            return None
        return found[1]

    def answered(self, turn: Turn | None, offer: Offer, context_tokens: float) -> None:
        """Note that an offer answers a turn of a conversation with so many input tokens."""
        if turn is None or context_tokens < LEAST_TOKENS or offer.usd_per_mtok_cached_input is None:
            return
        warm = Warm(key_of(offer), context_tokens)
        self._keep(turn.after, self._clock(), warm)
        if self.untold is not None and len(self.untold) < _MOST_SESSIONS:
            self.untold[turn.after] = warm

    def hear(self, after: bytes, at: float, warm: Warm) -> None:
        """Note that another worker has sent a turn to an offer. at: when, in seconds of the clock."""
        present = self._last.get(after)
        if present is None or present[0] < at:
            self._keep(after, at, warm)

    def _keep(self, after: bytes, at: float, warm: Warm) -> None:
        self._last[after] = at, warm
        self._last.move_to_end(after)
        if len(self._last) > _MOST_SESSIONS:
            self._last.popitem(last=False)


def turn_of(messages: Sequence[Mapping[str, Any]] | None, session_id: str | None) -> Turn | None:
    """What names the conversation of a request; None where it is no chat and has no id.

    session_id: the caller's own name of the conversation. Without one, the conversation is known by its messages: those
    before the last answer are the ones that the turn before had asked with.
    """
    if session_id is not None:
        name = _digest(session_id)
        return Turn(name, name)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return None
    answers = [n for n, each in enumerate(messages) if isinstance(each, Mapping) and each.get("role") in _ANSWERS]
    before = _digest(messages[: answers[-1]]) if answers and answers[-1] > 0 else None
    return Turn(before, _digest(messages))


_ANSWERS = ("assistant", "model")


def _digest(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return blake2b(text.encode(), digest_size=16).digest()
