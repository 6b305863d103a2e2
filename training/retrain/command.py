"""The command line of a run, for someone who accepts a change to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from training.config import RetrainConfig


def command_of(
    logs: str | Path | Sequence[str | Path],
    tiers: str | Path,
    store: str | Path,
    config: RetrainConfig,
    tracking_uri: str | None,
) -> str:
    """The `broker retrain` of these arguments, quoted for a shell.

    Settings that the command line does not have, and --accept-change, are left out.
    """
    sources = [logs] if isinstance(logs, str | Path) else logs
    words = ["broker", "retrain", "--logs", *map(str, sources), "--tiers", str(tiers), "--store", str(store)]
    usual, training = RetrainConfig(), config.training
    for option, value, default in (
        ("--encoder", training.encoder, usual.training.encoder),
        ("--default-quality", training.default_quality, usual.training.default_quality),
        ("--worth-usd", config.worth_usd, usual.worth_usd),
        ("--quality-margin", config.quality_margin, usual.quality_margin),
        ("--promotion-confidence", config.promotion_confidence, usual.promotion_confidence),
        ("--model-name", config.model_name, usual.model_name),
        ("--tracking-uri", tracking_uri or None, None),
    ):
        if value != default:
            words += [option, str(value)]
    words += [word for text in training.maps for word in ("--map", text)]
    words += ["--drop-unparsed"] * training.drop_unparsed + ["--keep-examples"] * training.keep_examples
    return shlex.join(words)
