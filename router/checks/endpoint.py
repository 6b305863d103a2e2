"""A model behind an endpoint that speaks OpenAI's protocol, as `ask` of a Judge (extra `gateway`)."""

from __future__ import annotations

from router.checks.judge import Reply
from router.extras import install_command

try:
    from openai import OpenAI
except ImportError as error:
    raise ImportError(f"a judge at an endpoint needs openai's client: {install_command('gateway')}") from error

COST_HEADER = "x-litellm-response-cost"
"""Where LiteLLM's proxy says what an answer cost, in USD."""


class ModelAt:
    """Asks one model at an endpoint. Threads may share it.

    base_url: with `/v1` at its end. api_key: of that endpoint; any text where it needs none.
    timeout_s: for one try; a try that fails is made twice more. Raises openai.OpenAIError where none succeeds.
    """

    def __init__(self, model: str, *, base_url: str, api_key: str, timeout_s: float = 60.0) -> None:
        self._model = model
        self._client = OpenAI(base_url=base_url, api_key=api_key, timeout=timeout_s, max_retries=2)

    def __call__(self, prompt: str) -> Reply:
        """The model's reply to one prompt, with its cost where the endpoint states it."""
        response = self._client.chat.completions.with_raw_response.create(
            model=self._model, messages=[{"role": "user", "content": prompt}]
        )
        return Reply(text=response.parse().choices[0].message.content or "", cost_usd=_usd(response.headers))


def _usd(headers: object) -> float | None:
    stated = headers.get(COST_HEADER)  # type: ignore[attr-defined]
    try:
        return max(0.0, float(stated))
    except (TypeError, ValueError):
        return None
