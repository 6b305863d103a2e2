"""What stays of the training prompts beside a bundle: embeddings and outcomes, no text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from router.bundle.bundle import Bundle
from router.bundle.manifest import read_manifest
from router.files import replacing
from training.errors import LogError
from training.log.machine import of_machine
from training.log.split import Split

_BUNDLE_ID = b"bundle_id"
_OTHERS = b"others"
_CELLS = ("out_of_fold", "correct", "cost_usd")

MAX_EMBEDDED_PROMPTS = 50_000
"""Embeddings are most of the file, and the baselines that are fitted on them need no more."""


@dataclass(frozen=True)
class TrainingData:
    """The prompts a bundle was trained on, without their text: baselines are fitted on them.

    The bundle is never judged on them, but models like it that did not see them are: out_of_fold, float32
    (n_prompts, n_tiers), is their calibrated success.

    prompt_ids, groups: text (n_prompts,). embedding: float32 (n_embedded, n_dims), of the rows `embedded`.
    correct, cost_usd: (n_prompts, n_tiers); correct is NaN where not observed.
    others: where more prompts were trained on than stand here, the split that tells which may have been.
    """

    prompt_ids: np.ndarray
    groups: np.ndarray
    embedding: np.ndarray
    embedded: np.ndarray
    out_of_fold: np.ndarray
    correct: np.ndarray
    cost_usd: np.ndarray
    others: Split | None = None

    def saw(self, groups: np.ndarray) -> np.ndarray:
        """True for prompts of groups that were trained on, or may have been; groups: text (n,)."""
        seen = np.isin(groups, self.groups)
        return seen if self.others is None else np.asarray(seen | ~self.others.in_test(groups))

    @staticmethod
    def rows_to_embed(n_prompts: int) -> np.ndarray:
        """Of which training prompts the embedding is kept, spread evenly over them."""
        n_kept = min(n_prompts, MAX_EMBEDDED_PROMPTS)
        return np.arange(n_kept) * n_prompts // max(1, n_kept)

    @property
    def mean_cost_usd(self) -> np.ndarray:
        """Mean cost of an attempt per tier, (n_tiers,)."""
        return np.asarray(self.cost_usd.mean(axis=0))

    def save(self, path: Path, bundle_id: str) -> None:
        """One Parquet file, which says whose training data they are."""
        columns = {"prompt_id": pa.array(self.prompt_ids.tolist()), "group": pa.array(self.groups.tolist())}
        for name in _CELLS:
            values = np.ascontiguousarray(getattr(self, name), dtype=np.float32)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        width = np.zeros(len(self.groups), dtype=np.int32)
        width[self.embedded] = self.embedding.shape[1]  # of the others an empty list
        ends = np.concatenate([[0], np.cumsum(width)]).astype(np.int32)
        vectors = np.ascontiguousarray(self.embedding, dtype=np.float32)
        columns["embedding"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(vectors.ravel()))
        facts = {_BUNDLE_ID: bundle_id}
        if self.others is not None:
            facts[_OTHERS] = json.dumps(asdict(self.others))
        table = pa.table(columns).replace_schema_metadata(facts)
        with replacing(path) as unfinished:
            pq.write_table(table, unfinished, compression="zstd")

    def for_sklearn(self) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """What SuccessEstimator.fit takes: X, y, and a dict of its keywords `cost_usd` and `groups`.

        X: float32 (n_embedded, n_dims). y: (n_embedded, n_tiers), NaN where not observed.
        """
        rows = self.embedded
        return self.embedding, self.correct[rows], {"cost_usd": self.cost_usd[rows], "groups": self.groups[rows]}

    @classmethod
    def load(cls, bundle: str | Path | Bundle) -> TrainingData:
        """What training kept beside a bundle. bundle: its folder, or the bundle itself.

        Raises BundleError where there is no bundle, and what `read` raises.
        """
        if isinstance(bundle, Bundle):
            return cls.read(cls.path_of(bundle.path), bundle.manifest.bundle_id)
        folder = Path(bundle).resolve()
        return cls.read(cls.path_of(folder), read_manifest(folder).bundle_id)

    @classmethod
    def read(cls, path: Path, bundle_id: str) -> TrainingData:
        """From a file that must be of this bundle.

        Raises LogError where the file is missing, of another form, or another bundle's; OSError otherwise.
        """
        try:
            table = pq.read_table(path)
            if (found := (table.schema.metadata or {}).get(_BUNDLE_ID, b"").decode()) != bundle_id:
                raise KeyError(f"it is of bundle {found or 'unknown'}, not of {bundle_id}")
            arrays = {
                name: table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
                for name in _CELLS
            }
            vectors = table["embedding"].combine_chunks()
            embedded = np.flatnonzero(pc.list_value_length(vectors).to_numpy(zero_copy_only=False))
            embedding = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(embedded), -1)
            prompt_ids, groups = (np.array(table[name].to_pylist(), dtype=np.str_) for name in ("prompt_id", "group"))
            others = table.schema.metadata.get(_OTHERS)
            split = None if others is None else Split(**json.loads(others))
            return cls(prompt_ids, groups, embedding, embedded, others=split, **arrays)
        except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
            if of_machine(error) and not isinstance(error, FileNotFoundError):
                raise
            raise LogError(
                f"{path}: cannot read the training data that stand beside a bundle ({error}); "
                "evaluate needs it to leave trained-on prompts out; train again, or copy it with the bundle"
            ) from error

    @staticmethod
    def path_of(bundle: str | Path) -> Path:
        """Where the training data of a bundle stand."""
        folder = Path(bundle)
        return folder.with_name(folder.name + "-training.parquet")
