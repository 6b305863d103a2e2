"""Why a decision is as it is, in words: the sentences of `Decision.reason`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from router.bundle.manifest import Manifest
from router.choosing import Choice
from router.policy import Dials
from router.portfolio.tiers import Offer, Tier
from router.restrictions import CostLimit, OfferFilter, Restrictions


def why_none(
    opened: Collection[str], offers: Sequence[Offer], accepts: OfferFilter | None, context_tokens: float
) -> str:
    """Why no tier was chosen: what no offer has, or a prompt that is too long.

    opened: names of the tiers that may answer. offers: those that the request might ask. accepts: None accepts all.
    """
    if opened:
        return "the graph chose none of the tiers that may answer"
    if accepts is not None and (trouble := accepts.trouble(offers)):
        return f"no tier is eligible: {trouble}"
    widest = max(offer.context_window for offer in offers if accepts is None or accepts(offer))
    return (
        f"no tier is eligible for {context_tokens:.0f} input tokens and an answer: "
        f"the largest context window is {widest} tokens"
    )


def why_chosen(choice: Choice, opened: Collection[str], dials: Dials, manifest: Manifest, exploration: float) -> str:
    """Why the tier was chosen, in a sentence. opened: names of the tiers that may answer."""
    tier, n_admissible = choice.best, choice.n_admissible
    if dials.unproven and tier == manifest.best_tier:
        why = "the best tier of the log"
    elif dials.critical:
        why = "critical request: highest success among the tiers that may answer it"
    elif dials.slack == 0:
        why = "highest success"
    elif n_admissible == 1:
        why = f"no other tier within {dials.slack:.3f} of the highest success"
    elif dials.worth_usd > 0:
        why = f"largest worth x success - cost of {n_admissible} admissible tiers"
    else:
        why = f"cheapest of {n_admissible} tiers within {dials.slack:.3f} of the highest success"
    why += choice.why_limited
    if dials.unproven:
        why += _why_unproven(opened, dials, manifest)
    if not_eligible := [name for name in manifest.tiers if name not in opened]:
        why += f"; not eligible: {', '.join(not_eligible)}"
    if choice.tier != tier:
        return f"{choice.tier}: explored, as {exploration:g} of requests are; else {tier}: {why}"
    return f"{tier}: {why}"


def why_left_out(
    left_out: Collection[str], tiers: Sequence[Tier], restrictions: Sequence[Restrictions], limit: CostLimit | None
) -> str:
    """Which entries of a policy leave tiers out, in words.

    left_out: names of the tiers that the policy alone keeps from answering. limit: on the request's cost, if any.
    """
    found: list[str] = []
    for tier in tiers:
        if tier.name in left_out:
            shut = [
                each.name for each in restrictions if not any(each.admits(tier.name, offer) for offer in tier.offers)
            ]
            found += shut or ([] if limit is None else [limit.name])
    entries = " and ".join(dict.fromkeys(found)) or "the policy"
    return f"; by {entries} {', '.join(left_out)} may not answer"


def _why_unproven(opened: Collection[str], dials: Dials, manifest: Manifest) -> str:
    """That the quality is not promised, and what it would take."""
    why = ""
    if manifest.best_tier not in opened:
        why += f"; the best tier of the log, {manifest.best_tier}, may not answer"
    why += f"; the training log carries no promise of quality {dials.quality:g}"
    if dials.n_needed:
        why += f", which takes about {dials.n_needed:,} {manifest.promise.get('prompts', 'prompts')}"
        why += f": there are {manifest.promise.get('n_prompts', 0):,}"
    return why
