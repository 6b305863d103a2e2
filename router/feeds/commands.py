"""The commands `broker init` and `broker prices`."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from router.errors import PriceMapError
from router.extras import install_command
from router.feeds.effect import PriceEffect, effect
from router.feeds.price_map import LITELLM, read_price_map
from router.feeds.proposal import ModelFacts, propose
from router.feeds.update import PriceUpdate, find_changes
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


PRICES_HELP = "bring the prices of a tiers.toml up to date, and show first what that moves"


def prices_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `broker prices`."""
    parser.add_argument("source", nargs="+", metavar="SOURCE", help=f"{_MAP_HELP}; or openrouter FILE")
    parser.add_argument("--tiers", required=True, type=Path, help="tiers.toml")
    parser.add_argument("--logs", nargs="+", help="recent logs, to show what moves (extra: train); needs --bundle")
    parser.add_argument("--bundle", type=Path, help="the bundle that decides")
    parser.add_argument("--map", action="append", default=[], dest="maps", metavar="COLUMN=SOURCE", help="as of train")
    parser.add_argument("--quality", type=float, help="show it at this dial; default: the bundle's default quality")
    parser.add_argument("--worth-usd", type=float, help="show it at this worth of a correct answer, in USD")
    rate_argument(parser)
    parser.add_argument("--apply", action="store_true", help="write the new prices to tiers.toml (extra: feeds)")
    parser.add_argument("--json", action="store_true", help="print all of it as one JSON document")


def prices(options: argparse.Namespace) -> tuple[int, str]:
    """Show what a price map changes, and write it with --apply: the exit code, and what to say."""
    if len(options.source) > 2 or (len(options.source) == 2 and options.source[0] not in (LITELLM, "openrouter")):
        raise PriceMapError(
            f"found {' '.join(options.source)}; expected FILE, litellm, litellm FILE or openrouter FILE"
        )
    if bool(options.logs) != bool(options.bundle):
        raise PriceMapError("found one of --logs and --bundle; expected both, to show what moves, or neither")
    price_map = read_price_map(options.source[-1], dict(options.usd_per))
    update = find_changes(options.tiers, price_map)
    moved = None
    if options.logs and update.believed:
        prompts = log_reader("recent_prompts")(options.logs, options.maps)
        moved = effect(options.bundle, options.tiers, update.new_text(), prompts, options.quality, options.worth_usd)
    is_applied = options.apply and bool(update.believed)
    if is_applied:
        update.apply()
    if options.json:
        document = {"source": price_map.source, **update.to_json(), "effect": moved and moved.to_json()}
        return 0, json.dumps({**document, "applied": is_applied}, ensure_ascii=False)
    return 0, _update_text(update, price_map.source, moved, is_applied=is_applied)


def _update_text(update: PriceUpdate, source: str, moved: PriceEffect | None, *, is_applied: bool) -> str:
    lines = [f"{update.path}: {len(update.believed)} prices change; prices from {source}"]
    for change in update.changes:
        found = f"{change.tier}: {change.model} at {change.provider}: {change.key}"
        found += f" {_price(change.old)} -> {_price(change.new)}"
        lines.append(f"  {found}" + (f"  NOT BELIEVED ({change.doubt}): edit it by hand" if change.doubt else ""))
    if update.missing:
        lines.append(f"not in the map, so unchanged: {', '.join(update.missing)}")
    if update.n_self_hosted:
        lines.append(f"{update.n_self_hosted} self-hosted offers are unchanged")
    if moved is not None:
        lines.append(str(moved))
    if is_applied:
        lines.append(f"{update.path} is written; services that watch it follow")
    elif update.believed:
        lines.append("nothing is written; --apply writes it")
    return "\n".join(lines)


def _price(value: Any) -> str:
    if isinstance(value, tuple):
        steps = [f"{step.usd_per_mtok_input:g}/{step.usd_per_mtok_output:g} > {step.input_tokens:,}" for step in value]
        return "; ".join(steps) or "none"
    return "none" if value is None else f"{value:g}"


def log_reader(name: str) -> Callable[..., Any]:
    """A function of the extra `train` that reads logs. Raises ImportError where the extra is not installed."""
    found = [entry for entry in entry_points(group=LOG_READERS) if entry.name == name]
    if not found:
        raise ImportError(f"--logs needs the extra train: {install_command('train')}")
    reader: Callable[..., Any] = found[0].load()
    return reader
