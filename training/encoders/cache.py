"""Learned encoders on disk: a log that has grown a little keeps its encoder, and so its embeddings."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from router.files import replacing
from training.encoders.encoder import Encoder
from training.encoders.static import StaticRecipe, learn_static

MIN_OVERLAP = 0.8
"""Least overlap of prompts, as a Jaccard similarity, at which an encoder is used again."""

_SKETCH_SIZE = 1024


@dataclass(frozen=True)
class EncoderCache:
    """The static encoders in a folder.

    An encoder is used again where the prompts it was learned from and the present prompts overlap by at least
    MIN_OVERLAP (Jaccard similarity, estimated from bottom-k sketches, Broder 1997). The bundle then depends on the
    cache as well as on the log; its manifest names the encoder's digest.
    """

    folder: Path

    def static(
        self, prompts: Sequence[str], prompt_ids: np.ndarray, recipe: StaticRecipe, seed: int
    ) -> tuple[Encoder, bool]:
        """An encoder for these prompts, and whether it was in the cache.

        prompt_ids: digest of each prompt's text, str (n_prompts,). Raises OSError where a new one cannot be written.
        """
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
        """Keep an encoder in a folder of its own; an entry that cannot be read is replaced."""
        if self._read(entry) is not None:
            return
        shutil.rmtree(entry, ignore_errors=True)
        try:
            with replacing(entry) as unfinished:
                write_encoder(unfinished, encoder, sketch=sketch.tolist())
        except OSError:
            if self._read(entry) is None:  # else another process has just written the same entry
                raise

    def _read(self, entry: Path) -> tuple[Encoder, np.ndarray] | None:
        """An encoder and the sketch of its prompts; None where the entry is damaged, or is not what its name says."""
        try:
            encoder, facts = read_encoder(entry)
            sketch = np.array(facts["sketch"], dtype=np.str_)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, DecodeError):
            return None
        return (encoder, sketch) if entry.name.endswith(f"-{encoder.digest[:16]}") else None


def write_encoder(folder: Path, encoder: Encoder, **facts: Any) -> None:
    """Write an encoder's files into a new folder.

    facts: what else to keep with it, as JSON can hold it. Raises OSError where the folder exists or cannot be written.
    """
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(encoder.tokenizer_json, encoding="utf-8")
    (folder / "encoder.onnx").write_bytes(encoder.graph.SerializeToString(deterministic=True))
    own = {"name": encoder.name, "max_chars": encoder.max_chars, "max_tokens": encoder.max_tokens}
    (folder / "facts.json").write_text(json.dumps({**own, **facts}))


def read_encoder(folder: Path) -> tuple[Encoder, dict[str, Any]]:
    """Read what `write_encoder` wrote, and the facts kept with it.

    Raises OSError where a file cannot be read; ValueError, KeyError, TypeError, AttributeError or DecodeError where its
    content is damaged.
    """
    facts = json.loads((folder / "facts.json").read_text())
    own = {name: facts.pop(name) for name in ("name", "max_chars", "max_tokens")}
    tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
    graph = onnx.load_model_from_string((folder / "encoder.onnx").read_bytes())
    return Encoder(tokenizer_json=tokenizer, graph=graph, **own), facts


def bottom_k(prompt_ids: np.ndarray) -> np.ndarray:
    """Sketch of a set of prompts: its smallest ids. Ids are digests, so this is a random sample of the prompts."""
    return np.unique(prompt_ids)[:_SKETCH_SIZE]


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard similarity of two sets of prompts, estimated from their sketches; 0 where both are empty."""
    union = np.union1d(first, second)[:_SKETCH_SIZE]
    both = np.intersect1d(first, second)
    return float(np.isin(union, both).mean()) if len(union) else 0.0
