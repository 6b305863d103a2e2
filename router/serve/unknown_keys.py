"""A clear answer to a client without a key, or with an unknown one, where LiteLLM has no database.

LiteLLM then looks for its database client, which is not installed, and answers with HTTP 500 or 400.
"""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import ProxyErrorTypes, ProxyException

_MESSAGE = "the key is missing or not known; send one that LiteLLM knows as `Authorization: Bearer KEY`"


class UnknownKeys(CustomLogger):
    """LiteLLM callback that makes HTTP 401 of a refusal of the client's key."""

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
    ) -> HTTPException | None:
        """The answer in place of LiteLLM's; None leaves LiteLLM's. LiteLLM calls this for each error."""
        was_admitted = "proxy_server_request" in request_data  # LiteLLM adds it once it has accepted the key.
        is_refusal = type(original_exception) is Exception or (
            isinstance(original_exception, ProxyException)
            and original_exception.type == ProxyErrorTypes.no_db_connection
        )
        return HTTPException(status_code=401, detail=_MESSAGE) if is_refusal and not was_admitted else None
