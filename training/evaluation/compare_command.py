"""`broker compare`: two bundles on the same prompts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from router.command import DONE, Command, say
from training.evaluation.compare import BundleComparison
from training.evaluation.compare import compare as run_comparison


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="folder of a bundle")
    parser.add_argument("b", type=Path, metavar="B", help="folder of another bundle; differences are B - A")
    parser.add_argument("--logs", nargs="+", required=True, help="outcome logs: files, folders or globs")
    parser.add_argument("--quality", type=float, help="at this dial; default: each bundle's default quality")
    parser.add_argument("--worth-usd", type=float, help="at this dial: what a correct answer is worth, in USD")
    parser.add_argument("--prices", type=Path, help="compare at these prices, in the format of tiers.toml")
    parser.add_argument(
        "--map", action="append", default=[], dest="maps", metavar="COLUMN=SOURCE",
        help="make a column of the log from another, as for train; may be given again",
    )  # fmt: skip
    parser.add_argument("--differing", type=Path, help="write the prompts that differ, with their text, to this CSV")
    parser.add_argument("--json", action="store_true", help="print the comparison as one JSON document")


def _compare(options: argparse.Namespace) -> int:
    found = run_comparison(
        options.a,
        options.b,
        options.logs,
        quality=options.quality,
        worth_usd=options.worth_usd,
        prices=options.prices,
        maps=options.maps,
    )
    if options.differing:
        found.differing.to_csv(options.differing, index=False)
    say(json.dumps(found.to_json(), ensure_ascii=False) if options.json else comparison_text(found))
    return DONE


def comparison_text(found: BundleComparison) -> str:
    """The comparison for a terminal; it holds no prompt."""
    moves = found.differing.value_counts(["tier_a", "tier_b"])
    segments = [f"{name}: accuracy {how}" for name, how in found.worse_segments.items()]
    return "\n".join(
        [
            found.verdict,
            "",
            found.table.text(),
            *(["", "TIER OF A, TIER OF B, PROMPTS"] if len(moves) else []),
            *(f"{a} -> {b}  {count:,}" for (a, b), count in moves.items()),
            *(["", "WORSE SEGMENTS OF B", *segments] if segments else []),
        ]
    )


compare = Command("compare two bundles on the same prompts", _arguments, _compare)
