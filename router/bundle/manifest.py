"""The manifest of a bundle: what the bundle is, what it was made from and what it promises."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from router.errors import BundleError
from router.files import read_bounded

# Add 1 whenever a reader of the former format cannot read the new one, and say so in CHANGELOG.md.
FORMAT_VERSION = 3

GRAPH_FILE = "router.onnx"
TOKENIZER_FILE = "tokenizer.json"
TIERS_FILE = "tiers.toml"
GOLDEN_FILE = "golden.jsonl"
CLUSTERS_FILE = "clusters.json"
MANIFEST_FILE = "manifest.json"
REQUIRED_FILES = (GRAPH_FILE, TOKENIZER_FILE, TIERS_FILE, GOLDEN_FILE, CLUSTERS_FILE)

_MOST_BYTES = 8 * 2**20


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
    kept: lower confidence bound of the accuracy kept at this slack, relative to always asking the best tier.
    promised: False where the training log does not support a promise of this quality, or shows no saving from it. The
        best tier then answers (router.rule.or_best_tier); the slack counts only where worth_usd is given or the best
        tier may not answer. It is 0 or, where the log has partial feedback, the best estimate there is.
    n_needed: about how many prompts a promise takes at slack 0, of those that `promise` of the manifest rests on. With
        more there is room for slack. None where no number of them is enough, or where the slack saves nothing.
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
        """From the text of manifest.json.

        Raises BundleError where it is of another format, incomplete or altered, or says what no router could work with.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
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
            if stated != manifest.digest:
                raise BundleError(f"{source}: found digest {stated}, its content has {manifest.digest}; it was altered")
            wrong = next(_contradictions(manifest), None)
        except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
            raise BundleError(f"{source}: a field has another form than expected ({error})") from error
        if wrong is not None:
            raise BundleError(f"{source}: {wrong}; train or copy the bundle again")
        return manifest


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What the router could not work with, each as found and expected.

    May raise TypeError, AttributeError or ValueError where a field has another form.
    """
    yield from _wrong_tiers(manifest)
    yield from _wrong_numbers(manifest)
    yield from _wrong_dial(manifest.dial)
    for name, digest in manifest.files.items():
        if not isinstance(digest, str) or name in ("", ".", "..", MANIFEST_FILE) or set(name) & set("/\\:\0"):
            yield f"files names {name[:80]!r}; expected files of the folder itself, each with its SHA-256"


def _wrong_tiers(manifest: Manifest) -> Iterator[str]:
    tiers, means = manifest.tiers, (manifest.success, manifest.output_tokens)
    if not tiers or len(set(tiers)) != len(tiers) or not all(isinstance(name, str) and name for name in tiers):
        yield f"found the tiers {str(tiers)[:200]}; expected different names, at least one"
    if manifest.best_tier not in tiers:
        yield f"found best_tier {str(manifest.best_tier)[:80]!r}; expected one of the tiers: {', '.join(tiers)}"
    if {len(each) for each in means} != {len(tiers)}:
        found = " and ".join(str(len(each)) for each in means)
        yield f"found {found} means in success and output_tokens; expected one for each of {len(tiers)} tiers"
    if not all(is_number(mean) for mean in manifest.success):
        yield f"found success {str(manifest.success)[:200]}; expected finite numbers"
    if not all(is_number(mean, 0) for mean in manifest.output_tokens):
        yield f"found output_tokens {str(manifest.output_tokens)[:200]}; expected numbers of at least 0"


def _wrong_numbers(manifest: Manifest) -> Iterator[str]:
    encoder, n_prompts = manifest.encoder, manifest.promise.get("n_prompts", 0)
    if not (is_count(encoder.max_chars, 1) and is_count(encoder.max_tokens, 1)):
        yield f"found {str(encoder)[:400]}; expected max_chars and max_tokens to be whole numbers above 0"
    if not (is_number(encoder.tokens_per_char, 0) and is_number(encoder.billed_tokens_per_token, 0)):
        yield f"found {str(encoder)[:400]}; expected numbers of at least 0 for tokens"
    if not (is_number(manifest.default_quality, 0, 1) and manifest.default_quality > 0):
        yield f"found default_quality {str(manifest.default_quality)[:80]}; expected a share above 0"
    if not is_number(manifest.confidence, 0, 1):
        yield f"found confidence {str(manifest.confidence)[:80]}; expected a share"
    if not is_count(n_prompts):
        yield f"found n_prompts {str(n_prompts)[:80]!r} in promise; expected a whole number"


def _wrong_dial(dial: tuple[DialPoint, ...]) -> Iterator[str]:
    if not dial:
        yield "found a dial without rows; expected at least one"
    for point in dial:
        if not _is_sound(point):
            yield f"found the dial's row {str(point)[:400]}; expected finite numbers, shares for quality and slack"
    qualities, slacks = [point.quality for point in dial], [point.slack for point in dial]
    if qualities != sorted(set(qualities)) or slacks != sorted(slacks, reverse=True):
        yield (
            f"found the dial's qualities {str(qualities)[:200]} and slacks {str(slacks)[:200]}; "
            "expected qualities that rise and slacks that do not"
        )


def _is_sound(point: DialPoint) -> bool:
    return (
        is_number(point.quality, 0, 1)
        and point.quality > 0
        and is_number(point.slack, 0, 1)
        and is_number(point.kept)
        and isinstance(point.promised, bool)
        and (point.n_needed is None or is_count(point.n_needed))
        and all(is_number(bound) for bound in point.segments.values())
    )


def is_number(value: object, least: float = -sys.float_info.max, most: float = sys.float_info.max) -> bool:
    """Whether it is a finite number in this range; an integer of 400 digits is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def is_count(value: object, least: int = 0) -> bool:
    """Whether it is a whole number of at least this."""
    return isinstance(value, int) and is_number(value, least)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle; raises BundleError, also where there is none."""
    try:
        text = read_bounded(folder / MANIFEST_FILE, _MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{folder}: no readable {MANIFEST_FILE} ({error}), so no complete bundle; "
            "make one with: broker train --logs LOG --tiers tiers.toml --out " + str(folder)
        ) from error
    return Manifest.from_json(text, str(folder / MANIFEST_FILE))
