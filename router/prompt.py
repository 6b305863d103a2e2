"""A request's text: from chat messages to the characters that the tokenizer reads.

Chats are read as the interfaces of OpenAI (chat completions and responses), Anthropic and Gemini write them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from router.errors import PromptError

Messages = Sequence[Mapping[str, Any]]

VISION, AUDIO = "vision", "audio"
"""Capabilities that a model needs to read the parts of a chat that are not text."""

_CONTENT_KEYS = ("content", "parts", "output", "refusal")  # A message holds its content under the first that is there.
_INNER_KEYS = ("content", "output", "source")  # A tool's result and a document hold parts of their own.
_DEEPEST = 8
_MEDIA_TYPES = {
    "image_url": VISION, "input_image": VISION, "image": VISION, "computer_screenshot": VISION, "video_url": VISION,
    "video": VISION, "file": VISION, "input_file": VISION, "document": VISION,
    "input_audio": AUDIO, "audio": AUDIO, "audio_url": AUDIO,
}  # fmt: skip
_GEMINI_MEDIA = ("inline_data", "inlineData", "file_data", "fileData")


def prompt_text(prompt: str | None, messages: Messages | None) -> str:
    """The text of a request, from exactly one of a prompt and a chat.

    Raises PromptError where neither or both are given, the prompt is no text, or the messages are no chat with a text.
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
    messages: oldest first, each a mapping whose `content` (in Gemini's `contents` its `parts`, in the output of a
        function of OpenAI's responses its `output`) is a text or a list of parts. Of a part its `text` or `refusal`
        is read, and the texts of a tool's result or document inside it. Images, audio and files are left out.
    Raises PromptError where messages are not a chat, or where no message has a text.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise PromptError(f"messages is {type(messages).__name__}; expected a non-empty list of messages")
    texts = [_message_text(message) for message in reversed(messages)]
    if not any(texts):
        raise PromptError("no text found in the messages; expected a message with a text")
    return "\n\n".join(texts)


def media_capabilities(messages: object) -> frozenset[str]:
    """What a model needs to read all parts of a chat: VISION for images, video and files, AUDIO for sound.

    messages: as chat_text takes them; whatever is no chat needs nothing.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        return frozenset()
    contents = [_content(message) for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if not isinstance(content, str) for part in _parts(content, _DEEPEST)]
    return frozenset([capability for part in parts if (capability := _media(part)) is not None])


def valid_unicode(text: str) -> str:
    """The text with each lone surrogate replaced by a question mark, since no tokenizer can encode them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _message_text(message: Mapping[str, Any]) -> str:
    """The text of a message, its parts joined by a line break; empty where it has none, as for a tool's call."""
    if not isinstance(message, Mapping):
        raise PromptError(f"a message is {type(message).__name__}; expected a mapping with role and content")
    content = _content(message)
    if isinstance(content, str):
        return content
    if not (content is None or isinstance(content, Sequence | Mapping)):
        raise PromptError(f"a message's content is {type(content).__name__}; expected a text or a list of parts")
    return "\n".join([text for part in _parts(content, _DEEPEST) for text in _texts(part)])


def _content(message: Mapping[str, Any]) -> object:
    for key in _CONTENT_KEYS:
        if (content := message.get(key)) is not None:
            return content
    return None


def _parts(content: object, depth: int) -> Iterator[Mapping[str, Any]]:
    """The parts of a content, each before the parts inside it; a text stands as a part with that text."""
    if isinstance(content, str):
        yield {"text": content}
    elif isinstance(content, Mapping) and depth:
        yield content
        for key in _INNER_KEYS:
            if key != "source" or isinstance(content.get(key), Mapping):  # Elsewhere a source is an address.
                yield from _parts(content.get(key), depth - 1)
    elif isinstance(content, Sequence) and not isinstance(content, bytes) and depth:
        for part in content:
            yield from _parts(part, depth - 1)


def _texts(part: Mapping[str, Any]) -> list[str]:
    """What a part itself says; Anthropic's plain documents say it in `data`."""
    found = (part.get("text"), part.get("refusal"), part.get("data") if part.get("type") == "text" else None)
    return [text for text in found if isinstance(text, str)]


def _media(part: Mapping[str, Any]) -> str | None:
    """The capability that a model needs to read a part; None for a text."""
    kind, source = part.get("type"), part.get("source")
    if kind == "document" and isinstance(source, Mapping) and source.get("type") in ("text", "content"):
        return None
    if isinstance(kind, str) and kind in _MEDIA_TYPES:
        return _MEDIA_TYPES[kind]
    for key in _GEMINI_MEDIA:
        if isinstance(blob := part.get(key), Mapping):
            mime_type = str(blob.get("mime_type") or blob.get("mimeType"))
            return {"audio": AUDIO, "text": None}.get(mime_type.partition("/")[0], VISION)
    return None
