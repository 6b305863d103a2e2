"""The command `broker import`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from router.command import DONE, Command, say
from training.cli import map_argument
from training.importing.importing import KINDS, import_log


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=f"what wrote the files: {', '.join(KINDS)}")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".jsonl, .json, .csv or .parquet")
    parser.add_argument("--out", required=True, type=Path, help="the log to write, for example log.parquet")
    map_argument(parser)
    parser.add_argument("--json", action="store_true", help="print what was taken and left out as one JSON document")


def _run(options: argparse.Namespace) -> int:
    imported = import_log(options.kind, options.files, options.out, options.maps)
    say(json.dumps(imported.to_json(), ensure_ascii=False) if options.json else str(imported))
    return DONE


import_ = Command(
    "make an outcome log of the files that gateways, tracing tools and benchmarks write", _arguments, _run
)
