"""Learned encoders, kept so that a log which has grown a little need not be embedded anew."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from training.encoders.encoder import Encoder, StaticRecipe, learn_static

MIN_OVERLAP = 0.8
_SKETCH_SIZE = 1024


@dataclass(frozen=True)
class EncoderCache:
    """Static encoders of one cache folder.

    One is taken again where the prompts it was learned from and the present ones overlap by at least
    MIN_OVERLAP (Jaccard similarity, estimated from bottom-k sketches, Broder 1997); the result then
    depends on the cache as well as on the log, and the bundle's manifest names the encoder's digest.
    """

    folder: Path

    def static(
        self, prompts: Sequence[str], prompt_ids: np.ndarray, recipe: StaticRecipe, seed: int
    ) -> tuple[Encoder, bool]:
        """An encoder for these prompts, and whether it was in the cache."""
        key = hashlib.sha256(json.dumps([asdict(recipe), seed]).encode()).hexdigest()[:16]
        sketch = bottom_k(prompt_ids)
        for entry in sorted(self.folder.glob(f"{key}-*")):
            kept = self._read(entry)
            if kept is not None and overlap(kept[1], sketch) >= MIN_OVERLAP:
                return kept[0], True
        encoder = learn_static(prompts, recipe, seed)
        self._write(self.folder / f"{key}-{encoder.digest[:16]}", encoder, sketch)
        return encoder, False

    def _write(self, entry: Path, encoder: Encoder, sketch: np.ndarray) -> None:
        """One folder an encoder, complete as soon as it has its name; one that cannot be read is replaced."""
        if self._read(entry) is not None:
            return
        shutil.rmtree(entry, ignore_errors=True)
        unfinished = self.folder / f".{uuid4().hex}.tmp"
        write_encoder(unfinished, encoder, sketch=sketch.tolist())
        try:
            unfinished.rename(entry)
        except OSError:  # another process has just put it there
            shutil.rmtree(unfinished)

    def _read(self, entry: Path) -> tuple[Encoder, np.ndarray] | None:
        """None where the entry is not readable or not what its name says: it is then learned again."""
        try:
            encoder, facts = read_encoder(entry)
            sketch = np.array(facts["sketch"], dtype=np.str_)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DecodeError):
            return None
        return (encoder, sketch) if entry.name.endswith(f"-{encoder.digest[:16]}") else None


def write_encoder(folder: Path, encoder: Encoder, **facts: Any) -> None:
    """An encoder's files, in a new folder; facts: what else is to be kept with it, as JSON has it."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(encoder.tokenizer_json, encoding="utf-8")
    (folder / "encoder.onnx").write_bytes(encoder.graph.SerializeToString(deterministic=True))
    own = {"name": encoder.name, "max_chars": encoder.max_chars, "max_tokens": encoder.max_tokens}
    (folder / "facts.json").write_text(json.dumps({**own, **facts}))


def read_encoder(folder: Path) -> tuple[Encoder, dict[str, Any]]:
    """What `write_encoder` wrote, and the facts kept with it; raises what reading or parsing raises."""
    facts = json.loads((folder / "facts.json").read_text())
    own = {name: facts.pop(name) for name in ("name", "max_chars", "max_tokens")}
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    graph = onnx.load_model_from_string((folder / "encoder.onnx").read_bytes())
    return Encoder(tokenizer_json=tokenizer, graph=graph, **own), facts


def bottom_k(prompt_ids: np.ndarray) -> np.ndarray:
    """The smallest ids; as ids are digests, a random sample that two logs draw alike."""
    return np.unique(prompt_ids)[:_SKETCH_SIZE]


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Estimated Jaccard similarity of the sets behind two sketches."""
    union = np.union1d(first, second)[:_SKETCH_SIZE]
    both = np.intersect1d(first, second)
    return float(np.isin(union, both).mean()) if len(union) else 0.0
