"""What a request for the model `broker` says, and what its answer tells the client; free of any gateway.

Dials and the request's class stand in the model's name, `broker/quality=0.98,worth=0.002`, `broker/critical` or
`broker/class=internal`, or in the request's metadata, `{"broker": {"quality": 0.98, "worth_usd": 0.002, "critical":
true, "class": "internal"}}`, which wins over the name.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.decision import Decision
from router.errors import DialError
from router.portfolio.prices import PriceTable
from router.prompt import AUDIO, VISION, media_capabilities
from router.restrictions import stated_capabilities

MODEL = "broker"

_DIALS_IN_NAME = (
    f"{MODEL}/quality=Q, {MODEL}/worth=USD, {MODEL}/critical, {MODEL}/check=agreement, {MODEL}/class=NAME "
    "or several with commas between"
)
_NUMBERS_IN_NAME = {"quality": "quality", "worth": "worth_usd"}
_EXPECTED_IN_METADATA: dict[str, tuple[str, Any]] = {
    "quality": ("a number", int | float),
    "worth_usd": ("a number", int | float),
    "critical": ("true or false", bool),
    "class": ("the name of a class", str),
}
_TOOLS = "tools"


@dataclass(frozen=True, slots=True)
class RequestDials:
    """The dials of one request and its class, as Router.route takes them. checks: by which a plan looks at answers."""

    quality: float | None = None
    worth_usd: float | None = None
    critical: bool = False
    checks: tuple[str, ...] = ()
    request_class: str | None = None


def read_dials(model: str, metadata: object = None) -> RequestDials:
    """The dials of a request.

    model: `broker`, or `broker/` and dials, as in `broker/quality=0.98,worth=0.002`, `broker/critical`,
        `broker/class=internal` or `broker/check=agreement`; the check may stand there several times, with different
        names.
    metadata: what the request's metadata holds under `broker`: a mapping with any of `quality`, `worth_usd`, `critical`
        and `class`, each of which wins over the name; None where there is nothing.
    Raises DialError for a dial of another name or type. Router.route checks whether numbers are in range.
    """
    named = _dials_in_name(model)
    if metadata is None:
        return RequestDials(**named)
    if not isinstance(metadata, Mapping) or not _EXPECTED_IN_METADATA.keys() >= set(metadata):
        raise DialError(
            f"metadata.{MODEL} is {reprlib.repr(metadata)}; "
            "expected an object with any of quality, worth_usd, critical and class"
        )
    for name, value in metadata.items():
        expected, types = _EXPECTED_IN_METADATA[name]
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            raise DialError(f"metadata.{MODEL}.{name} is {reprlib.repr(value)}; expected {expected}")
    stated = {"request_class" if name == "class" else name: value for name, value in metadata.items()}
    return RequestDials(**{**named, **stated})


def _dials_in_name(model: str) -> dict[str, Any]:
    _, slash, text = model.partition("/")
    dials: dict[str, Any] = {}
    for word in text.split(",") if slash else []:
        name, _, number = word.partition("=")
        if name == "check" and number and number not in dials.get("checks", ()):
            dials["checks"] = (*dials.get("checks", ()), number)
            continue
        dial: str
        value: Any
        try:
            if word == "critical":
                dial, value = "critical", True
            elif name == "class" and number:
                dial, value = "request_class", number
            else:
                dial, value = _NUMBERS_IN_NAME[name], float(number)
        except (KeyError, ValueError):
            raise DialError(f"model {model!r}: {word!r} is no dial; expected {_DIALS_IN_NAME}") from None
        if dial in dials:
            raise DialError(f"model {model!r}: {name} stands there more than once; expected {_DIALS_IN_NAME}")
        dials[dial] = value
    return dials


def needed_capabilities(data: Mapping[str, Any], prices: PriceTable) -> frozenset[str]:
    """What the offers for a request must be capable of, beyond text.

    data: the request's body. Tools need `tools`, images and files `vision`, and audio needs `audio`, or `vision` where
    no offer states `audio`. What no offer of the price table states is not needed: such a table does not say which
    offers are capable of it.
    """
    wanted = media_capabilities(data.get("messages"))
    if data.get("tools") or data.get("functions"):
        wanted |= {_TOOLS}
    if not wanted:
        return wanted
    stated = stated_capabilities([offer for tier in prices.tiers for offer in tier.offers])
    if AUDIO in wanted and AUDIO not in stated:
        wanted |= {VISION}
    return wanted & stated


def request_prompt(data: Mapping[str, Any]) -> Any:
    """The prompt of a text completion, several texts joined by a blank line; None for a chat. data: the body."""
    prompt = data.get("prompt")
    if isinstance(prompt, list) and all(isinstance(text, str) for text in prompt):
        return "\n\n".join(prompt)
    return prompt


def response_headers(
    decision: Decision, answered_model: str | None = None, answered_tier: str | None = None
) -> dict[str, str]:
    """The headers that tell a client who answered, and of the decision: printable ASCII, everything else is escaped.

    answered_model: the model that answered, which is not the decision's after LiteLLM's fallbacks; None where it is
        not known, as in an error, takes those of the decision. answered_tier: its tier; None where it is no offer.
    A fallback of the router has no header for the expected cost, since its costs may be unknown.
    """
    first_model = None if decision.offer is None else decision.offer.model
    if answered_model is None:
        answered_model, answered_tier = first_model, decision.tier
    headers = {
        "x-broker-tier": answered_tier,
        "x-broker-model": answered_model,
        "x-broker-first-tier": decision.tier,
        "x-broker-first-model": first_model,
        "x-broker-class": decision.request_class,
        "x-broker-decision-id": decision.decision_id,
        "x-broker-reason": decision.reason,
    }
    if not decision.fallback:
        headers["x-broker-expected-cost-usd"] = f"{decision.cost_usd[decision.tier]:.9f}"
    return printable(headers)


def printable(headers: Mapping[str, str | None]) -> dict[str, str]:
    """Headers in printable ASCII, everything else is escaped; without those that are None."""
    return {
        name: value.encode("unicode_escape").decode("ascii").strip()
        for name, value in headers.items()
        if value is not None
    }
