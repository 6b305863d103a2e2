"""The bundle on disk: a folder that is complete if and only if its manifest is there and every digest holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from tokenizers import Encoding, Tokenizer

from router.bundle.clusters import Cluster, parse_clusters
from router.bundle.engine import Engine
from router.bundle.manifest import (
    CLUSTERS_FILE,
    GOLDEN_FILE,
    GRAPH_FILE,
    REQUIRED_FILES,
    TIERS_FILE,
    TOKENIZER_FILE,
    Manifest,
    read_manifest,
)
from router.bundle.operators import refused_operators
from router.bundle.signature import TrustedKeys
from router.errors import BundleError, TierError
from router.files import read_bounded
from router.plans.planner import CALIBRATION_FILE, CHECKS_FILE, GOLDEN_PLANS_FILE, PLAN_FILE, Planner
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import MOST_BYTES as MOST_BYTES_OF_TIERS
from router.prompt import valid_unicode

MOST_FILES = 100
MOST_BYTES: Mapping[str, int] = {
    GRAPH_FILE: 2**31,  # Protocol buffers hold no more.
    TOKENIZER_FILE: 256 * 2**20,
    TIERS_FILE: MOST_BYTES_OF_TIERS,
    GOLDEN_FILE: 4 * 2**20,
    CLUSTERS_FILE: 16 * 2**20,
    PLAN_FILE: 256 * 2**20,
    CHECKS_FILE: 16 * 2**20,
    CALIBRATION_FILE: 64 * 2**20,
    GOLDEN_PLANS_FILE: 4 * 2**20,
}
MOST_BYTES_OF_OTHERS = 64 * 2**20
"""The largest files of a bundle. A larger one is refused by its size, before it is read."""

_TOKENIZERS: WeakValueDictionary[str, Tokenizer] = WeakValueDictionary()
"""The tokenizers in use, by the SHA-256 of their files. Bundles that have the same one share it, since the library
keeps some memory for each pair of a tokenizer and a thread as long as the thread lives: a reload would add to it.
"""


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory, verified and ready to run.

    golden: the content of golden.jsonl, which `router.golden` checks.
    planner: what makes plans; None where the bundle has learned none.
    """

    path: Path
    manifest: Manifest
    tokenizer: Tokenizer
    engine: Engine
    prices: PriceTable
    clusters: tuple[Cluster, ...]
    golden: bytes = field(repr=False)
    n_threads: int
    trusted_keys: TrustedKeys | None
    planner: Planner | None

    @classmethod
    def load(cls, path: str | Path, *, n_threads: int = 1, trusted_keys: TrustedKeys | None = None) -> Bundle:
        """Read and check a bundle.

        n_threads: threads of one call of the graph; more than one pays for large batches only.
        trusted_keys: one of them must have signed the bundle, which is asked before anything of it is parsed but the
            manifest; None asks for no signature.
        Raises SignatureError where none of them has, and BundleError where anything is missing, altered, of another
        format, too large or not loadable, or where the graph's answers have another form than the manifest says.
        `router.golden` checks what it answers.
        """
        folder = Path(path).resolve()  # All files of one bundle, even if a link moves meanwhile.
        manifest = read_manifest(folder)
        if trusted_keys is not None:
            trusted_keys.check(folder, manifest)
        contents = verified_contents(folder, manifest)
        for name in (GRAPH_FILE, PLAN_FILE):
            if name in contents and (refused := refused_operators(contents[name])):
                raise BundleError(f"{folder}: {name} {refused}; train or copy the bundle again")
        clusters = parse_clusters(contents[CLUSTERS_FILE], str(folder / CLUSTERS_FILE))
        try:
            tokenizer = _tokenizer(manifest.files[TOKENIZER_FILE], contents[TOKENIZER_FILE])
            prices = PriceTable.parse(contents[TIERS_FILE].decode(), str(folder / TIERS_FILE))
            engine = Engine(contents[GRAPH_FILE], n_threads)
        except TierError as error:
            raise BundleError(str(error)) from error
        except Exception as error:  # Both libraries raise bare subclasses of Exception.
            raise BundleError(f"{folder}: the digests hold, but a file cannot be loaded: {error}") from error
        if tuple(tier.name for tier in prices.tiers) != manifest.tiers:
            raise BundleError(f"{folder}: the tiers of {TIERS_FILE} are not those of the manifest, in its order")
        if wrong := engine.wrong_answers(len(manifest.tiers), len(clusters)):
            raise BundleError(f"{folder}: {GRAPH_FILE} {wrong}; train or copy the bundle again")
        return cls(
            path=folder,
            manifest=manifest,
            tokenizer=tokenizer,
            engine=engine,
            prices=prices,
            clusters=clusters,
            golden=contents[GOLDEN_FILE],
            n_threads=n_threads,
            trusted_keys=trusted_keys,
            planner=Planner.of(contents, len(manifest.tiers), str(folder), n_threads),
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


def _tokenizer(digest: str, content: bytes) -> Tokenizer:
    """The tokenizer of a file with this SHA-256; raises ValueError or a bare Exception where it is none."""
    tokenizer = _TOKENIZERS.get(digest)
    if tokenizer is None:
        tokenizer = _TOKENIZERS[digest] = Tokenizer.from_str(content.decode())
    return tokenizer


def verified_contents(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Every file of the bundle, read once and checked against its digest; raises BundleError."""
    if missing := [name for name in REQUIRED_FILES if name not in manifest.files]:
        raise BundleError(f"{folder}: the manifest does not list {', '.join(missing)}")
    if len(manifest.files) > MOST_FILES:
        raise BundleError(f"{folder}: the manifest lists {len(manifest.files):,} files; expected at most {MOST_FILES}")
    contents: dict[str, bytes] = {}
    for name, expected in manifest.files.items():
        try:
            path = (folder / name).resolve()
            if path.parent != folder:
                raise BundleError(f"{folder}: {name} leads out of the folder, to {path}; copy the file itself")
            contents[name] = read_bounded(path, MOST_BYTES.get(name, MOST_BYTES_OF_OTHERS))
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle.
            raise BundleError(f"{folder}: {name} cannot be read ({error})") from error
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise BundleError(f"{folder}: {name} has SHA-256 {found}, the manifest says {expected}; copy it again")
    return contents
