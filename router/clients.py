"""What each client of an endpoint may ask for: its dials and their ranges, its classes, and models past the router.

One entry of the policy holds for a client: that of its key, else that of its team, else the one for all others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from router.errors import RefusedError
from router.request import MODEL, RequestDials
from router.restrictions import Restrictions

MASTER_KEY_NAME = "litellm_proxy_master_key"
"""The name of the operator's own key, as LiteLLM gives it."""

_HASH = re.compile("[0-9a-f]{64}")

Range = tuple[float, float]


class Client(NamedTuple):
    """Who asks, as the endpoint has authenticated it; nothing of this can be said by a request.

    key_hash: the SHA-256 of its key in hexadecimal digits, or MASTER_KEY_NAME. An empty text is not known.
    """

    key_hash: str = ""
    key_alias: str = ""
    team_id: str = ""
    team_alias: str = ""


@dataclass(frozen=True)
class ClientRights:
    """What one client may ask for.

    name: where this stands, for messages, as in "policy.toml [keys.billing]".
    classes: names of the classes that it may use; None allows every class of the policy.
    default_class: the class of a request that names none; None where such a request has no class, or must name one.
    quality, worth_usd: the range that it may set the dial in; None where it may not set it.
    critical: whether it may ask for critical requests. checks: which checks it may ask for; None allows all.
    other_models: whether it may ask for models past the router.
    restrictions: rules for all its requests.
    """

    name: str
    classes: tuple[str, ...] | None = None
    default_class: str | None = None
    quality: Range | None = None
    worth_usd: Range | None = None
    critical: bool = False
    checks: frozenset[str] | None = frozenset()
    other_models: bool = False
    restrictions: Restrictions | None = None

    def dials_for(self, asked: RequestDials, default_quality: float) -> RequestDials:
        """The dials and the class in force for a request: what was asked, and what the entry says of the rest.

        A dial that the request leaves out takes its usual value, or the nearest one of its range. A request with
        `worth_usd` alone has no quality to keep, so the least quality of the range is added.
        default_quality: that of a request without dials. Raises RefusedError where something is not allowed. Whether
        a number is one that the dial can be, Router.route says.
        """
        self._check(asked)
        quality, worth_usd = asked.quality, asked.worth_usd
        if worth_usd is None and self.worth_usd is not None and self.worth_usd[0] > 0:
            worth_usd = self.worth_usd[0]
            quality = default_quality if quality is None else quality
        if self.quality is not None and asked.quality is None:
            low, high = self.quality
            usual = default_quality if asked.worth_usd is None else low
            nearest = min(max(usual, low), high)
            if nearest > 0 and (asked.worth_usd is not None or nearest != default_quality):
                quality = nearest
        return replace(asked, quality=quality, worth_usd=worth_usd, request_class=self._class_of(asked.request_class))

    def check_model(self, model: object) -> None:
        """Raises RefusedError where the client asks for a model past the router, and may not."""
        if not self.other_models:
            raise RefusedError(
                f"{self.name}: other_models",
                allowed=f"only the model {MODEL}",
                found=repr(model)[:80],
                remedy=f"ask for {MODEL}",
            )

    def _check(self, asked: RequestDials) -> None:
        for name, value, allowed, most in (
            ("quality", asked.quality, self.quality, 1.0),
            ("worth_usd", asked.worth_usd, self.worth_usd, math.inf),
        ):
            if value is None or not 0 <= value <= most:
                continue  # A value that is none of the dial's, Router.route refuses for everybody.
            if allowed is None:
                raise self._not_its_own(name, f"{name} {value:g}")
            if not allowed[0] <= value <= allowed[1]:
                raise RefusedError(
                    f"{self.name}: may_set.{name}",
                    allowed=f"{allowed[0]:g} to {allowed[1]:g}",
                    found=f"{value:g}",
                    remedy=f"ask for {name} in this range, or leave it out",
                )
        if asked.critical and not self.critical:
            raise self._not_its_own("critical", "critical")
        for check in asked.checks:
            if self.checks is not None and check not in self.checks:
                allowed_checks = ", ".join(sorted(self.checks)) or "no check"
                raise RefusedError(
                    f"{self.name}: may_set.check",
                    allowed=allowed_checks,
                    found=f"check {check[:80]!r}",
                    remedy="leave it out",
                )

    def _not_its_own(self, dial: str, found: str) -> RefusedError:
        may_set = {
            "quality": self.quality is not None,
            "worth_usd": self.worth_usd is not None,
            "critical": self.critical,
            "check": self.checks is None or bool(self.checks),
        }
        allowed = ", ".join(name for name, is_set in may_set.items() if is_set) or "no dial"
        return RefusedError(f"{self.name}: may_set", allowed=allowed, found=found, remedy=f"leave {dial} out")

    def _class_of(self, asked: str | None) -> str | None:
        if asked is None:
            if self.default_class is None and self.classes:
                raise RefusedError(
                    f"{self.name}: classes",
                    allowed=", ".join(self.classes),
                    found="a request without a class",
                    remedy=f"name one, as in the model {MODEL}/class={self.classes[0]}",
                )
            return self.default_class
        if self.classes is not None and asked not in self.classes:
            raise RefusedError(
                f"{self.name}: classes",
                allowed=", ".join(self.classes) or "no class",
                found=f"class {asked[:80]!r}",
                remedy="name another class, or leave it out",
            )
        return asked


DEFAULT_RIGHTS = ClientRights(
    name="an endpoint without a policy", quality=(0.0, 1.0), worth_usd=(0.0, 0.1), checks=None, other_models=True
)
"""What each client may ask for where no policy says anything of clients."""


@dataclass(frozen=True)
class Clients:
    """The rights of every client.

    keys: by the name (LiteLLM's alias) or the hash of a key. teams: by id or alias. others: all other clients; None
    refuses them. source: the file, for messages.
    """

    keys: Mapping[str, ClientRights] = field(default_factory=dict)
    teams: Mapping[str, ClientRights] = field(default_factory=dict)
    others: ClientRights | None = None
    source: str = "the policy"

    @property
    def restrictions(self) -> tuple[Restrictions, ...]:
        """The rules of all entries that have some."""
        every = (*self.keys.values(), *self.teams.values(), *(() if self.others is None else (self.others,)))
        return tuple(each.restrictions for each in every if each.restrictions is not None)

    def rights(self, client: Client) -> ClientRights:
        """The one entry that holds for a client; raises RefusedError where there is none."""
        alias = client.key_alias
        if alias == MASTER_KEY_NAME or _HASH.fullmatch(alias):
            alias = ""  # An alias that looks like another key's hash must not stand for that key.
        for entries, name in (
            (self.keys, client.key_hash), (self.keys, alias),
            (self.teams, client.team_id), (self.teams, client.team_alias),
        ):  # fmt: skip
            if name in entries:
                return entries[name]
        if self.others is None:
            raise RefusedError(
                self.source,
                allowed="only the keys and teams that it names",
                found=f"key {client.key_alias or client.key_hash[:12] or 'without a name'}",
                remedy="add an entry for this key or its team, or [others]",
            )
        return self.others
