"""Proposes a tiers.toml from models and a price map: `broker init`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from router.errors import PriceMapError
from router.feeds.formats import UNKNOWN_REGION, PricedModel
from router.feeds.price_map import PriceMap
from router.portfolio.schedule import PRICES
from router.portfolio.tiers import parse_tiers

_MAX_OTHERS = 4
_UNKNOWN_WINDOW = 32_768
_LEAST_JUDGED = 30
"""With fewer judged prompts, nothing is said of a model's accuracy."""


@dataclass(frozen=True)
class ModelFacts:
    """What a log says of a model.

    n_judged: judged rows. accuracy: their mean of `correct`; None where there are none. input_tokens, output_tokens,
    cost_usd: means of the rows that have them, or None. provider: the most frequent one, or None.
    """

    name: str
    provider: str | None = None
    n_judged: int = 0
    accuracy: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    cost_usd: float | None = None


@dataclass(frozen=True)
class _Priced:
    """A model of the log with its offer. names: of the log for it. doubts: what a person must decide."""

    facts: ModelFacts
    offer: PricedModel
    doubts: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def usd_per_request(self) -> float:
        """At the offer's prices, for the log's mean lengths; where these are unknown, for 1,000 and 300 tokens."""
        n_input, n_output = self.facts.input_tokens or 1000.0, self.facts.output_tokens or 300.0
        return (n_input * self.offer.usd_per_mtok_input + n_output * self.offer.usd_per_mtok_output) / 1e6


@dataclass(frozen=True)
class Proposal:
    """A tiers.toml. tiers: names of its tiers. unpriced: models without a price, left out of the tiers."""

    text: str
    tiers: tuple[str, ...]
    unpriced: tuple[str, ...]

    @property
    def n_decide(self) -> int:
        """How many comments ask for a decision."""
        return self.text.count("# decide:")


def propose(models: Sequence[ModelFacts], prices: PriceMap, today: date, logs: Sequence[str] = ()) -> Proposal:
    """A tier for each model, the cheapest first, with its offer and comments on what a person must decide.

    Models that are the same model of other providers become offers of one tier. A model that the map lacks is priced
    by the log's own costs; where it has none, it is left out, in a comment.
    Raises PriceMapError where no model has a price.
    """
    found = [_priced(facts, prices) for facts in models]
    priced = sorted((each for each in found if each), key=lambda each: (each.usd_per_request, each.facts.name))
    unpriced = tuple(facts.name for facts, each in zip(models, found, strict=True) if each is None)
    if not priced:
        raise PriceMapError(
            f"{prices.source} has no price of {', '.join(unpriced) or 'any model'}; name another map with --prices"
        )
    tiers: dict[str, list[_Priced]] = {}
    for each in priced:
        tiers.setdefault(_tier_name(each.offer.model), []).append(each)
    best = max((each.facts.accuracy or 0.0 for each in priced if each.facts.n_judged >= _LEAST_JUDGED), default=None)
    parts = [_head(prices, today, logs)]
    parts += [_tier(name, offers, priced, best, prices) for name, offers in tiers.items()]
    parts += [_left_out(name) for name in unpriced]
    text = "\n".join(parts)
    parse_tiers(text, "the proposal")
    return Proposal(text=text, tiers=tuple(tiers), unpriced=unpriced)


def _priced(facts: ModelFacts, prices: PriceMap) -> _Priced | None:
    if (found := prices.find(facts.name, facts.provider)) is not None:
        offer, is_sure = found
        doubts = [] if is_sure else [f"priced as {offer.model}, the nearest name in the map"]
        if offer.usd_per_mtok_input == offer.usd_per_mtok_output == 0:
            doubts.append("the map says that it is free; what does it cost you, for example as self_hosted?")
        if offer.region == UNKNOWN_REGION:
            doubts.append("in which region is it served?")
        if offer.context_window is None:
            doubts.append(f"the map has no context window; {_UNKNOWN_WINDOW} is a guess")
        return _Priced(facts=facts, offer=offer, doubts=(*doubts, *filter(None, [offer.note])), names=(facts.name,))
    n_tokens = (facts.input_tokens or 0) + (facts.output_tokens or 0)
    if not facts.cost_usd or not n_tokens:
        return None
    usd = 1e6 * facts.cost_usd / n_tokens
    offer = PricedModel(
        model=facts.name,
        provider=facts.provider or "unknown",
        region=UNKNOWN_REGION,
        context_window=None,
        usd_per_mtok_input=usd,
        usd_per_mtok_output=usd,
    )
    doubts = ["not in the price map: the price is the log's cost by token, region and context window are guesses"]
    return _Priced(facts=facts, offer=offer, doubts=tuple(doubts), names=(facts.name,))


