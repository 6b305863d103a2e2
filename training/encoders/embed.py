"""Embeddings of prompts, made by the encoder's graph and kept on disk for each encoder and prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from router.bundle.engine import batches, padded
from router.files import replacing
from training.encoders.encoder import Encoder
from training.graph.session import cpu_session

_SHARD_ROWS = 50_000


@dataclass(frozen=True)
class Embeddings:
    """What an encoder makes of prompts.

    vectors: float32 (n_prompts, n_dims). n_tokens: int (n_prompts,). n_computed: how many were not in the cache.
    """

    vectors: np.ndarray
    n_tokens: np.ndarray
    n_computed: int


def embed(
    encoder: Encoder,
    prompts: Sequence[str],
    prompt_ids: np.ndarray,
    cache: Path | None = None,
    *,
    on_share: Callable[[float], None] = lambda share: None,
) -> Embeddings:
    """Embed prompts with the encoder's own ONNX graph; only prompts that are not yet in the cache are computed.

    prompt_ids: digest of each prompt's text, str (n_prompts,), all different.
    cache: a folder, to which new embeddings are appended; None keeps nothing.
    on_share: is called with the share of the missing prompts that is embedded, again and again.
    """
    store = None if cache is None else _Store(cache / "embeddings" / encoder.digest[:16])
    found = _Rows(len(prompt_ids))
    if store is not None:
        store.read_into(found, prompt_ids)
    missing = np.flatnonzero(~found.is_known)
    for start in range(0, len(missing), _SHARD_ROWS):
        rows = missing[start : start + _SHARD_ROWS]

        def embedded(n_prompts: int, before: int = start) -> None:
            on_share((before + n_prompts) / len(missing))

        vectors, n_tokens = _run(encoder, [prompts[row] for row in rows], embedded)
        if store is not None:
            store.append(prompt_ids[rows], vectors, n_tokens)
        found.put(rows, vectors, n_tokens)
    return Embeddings(vectors=found.vectors, n_tokens=found.n_tokens, n_computed=len(missing))


class _Rows:
    """Embeddings of all prompts in one array, filled step by step; the first ones put in set its width."""

    def __init__(self, n_prompts: int) -> None:
        self.vectors = np.empty((n_prompts, 0), dtype=np.float32)
        self.n_tokens = np.zeros(n_prompts, dtype=np.int64)
        self.is_known = np.zeros(n_prompts, dtype=bool)

    def put(self, rows: np.ndarray, vectors: np.ndarray, n_tokens: np.ndarray) -> None:
        """Fill in the embeddings of some rows."""
        if not self.vectors.shape[1]:
            self.vectors = np.empty((len(self.is_known), vectors.shape[1]), dtype=np.float32)
        self.vectors[rows], self.n_tokens[rows], self.is_known[rows] = vectors, n_tokens, True


def _run(encoder: Encoder, texts: Sequence[str], embedded: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
    """Compute embeddings and token counts; prompts of similar length go through the graph together."""
    session = cpu_session(encoder.graph)
    ids = encoder.token_ids(texts)
    n_tokens = np.array([len(row) for row in ids], dtype=np.int64)
    vectors: np.ndarray | None = None
    n_done = 0
    for rows in batches(ids):
        feeds = padded([ids[row] for row in rows])
        (batch,) = session.run(["embedding"], feeds)
        if vectors is None:
            vectors = np.empty((len(texts), batch.shape[1]), dtype=np.float32)
        vectors[rows] = batch
        n_done += len(rows)
        embedded(n_done)
    assert vectors is not None
    return vectors, n_tokens


@dataclass(frozen=True)
class _Store:
    """The embeddings of one encoder on disk: Parquet files that are only added to; prompt_id, vector, n_tokens."""

    folder: Path

    def read_into(self, found: _Rows, prompt_ids: np.ndarray) -> None:
        """Fill in what is stored of these prompts; a file that cannot be read is ignored."""
        order = np.argsort(prompt_ids)
        for path in sorted(self.folder.glob("[!.]*.parquet")):
            try:
                shard = pq.read_table(path, page_checksum_verification=True)
                vectors = shard["vector"].combine_chunks().flatten().to_numpy().reshape(shard.num_rows, -1)
                ids = np.array(shard["prompt_id"].to_pylist(), dtype=np.str_)
                n_tokens = shard["n_tokens"].to_numpy()
            except (pa.ArrowException, OSError, KeyError, ValueError):
                continue
            at = np.searchsorted(prompt_ids, ids, sorter=order).clip(max=len(order) - 1)
            wanted = prompt_ids[order[at]] == ids
            found.put(order[at[wanted]], vectors[wanted], n_tokens[wanted])

    def append(self, prompt_ids: np.ndarray, vectors: np.ndarray, n_tokens: np.ndarray) -> None:
        """Write one more file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.table(
            {
                "prompt_id": pa.array(prompt_ids.tolist()),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
                "n_tokens": pa.array(n_tokens),
            }
        )
        with replacing(self.folder / f"{uuid4().hex}.parquet") as unfinished:
            pq.write_table(table, unfinished, compression="zstd", write_page_checksum=True)
