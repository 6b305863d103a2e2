"""A request's text: from chat messages to the characters that the tokenizer reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from router.errors import PromptError

Messages = Sequence[Mapping[str, Any]]


def prompt_text(prompt: str | None, messages: Messages | None) -> str:
    """The text of a request, from exactly one of a prompt and a chat.

    Raises PromptError where neither or both are given, the prompt is no text, or the messages are no chat.
    """
    if (prompt is None) == (messages is None):
        raise PromptError("found both or neither of prompt and messages; expected one of the two")
    if messages is not None:
        return chat_text(messages)
    if not isinstance(prompt, str):
        raise PromptError(f"prompt is {type(prompt).__name__}; expected a text")
    return prompt


def chat_text(messages: Messages) -> str:
    """The texts of a chat, newest message first, a blank line between them.

    The newest comes first because the encoder reads a limited number of tokens, so what is cut off is the oldest.
    messages: `{"role": ..., "content": text or [{"type": "text", "text": ...}, ...]}`, oldest first, as in the chat
        completion interface. Parts that are not text (images, files) are left out.
    Raises PromptError where messages are not a chat.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise PromptError(f"messages is {type(messages).__name__}; expected a non-empty list of messages")
    return "\n\n".join(_content(message) for message in reversed(messages))


def valid_unicode(text: str) -> str:
    """The text with each lone surrogate replaced by a question mark, since no tokenizer can encode them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _content(message: Mapping[str, Any]) -> str:
    if not isinstance(message, Mapping):
        raise PromptError(f"a message is {type(message).__name__}; expected a mapping with role and content")
    content = message.get("content")
    if content is None:  # An assistant's tool call has no text.
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise PromptError(f"a message's content is {type(content).__name__}; expected a text or a list of parts")
    parts = [part.get("text", "") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    return "\n".join(part for part in parts if isinstance(part, str))
