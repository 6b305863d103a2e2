"""Token Broker's runtime: load a bundle, route requests."""

from router.decision import Decision
from router.errors import (
    BundleError,
    CheckError,
    DialError,
    KeyFileError,
    PlanError,
    PolicyError,
    PriceError,
    PromptError,
    RouterError,
    SignatureError,
    TierError,
)
from router.plan_result import Answer
from router.policy import Policy
from router.portfolio.tiers import Offer, Tier
from router.restrictions import Restrictions
from router.router import Router
from router.watch import Watcher

__all__ = [
    "Answer",
    "BundleError",
    "CheckError",
    "Decision",
    "DialError",
    "KeyFileError",
    "Offer",
    "PlanError",
    "Policy",
    "PolicyError",
    "PriceError",
    "PromptError",
    "Restrictions",
    "Router",
    "RouterError",
    "SignatureError",
    "Tier",
    "TierError",
    "Watcher",
]