def _tier_name(model: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", model.lower().rpartition("/")[2]).strip("-") or "tier"


def _head(prices: PriceMap, today: date, logs: Sequence[str]) -> str:
    from_logs = f", models and accuracy from {_words(', '.join(logs))}" if logs else ""
    return (
        f"# Proposed by broker init on {today}: prices from {_words(prices.source)}{from_logs}.\n"
        '# A comment that begins with "decide:" needs a person. The format: data/README.md#tierstoml.\n'
        "# A tier is a list of offers that are exchangeable in quality: put the same model of several providers into "
        "one tier,\n# and models that are as good as each other too. The order of tiers is free.\n"
    )


def _tier(name: str, offers: Sequence[_Priced], priced: Sequence[_Priced], best: float | None, prices: PriceMap) -> str:
    first = offers[0]
    said = [f"about {1000 * first.usd_per_request:.3g} USD per 1,000 requests"]
    if first.facts.accuracy is not None:
        said.insert(0, f"{first.facts.accuracy:.1%} right on {first.facts.n_judged:,} judged rows")
    lines = ["", "[[tiers]]", f"name = {_quoted(name)}", f"# {', '.join(said)}"]
    if (better := _dominating(first, priced)) is not None:
        lines.append(
            f"# decide: {_words(better.facts.name)} is cheaper and at least as accurate here; is this tier needed?"
        )
    if best is not None and first.facts.n_judged >= _LEAST_JUDGED and first.facts.accuracy == best:
        lines += ["# decide: the most accurate here; should only such tiers answer critical requests? Then:"]
        lines += ["# critical = true"]
    seen: dict[tuple[str, str], _Priced] = {}
    for each in offers:
        key = (each.offer.model, each.offer.provider)
        seen[key] = replace(each, names=(*seen[key].names, *each.names)) if key in seen else each
    for each in seen.values():
        lines += _offer(each)
    for other in [] if len(seen) > 1 else prices.others(first.offer)[:_MAX_OTHERS]:
        lines.append(
            f"# decide: also at {_words(other.provider)} as {_words(other.model)}, "
            f"{other.usd_per_mtok_input:g} and {other.usd_per_mtok_output:g} USD per million tokens"
        )
    return "\n".join(lines)


def _dominating(mine: _Priced, priced: Sequence[_Priced]) -> _Priced | None:
    """The cheapest model that costs less and is at least as accurate; None where none is, or too few are judged."""
    if mine.facts.accuracy is None or mine.facts.n_judged < _LEAST_JUDGED:
        return None
    for each in priced:
        if each.facts.n_judged >= _LEAST_JUDGED and each.usd_per_request < mine.usd_per_request:
            if (each.facts.accuracy or 0) >= mine.facts.accuracy:
                return each
    return None


def _offer(priced: _Priced) -> list[str]:
    offer = priced.offer
    aliases = [name for name in priced.names if name != offer.model]
    lines = ["[[tiers.offers]]", *(f"# decide: {_words(doubt)}" for doubt in priced.doubts)]
    lines += [f"model = {_quoted(offer.model)}"]
    lines += [f"aliases = [{', '.join(map(_quoted, aliases))}]"] if aliases else []
    lines += [
        f"provider = {_quoted(offer.provider)}",
        f"region = {_quoted(offer.region)}",
        f"context_window = {offer.context_window or _UNKNOWN_WINDOW}",
    ]
    if offer.capabilities:
        lines.append(f"capabilities = [{', '.join(map(_quoted, offer.capabilities))}]")
    return lines + _price_lines(offer)


def _price_lines(offer: PricedModel) -> list[str]:
    """The prices of a model as lines of tiers.toml."""
    steps = ", ".join(f"{{ input_tokens = {step.input_tokens}, {', '.join(_stated(step))} }}" for step in offer.above)
    return _stated(offer) + ([f"above = [{steps}]"] if steps else [])


def _stated(priced: object) -> list[str]:
    return [f"{key} = {usd:g}" for key in PRICES if (usd := getattr(priced, key)) is not None]


def _left_out(name: str) -> str:
    return (
        f"\n# decide: no price is known for {json.dumps(name, ensure_ascii=False)}, so its rows are not used. "
        "Give it a tier, or make it an alias of an offer."
    )


def _words(text: str) -> str:
    """A text that can stand in a comment: on one line, and of printable characters only."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
