"""Token Broker's runtime: load a bundle, route requests."""

from router.decision import Decision
from router.errors import (
    BundleError,
    DialError,
    KeyFileError,
    PriceError,
    PromptError,
    RouterError,
    SignatureError,
    TierError,
)
from router.policy import Policy
from router.portfolio.tiers import Offer, Tier
from router.router import Router
from router.watch import Watcher

__all__ = [
    "BundleError",
    "Decision",
    "DialError",
    "KeyFileError",
    "Offer",
    "Policy",
    "PriceError",
    "PromptError",
    "Router",
    "RouterError",
    "SignatureError",
    "Tier",
    "TierError",
    "Watcher",
]
