"""What the policy lets a client do at the endpoint: who asks, and the refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from litellm.proxy._types import ProxyException

from router.clients import DEFAULT_RIGHTS, Client, ClientRights, Clients
from router.decision import Decision
from router.errors import RefusedError
from router.gateway.attempts import Attempts
from router.request import MODEL
from router.router import Snapshot

DECISION_KEY = "broker_decision"
"""Where the Decision stands in LiteLLM's request metadata; LiteLLM's logging callbacks find it there too."""

_HEALTH_CHECK = "litellm-internal-health-check"  # in place of a key, where LiteLLM itself asks


def client_of(auth: Any) -> Client:
    """Who asks. auth: LiteLLM's UserAPIKeyAuth, which no request can write to; None for a client that is not known."""
    names = (getattr(auth, name, None) for name in ("token", "key_alias", "team_id", "team_alias"))
    return Client(*(name if isinstance(name, str) else "" for name in names))


def client_of_call(call: Mapping[str, Any]) -> Client | None:
    """Who asked, as LiteLLM has noted it in one of its calls; None where no client did.

    call: the arguments. LiteLLM strips these names from what a client sends.
    """
    metadata = call.get("litellm_metadata") or call.get("metadata")
    key = metadata.get("user_api_key_hash") if isinstance(metadata, Mapping) else None
    if not isinstance(metadata, Mapping) or not isinstance(key, str) or key == _HEALTH_CHECK:
        return None
    names = (metadata.get(f"user_api_key_{name}") for name in ("alias", "team_id", "team_alias"))
    return Client(key, *(name if isinstance(name, str) else "" for name in names))


def is_routed(model: object) -> bool:
    """Whether a request for this model is one for the router."""
    return isinstance(model, str) and model.partition("/")[0] == MODEL


def rights_of(snapshot: Snapshot, auth: Any, model: object) -> ClientRights:
    """What the client may ask for; raises ProxyException where it may not ask for the model."""
    clients = snapshot.policy.clients
    try:
        rights = DEFAULT_RIGHTS if clients is None else clients.rights(client_of(auth))
        if not is_routed(model):
            rights.check_model(model)
    except RefusedError as error:
        raise refusal(str(error), code=403) from error
    return rights


def refuse_unpoliced(clients: Clients | None, attempts: Attempts | None, call: Mapping[str, Any]) -> None:
    """Raises HTTPException for a call past the policy: by an endpoint without its hook, or by fallbacks of LiteLLM.

    attempts: of a routed request; None for a call that is not routed. call: LiteLLM's arguments.
    """
    metadata = call.get("metadata") or {}
    if attempts is not None:
        model = metadata.get("model_group")
        if attempts.may_answer is not None and model not in attempts.may_answer:
            raise HTTPException(403, f"the policy allows {', '.join(sorted(attempts.may_answer))}; found {model}")
    elif clients is not None and not isinstance(metadata.get(DECISION_KEY), Decision):  # Else it is a call of a plan.
        client = client_of_call(call)
        try:
            if client is not None:
                clients.rights(client).check_model(call.get("model"))
        except RefusedError as error:
            raise HTTPException(403, str(error)) from error


def refusal(message: str, *, code: int = 400) -> ProxyException:
    """What LiteLLM answers a client with an HTTP status: 400 for a bad request, 403 for what the policy forbids."""
    kind = "permission_error" if code == 403 else "invalid_request_error"
    return ProxyException(message=message, type=kind, param="model", code=code)
