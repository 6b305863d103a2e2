"""The command `broker play`."""

from __future__ import annotations

import argparse
import errno
import sys
import webbrowser
from pathlib import Path

from router.bundle.bundle import Bundle
from router.command import DONE, Command, say
from router.errors import PlayError
from router.golden import proven
from router.play.server import HOST, PlayServer
from router.play.trial import Trial
from router.portfolio.prices import PriceTable

DEFAULT_PORT = 4180


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle", type=Path, default=Path("models/demo"), help="folder of a bundle; default: models/demo"
    )
    parser.add_argument("--prices", type=Path, help="today's prices, in the format of tiers.toml")
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"on this machine only; 0 takes a free one; default: {DEFAULT_PORT}",
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the address")


def _run(options: argparse.Namespace) -> int:
    bundle = proven(Bundle.load(options.bundle))
    prices = bundle.prices if options.prices is None else PriceTable.read(options.prices, bundle.manifest.tiers)
    trial = Trial(bundle, str(options.bundle), prices)
    with _server(trial, options.port) as server:
        trial.begin_proofs()
        say(f"{options.bundle} is at {server.url}   (this machine only; Ctrl-C ends it)")
        sys.stdout.flush()
        if not options.no_browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return DONE
    return DONE


def _server(trial: Trial, port: int) -> PlayServer:
    """The server; raises PlayError where the port cannot be taken."""
    try:
        return PlayServer(trial, port)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "is taken" if taken else f"cannot be used ({error})"
        raise PlayError(f"port {port} of {HOST} {why}; give another one with --port, or 0 for a free one") from error


play = Command("try a bundle in the browser: prompts, dials, prices, plans and why", _arguments, _run)
