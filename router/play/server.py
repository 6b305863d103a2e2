"""A small HTTP server on the loopback interface, for the page of `broker play`.

It answers three requests: the page, what the page shows of the bundle, and decisions. It takes them from the page
alone: a request that names another host (DNS rebinding) or comes from another site is refused. It keeps nothing and
logs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

from router.errors import RouterError
from router.play.trial import Trial

HOST = "127.0.0.1"
MOST_BYTES = 2 * 2**20
_TIMEOUT_S = 30


class PlayServer(ThreadingHTTPServer):
    """Serves the page of a trial on 127.0.0.1; port 0 takes a free one. Raises OSError where the port is taken."""

    daemon_threads = True

    def __init__(self, trial: Trial, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.trial = trial
        self.page = files("router.play").joinpath("page.html").read_text(encoding="utf-8")
        self.policy = content_policy(self.page)
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error; all else is told as usual."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def content_policy(page: str) -> str:
    """A Content-Security-Policy by which the page runs its own script and style, and nothing that gets into it."""

    def digests(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found
        )

    return (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    server: PlayServer
    server_version, sys_version = "broker-play", ""
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:  # noqa: N802  (the name that http.server calls)
        """The page, or what it shows of the bundle."""
        if not self._is_from_the_page():
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, self.server.page.encode(), "text/html; charset=utf-8")
        elif self.path == "/bundle":
            self._send_json(HTTPStatus.OK, self.server.trial.about())
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")

    def do_POST(self) -> None:  # noqa: N802
        """A decision."""
        if not self._is_from_the_page():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/decide":
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        elif self.headers.get_content_type() != "application/json":  # Other sites can send no JSON without asking.
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        elif not (length.isascii() and length.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        elif int(length) > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MOST_BYTES:,} bytes")
        else:
            self._decide(self.rfile.read(int(length)))

    def _decide(self, body: bytes) -> None:
        try:
            answer = self.server.trial.answer(json.loads(body))
        except (RouterError, ValueError, RecursionError) as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        else:
            self._send_json(HTTPStatus.OK, answer)

    def _is_from_the_page(self) -> bool:
        """Whether the request names this server and comes from its page; else it is refused."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host.lower() not in self.server.hosts:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, f"this server is {self.server.url}")
        elif origin is not None and origin.lower() != f"http://{host.lower()}":
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers its own page only")
        elif self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and self.path != "/":
            self._refuse(HTTPStatus.FORBIDDEN, "this server answers its own page only")
        else:
            return True
        return False

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True  # What was sent with the request is not read.
        self._send_json(status, {"error": message})

    def _send_json(self, status: HTTPStatus, document: Any) -> None:
        self._send(status, json.dumps(document, ensure_ascii=False).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": content_type,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": self.server.policy,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            **({"Connection": "close"} if self.close_connection else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
