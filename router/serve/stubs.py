"""Stub providers: tiny servers on this machine that speak OpenAI's protocol, need no key and say who they are.

`broker serve --demo` asks them in place of models. What they answer is no model's work.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

WORDS_PER_SECOND = 50
"""How fast a stub streams."""


@contextmanager
def stub_provider(name: str) -> Iterator[str]:
    """A provider in threads of this process; yields its base URL."""

    class Handler(_Handler):
        provider = name

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def stub_providers(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """A stub for each name; yields their base URLs by name."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(stub_provider(name)) for name in dict.fromkeys(names)}


class _Handler(BaseHTTPRequestHandler):
    provider = ""
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Headers and body leave together.

    def do_POST(self) -> None:  # noqa: N802
        """Answer a chat completion or a text completion, whole or as a stream."""
        try:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            answer = _Answer(self.provider, body, is_chat=self.path.endswith("/chat/completions"))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            self._send(400, {"error": {"message": f"{type(error).__name__}: {error}", "type": "invalid_request_error"}})
            return
        if not body.get("stream"):
            self._send(200, answer.whole())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            for chunk in answer.chunks(with_usage=bool((body.get("stream_options") or {}).get("include_usage"))):
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.flush()
                time.sleep(1 / WORDS_PER_SECOND)
            self.wfile.write(b"data: [DONE]\n\n")
        except ConnectionError:
            pass  # Who asked has left.

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""

    def _send(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Answer:
    """What a stub says to one request: who it is, and how much it was asked."""

    def __init__(self, provider: str, body: dict[str, Any], *, is_chat: bool) -> None:
        asked = json.dumps(body.get("messages") or body.get("prompt") or "")
        self._is_chat = is_chat
        self._text = (
            f"This is no model: the stub of provider {provider} answers for {body['model']}. "
            f"It was asked {len(asked.split())} words."
        )
        kind = "chat.completion" if is_chat else "text_completion"
        self._head = {"id": f"stub-{uuid4().hex}", "created": int(time.time()), "model": body["model"], "object": kind}
        n_input, n_output = max(1, len(asked) // 4), max(1, len(self._text) // 4)  # about four characters a token
        self._usage = {
            "prompt_tokens": n_input,
            "completion_tokens": n_output,
            "total_tokens": n_input + n_output,
        }

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        said = {"message": {"role": "assistant", "content": self._text}} if self._is_chat else {"text": self._text}
        choice = {"index": 0, **said, "finish_reason": "stop"}
        return {**self._head, "choices": [choice], "usage": self._usage}

    def chunks(self, *, with_usage: bool) -> Iterator[dict[str, Any]]:
        """The answer word by word, and what it used where that is wanted."""
        head = {**self._head, "object": "chat.completion.chunk"} if self._is_chat else self._head
        for word in self._text.split(" "):
            said = {"delta": {"role": "assistant", "content": f"{word} "}} if self._is_chat else {"text": f"{word} "}
            yield {**head, "choices": [{"index": 0, **said, "finish_reason": None}]}
        end: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        yield {**head, "choices": [{"index": 0, **end, "finish_reason": "stop"}]}
        if with_usage:
            yield {**head, "choices": [], "usage": self._usage}
