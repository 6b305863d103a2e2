"""The errors that Token Broker raises on purpose.

RouterError
├── BundleError     a bundle is missing, incomplete, altered or of another format
│   └── SignatureError  no trusted key has signed it
├── KeyFileError    a file holds no key of the kind that signs bundles
├── TierError       tiers.toml does not say what it must
├── PriceError      a price table cannot replace the one in use
├── PriceMapError   a price map cannot be read, or has no price for what is asked
├── PromptError     messages that are not a chat
├── CheckError      a check is not known or set up wrongly, or could not look at an answer
├── PlanError       a plan was run, and no offer gave an answer
├── ServiceError    the service cannot start as it is set up
├── StateError      the state that workers share cannot be used as it is named
├── PlayError       the page of `broker play` asked for what it may not, or cannot be served
├── OutcomeLogError an outcome log was asked for what it cannot say
├── PolicyError     policy.toml does not say what it must, or names a tier that the bundle lacks
└── DialError       quality, worth_usd or another argument of a request is out of range
    └── RefusedError    a client asks for what the policy does not allow it

Every message says what was found, what was expected and what to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class RouterError(Exception):
    """Base of every error that Token Broker raises on purpose.

    exit_code: with which the command line ends: 2 for bad input, 1 where the work itself failed.
    """

    exit_code = 2


class BundleError(RouterError):
    """A bundle is missing, incomplete, altered or of another format."""


class SignatureError(BundleError):
    """No trusted key has signed a bundle.

    folder: of the bundle.
    """

    def __init__(self, folder: Path, found: str) -> None:
        self.folder = folder
        super().__init__(f"{folder} {found}; sign it with: broker sign {folder} --key FILE")


class KeyFileError(RouterError):
    """A file holds no key of the kind that signs bundles."""


class TierError(RouterError):
    """tiers.toml does not say what it must."""


class PriceError(RouterError):
    """A price table cannot replace the one in use."""


class PriceMapError(RouterError):
    """A price map cannot be read, or has no price for what is asked."""


class PromptError(RouterError):
    """Messages that are not a chat."""


class CheckError(RouterError):
    """A check is not known or set up wrongly, or could not look at an answer. It says nothing about the answer itself.

    cost_usd: what was paid before the check failed, in USD: a judge whose reply has no verdict was asked all the same.
    """

    def __init__(self, message: str, *, cost_usd: float = 0.0) -> None:
        super().__init__(message)
        self.cost_usd = cost_usd


class PlanError(RouterError):
    """A plan was run, and no offer gave an answer.

    attempts: all of them, each a router.plan_result.Attempt with its error, in the order in which they were made.
    """

    exit_code = 1

    def __init__(self, message: str, *, attempts: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.attempts = attempts


class ServiceError(RouterError):
    """The service cannot start as it is set up."""


class StateError(RouterError):
    """The state that workers share cannot be used as it is named."""


class PlayError(RouterError):
    """The page of `broker play` asked for what it may not, or cannot be served."""


class OutcomeLogError(RouterError):
    """An outcome log was asked for what it cannot say."""


class PolicyError(RouterError):
    """policy.toml does not say what it must, or names a tier that the bundle lacks."""


class DialError(RouterError, ValueError):
    """quality, worth_usd or another argument of a request is out of range."""


class RefusedError(DialError):
    """A client asks for what the policy does not allow it.

    rule: where the rule stands, and its name. allowed: what it allows. found: what the client asked for.
    remedy: what the client, or the operator, can do.
    """

    def __init__(self, rule: str, *, allowed: str, found: str, remedy: str) -> None:
        self.rule, self.allowed, self.found, self.remedy = rule, allowed, found, remedy
        super().__init__(f"{rule} allows {allowed}; found {found}; {remedy}")
