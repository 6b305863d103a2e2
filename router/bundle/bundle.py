"""The bundle on disk: a folder that is complete if and only if its manifest is there and every digest holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from router.bundle.clusters import Cluster, parse_clusters
from router.bundle.engine import Engine
from router.bundle.manifest import (
    CLUSTERS_FILE,
    GRAPH_FILE,
    REQUIRED_FILES,
    TIERS_FILE,
    TOKENIZER_FILE,
    Manifest,
    read_manifest,
)
from router.errors import BundleError, TierError
from router.portfolio.prices import PriceTable
from router.prompt import valid_unicode


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory, verified and ready to run."""

    path: Path
    manifest: Manifest
    tokenizer: Tokenizer
    engine: Engine
    prices: PriceTable
    clusters: tuple[Cluster, ...]
    n_threads: int

    @classmethod
    def load(cls, path: str | Path, *, n_threads: int = 1) -> Bundle:
        """Read and check a bundle.

        n_threads: threads of one call of the graph; more than one pays for large batches only.
        Raises BundleError where anything is missing, altered, of another format or not loadable.
        """
        folder = Path(path).resolve()  # All files of one bundle, even if a link moves meanwhile.
        manifest = read_manifest(folder)
        contents = verified_contents(folder, manifest)
        clusters = parse_clusters(contents[CLUSTERS_FILE], str(folder / CLUSTERS_FILE))
        try:
            tokenizer = Tokenizer.from_str(contents[TOKENIZER_FILE].decode())
            prices = PriceTable.parse(contents[TIERS_FILE].decode(), str(folder / TIERS_FILE))
            engine = Engine(contents[GRAPH_FILE], n_threads)
        except TierError as error:
            raise BundleError(str(error)) from error
        except Exception as error:  # Both libraries raise bare subclasses of Exception.
            raise BundleError(f"{folder}: the digests hold, but a file cannot be loaded: {error}") from error
        if tuple(tier.name for tier in prices.tiers) != manifest.tiers:
            raise BundleError(f"{folder}: the tiers of {TIERS_FILE} are not those of the manifest, in its order")
        return cls(
            path=folder,
            manifest=manifest,
            tokenizer=tokenizer,
            engine=engine,
            prices=prices,
            clusters=clusters,
            n_threads=n_threads,
        )

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text that the graph reads; an empty text may have none."""
        max_chars = self.manifest.encoder.max_chars
        return [encoding.ids for encoding in self._encodings([text[:max_chars] for text in texts])]

    def _encodings(self, texts: list[str]) -> list[Encoding]:
        try:  # The batch call, even for one text: it computes no offsets, which is faster.
            return self.tokenizer.encode_batch_fast(texts)
        except (UnicodeEncodeError, TypeError):  # No tokenizer takes lone surrogates.
            return self.tokenizer.encode_batch_fast([valid_unicode(text) for text in texts])


def verified_contents(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Every file of the bundle, read once and checked against its digest; raises BundleError."""
    if missing := [name for name in REQUIRED_FILES if name not in manifest.files]:
        raise BundleError(f"{folder}: the manifest does not list {', '.join(missing)}")
    contents: dict[str, bytes] = {}
    for name, expected in manifest.files.items():
        try:
            contents[name] = (folder / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{folder}: {name} cannot be read ({error})") from error
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise BundleError(f"{folder}: {name} has SHA-256 {found}, the manifest says {expected}; copy it again")
    return contents
