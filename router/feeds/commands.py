"""The commands `broker init` and `broker prices`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from router.errors import PriceMapError
from router.feeds.price_map import read_price_map
from router.feeds.proposal import ModelFacts, propose
from router.files import replacing

LOG_READERS = "token_broker.log_readers"
"""Entry points by which the extra `train` reads logs: `model_facts` and `recent_prompts`."""

INIT_HELP = "propose a tiers.toml from a log's models and a price map, to be edited"


def init_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `broker init`."""
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--logs", nargs="+", help="outcome logs whose models are to become tiers (extra: train)")
    models.add_argument("--models", nargs="+", metavar="NAME", help="names of models")
    parser.add_argument("--prices", help=f"a price map: {_MAP_HELP}; default: LiteLLM's, else a small dated table")
    parser.add_argument("--out", required=True, type=Path, help="the file to write, for example tiers.toml")
    parser.add_argument("--map", action="append", default=[], dest="maps", metavar="COLUMN=SOURCE", help="as of train")
    rate_argument(parser)


_MAP_HELP = "a file of LiteLLM's, OpenRouter's or CSV format, or \"litellm\" for the map in its package"


def rate_argument(parser: argparse.ArgumentParser) -> None:
    """The option --usd-per of commands that read price maps."""
    parser.add_argument(
        "--usd-per",
        action="append",
        default=[],
        type=_rate,
        metavar="CURRENCY=USD",
        help="what one unit of another currency is in USD, for example CNY=0.14; may be given again",
    )


def _rate(text: str) -> tuple[str, float]:
    currency, equals, usd = text.partition("=")
    try:
        if equals and currency.strip() and 0 < float(usd) < float("inf"):
            return currency.strip().upper(), float(usd)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"found {text!r}; expected CURRENCY=USD, for example CNY=0.14")


def init(options: argparse.Namespace) -> tuple[int, str]:
    """Propose a tiers.toml: the exit code, and what to say. Raises PriceMapError, also where the file exists."""
    if options.out.exists():
        raise PriceMapError(f"{options.out} exists, and is not overwritten; name another file with --out")
    prices = read_price_map(options.prices, dict(options.usd_per))
    if options.logs:
        models = log_reader("model_facts")(options.logs, options.maps)
    else:
        models = [ModelFacts(name=name) for name in dict.fromkeys(options.models)]
    proposal = propose(models, prices, datetime.now(UTC).date(), options.logs or ())
    with replacing(options.out) as unfinished:
        unfinished.write_text(proposal.text, encoding="utf-8")
    lines = [f"{options.out}: {len(proposal.tiers)} tiers ({', '.join(proposal.tiers)}); prices from {prices.source}"]
    if proposal.unpriced:
        lines.append(f"no price is known of {', '.join(proposal.unpriced)}: left out, in comments")
    if proposal.n_decide:
        lines.append(f'{proposal.n_decide} comments that begin with "decide:" need a person')
    if options.logs:
        words = ["--logs", *options.logs, "--tiers", str(options.out)]
        words += [word for text in options.maps for word in ("--map", text)]
        lines.append(f"next: broker audit {shlex.join(words)}")
    return 0, "\n".join(lines)


def log_reader(name: str) -> Callable[..., Any]:
    """A function of the extra `train` that reads logs. Raises ImportError where the extra is not installed."""
    found = [entry for entry in entry_points(group=LOG_READERS) if entry.name == name]
    if not found:
        raise ImportError("--logs needs the extra train: pip install 'token-broker[train]'")
    reader: Callable[..., Any] = found[0].load()
    return reader
