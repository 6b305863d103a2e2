"""Keeps LiteLLM's model list in step with the offers of the price table, which may change while requests go on."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

from litellm.types.router import Deployment, LiteLLM_Params

from router.portfolio.tiers import Offer
from router.router import Router

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
"""Seconds between two looks at the price table; a look that finds the same one takes no time."""

_REFERENCE = "os.environ/"


class OfferKeeper:
    """Adds an entry to LiteLLM's router for each offer that has none.

    router: of which the price table is followed. entry_of: makes the entry of an offer, as it stands in `model_list`;
    None where the operator writes the configuration, so that a missing entry is only said.
    """

    def __init__(self, router: Router, entry_of: Callable[[Offer], dict[str, Any]] | None) -> None:
        self._router, self._entry_of = router, entry_of
        self._seen = ""

    async def run(self, litellm_router: Callable[[], Any]) -> None:
        """Look until cancelled. litellm_router: LiteLLM's router as it is then."""
        while True:
            try:
                self.look(litellm_router())
            except Exception as error:  # LiteLLM's own; the next look comes.
                logger.warning("offers could not be added to LiteLLM's model list: %s", error)
            await asyncio.sleep(INTERVAL_S)

    def look(self, litellm_router: Any) -> None:
        """Add what is missing, once for each price table."""
        prices = self._router.prices
        if litellm_router is None or prices.id == self._seen:
            return
        there = set(litellm_router.get_model_names())
        missing = {offer.model: offer for tier in prices.tiers for offer in tier.offers if offer.model not in there}
        if self._entry_of is not None:
            for offer in missing.values():
                litellm_router.add_deployment(_deployment(self._entry_of(offer)))
        elif missing:
            logger.warning(
                "LiteLLM's configuration has no entry for %s: requests that these offers should answer go to others",
                ", ".join(sorted(missing)),
            )
        self._seen = prices.id


def _deployment(entry: dict[str, Any]) -> Deployment:
    """The entry as LiteLLM's router takes it at runtime, with the values of the variables that it names."""
    params = {
        name: os.environ.get(value.removeprefix(_REFERENCE))
        if isinstance(value, str) and value.startswith(_REFERENCE)
        else value
        for name, value in entry["litellm_params"].items()
    }
    return Deployment(model_name=entry["model_name"], litellm_params=LiteLLM_Params(**params))
