"""The manifest of a bundle: what the bundle is, what it was made from and what it promises."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from router.errors import BundleError

# Add 1 whenever a reader of the former format cannot read the new one, and say so in CHANGELOG.md.
FORMAT_VERSION = 3

GRAPH_FILE = "router.onnx"
TOKENIZER_FILE = "tokenizer.json"
TIERS_FILE = "tiers.toml"
GOLDEN_FILE = "golden.jsonl"
CLUSTERS_FILE = "clusters.json"
MANIFEST_FILE = "manifest.json"
REQUIRED_FILES = (GRAPH_FILE, TOKENIZER_FILE, TIERS_FILE, GOLDEN_FILE, CLUSTERS_FILE)


@dataclass(frozen=True)
class EncoderInfo:
    """How a text becomes tokens, and how many tokens a provider will bill for it.

    max_chars: at most this many code points of the text are tokenised.
    max_tokens: at most this many tokens reach the graph.
    tokens_per_char: estimates the number of tokens of a text that was cut.
    billed_tokens_per_token: input tokens that a provider bills per token of this tokenizer, estimated from the log.
    """

    name: str
    digest: str
    max_chars: int
    max_tokens: int
    tokens_per_char: float
    billed_tokens_per_token: float

    def context_tokens(self, n_chars: int, n_tokens: int) -> float:
        """Estimated tokens that a provider bills for a text of n_chars, of which n_tokens reached the graph."""
        if n_tokens >= self.max_tokens or n_chars > self.max_chars:
            return max(float(n_tokens), n_chars * self.tokens_per_char) * self.billed_tokens_per_token
        return n_tokens * self.billed_tokens_per_token


@dataclass(frozen=True)
class DialPoint:
    """One row of the dial table.

    slack: how far an admissible tier's success may be below the highest.
    kept: lower confidence bound of the accuracy kept, relative to always asking the best tier.
    promised: False where the training log does not support a promise of this quality. The slack is then 0 or, where
        the log has partial feedback, the best estimate there is.
    n_needed: about how many prompts a promise takes at slack 0, of those that `promise` of the manifest rests on. With
        more there is room for slack. None where no number of them is enough.
    segments: `kept` within each segment of the log that has enough prompts; the bounds hold for all segments at once.
    """

    quality: float
    slack: float
    kept: float
    promised: bool
    n_needed: int | None = None
    segments: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """What a bundle is, what it was made from and what it promises.

    tiers: names, in the order of every array of the graph.
    best_tier: the single tier with the highest accuracy in training.
    success, output_tokens: means per tier in training, (n_tiers,).
    dial: in rising order of quality; the slack never rises.
    confidence: probability with which each promised row of the dial holds.
    promise: the promise in words, with what it assumes and the evidence for it. It rests on so many (n_prompts) of
        which prompts (prompts).
    training: digest and time span of the log, numbers of prompts, target, seed.
    files: SHA-256 of every other file of the bundle.
    """

    format_version: int
    tiers: tuple[str, ...]
    best_tier: str
    success: tuple[float, ...]
    output_tokens: tuple[float, ...]
    encoder: EncoderInfo
    default_quality: float
    confidence: float
    dial: tuple[DialPoint, ...]
    promise: Mapping[str, Any]
    training: Mapping[str, Any]
    versions: Mapping[str, str]
    mlflow_run_id: str | None
    files: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical content: JSON, keys sorted, no white space, without the digest itself."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def bundle_id(self) -> str:
        """The first 16 hexadecimal digits of the digest."""
        return self.digest[:16]

    def dial_point(self, quality: float) -> DialPoint:
        """The row of the lowest quality in the table that is at least the one given; the last row where none is."""
        return next((point for point in self.dial if point.quality >= quality), self.dial[-1])

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps({**asdict(self), "digest": self.digest}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = MANIFEST_FILE) -> Manifest:
        """From the text of manifest.json; raises BundleError where it is of another format, incomplete or altered."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise BundleError(f"{source}: not valid JSON ({error}); train or copy the bundle again") from error
        version = document.get("format_version") if isinstance(document, dict) else None
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{source}: found format_version {version!r}, expected {FORMAT_VERSION}; "
                "train the bundle again with this version of token-broker"
            )
        stated = document.pop("digest", None)
        expected = {entry.name for entry in fields(cls)}
        if set(document) != expected:
            raise BundleError(
                f"{source}: missing {sorted(expected - set(document))}, unknown {sorted(set(document) - expected)}"
            )
        try:
            manifest = cls(
                **{
                    **document,
                    "tiers": tuple(document["tiers"]),
                    "success": tuple(document["success"]),
                    "output_tokens": tuple(document["output_tokens"]),
                    "encoder": EncoderInfo(**document["encoder"]),
                    "dial": tuple(DialPoint(**point) for point in document["dial"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise BundleError(f"{source}: a field has another form than expected ({error})") from error
        if stated != manifest.digest:
            raise BundleError(f"{source}: found digest {stated}, its content has {manifest.digest}; it was altered")
        return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle; raises BundleError, also where there is none."""
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{folder}: no readable {MANIFEST_FILE} ({error}), so no complete bundle; "
            "make one with: broker train --logs LOG --tiers tiers.toml --out " + str(folder)
        ) from error
    return Manifest.from_json(text, str(folder / MANIFEST_FILE))
