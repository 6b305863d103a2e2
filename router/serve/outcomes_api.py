"""`POST /v1/outcomes`: clients and graders say whether an answer was right, by the decision_id in its headers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from litellm.proxy._types import ProxyException
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth

from router.errors import OutcomeLogError
from router.outcomes.feedback import ContradictionError, Feedback, NotStoredError, Taken

PATH = "/v1/outcomes"

_KEYS = ("decision_id", "correct", "score", "source", "comment", "replace")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LONGEST = {"source": 200, "comment": 4000}


class BodyError(OutcomeLogError):
    """The body of a request is no outcome."""


@dataclass(frozen=True)
class Outcome:
    """What a client says of an answer. correct: from 0 to 1."""

    decision_id: str
    correct: float
    source: str | None
    comment: str | None
    replace: bool

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Outcome:
        """The outcome in the JSON of a request; raises BodyError, which says what was found and expected."""
        if unknown := sorted(set(body) - set(_KEYS)):
            raise BodyError(f"found {', '.join(unknown)[:80]}; expected any of {', '.join(_KEYS)}")
        decision_id = body.get("decision_id")
        if not isinstance(decision_id, str) or not _ID.fullmatch(decision_id):
            raise BodyError(
                f"decision_id is {_shown(decision_id)}; expected the text in the header x-broker-decision-id"
            )
        replace = body.get("replace", False)
        if not isinstance(replace, bool):
            raise BodyError(f"replace is {_shown(replace)}; expected true or false")
        source, comment = _text(body, "source"), _text(body, "comment")
        return cls(decision_id, _correct(body), source, comment, replace)

    def told_to(self, feedback: Feedback) -> Taken:
        """What became of it; raises what Feedback.take raises."""
        return feedback.take(
            self.decision_id, self.correct, judged_by=self.source, comment=self.comment, replace=self.replace
        )


def outcomes_router(feedback: Feedback) -> APIRouter:
    """The route, for the app of LiteLLM's proxy, whose keys it asks for."""
    router = APIRouter()
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token-broker-outcomes")  # LiteLLM needs its own.

    @router.post(PATH, dependencies=[Depends(_object_body), Depends(user_api_key_auth)], tags=["broker"])
    async def take_outcome(request: Request) -> JSONResponse:
        """Take whether the answer to a decision was right.

        200: it is in the log; again, where it is there already. 202: the log has no such decision (yet), and the
        outcome waits for it. 400: the body is no outcome. 409: another outcome is there. 503: it could not be stored.
        """
        try:
            given = Outcome.read(await request.json())
            taken = await asyncio.get_running_loop().run_in_executor(worker, given.told_to, feedback)
        except BodyError as error:
            return _error(400, str(error))
        except ContradictionError as error:
            return _error(409, str(error))
        except NotStoredError as error:
            return _error(503, str(error))
        answer = {"decision_id": given.decision_id, "correct": given.correct, "status": taken.status}
        return JSONResponse(answer, status_code=200 if taken.is_known else 202)

    return router


async def _object_body(request: Request) -> None:
    """Refuse a body that is no JSON object: LiteLLM's authentication reads it, too, and expects one."""
    try:
        body = await request.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, Mapping):
        message = f"the body is no JSON object; expected one with {', '.join(_KEYS)}"
        raise ProxyException(message=message, type="invalid_request_error", param=None, code=400)


def _error(status: int, message: str) -> JSONResponse:
    """An error in the shape that OpenAI's clients read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": str(status)}
    return JSONResponse({"error": error}, status_code=status)


def _correct(body: Mapping[str, Any]) -> float:
    given = [name for name in ("correct", "score") if name in body]
    if len(given) != 1:
        raise BodyError(
            f"found {' and '.join(given) or 'neither correct nor score'}; expected one of correct and score"
        )
    value = body[given[0]]
    if given == ["correct"]:
        if not isinstance(value, bool):
            raise BodyError(f"correct is {_shown(value)}; expected true or false")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BodyError(f"score is {_shown(value)}; expected a number from 0 to 1")
    return float(value)


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _LONGEST[name]:
        raise BodyError(f"{name} is {_shown(value)}; expected a text of at most {_LONGEST[name]:,} characters")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}... ({len(text):,} characters)"
