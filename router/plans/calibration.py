"""The prompts of the training log that a promise on plans is proven on, as numbers: no text."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from router.errors import BundleError

_ARRAYS = ("success", "output_tokens", "input_tokens", "context_tokens", "correct", "answer_number")
_CHECK = "check_"

MOST_BYTES = 64 * 2**20
"""Of all arrays together."""


@dataclass(frozen=True)
class Calibration:
    """Prompts that every tier answered, with what training knows of them.

    success: out of fold; output_tokens, input_tokens: expected, as billed; correct: 0..1; all float32
    (n_prompts, n_tiers). context_tokens: float32 (n_prompts,). answer_number: which of the prompt's distinct answers
    each tier gave, -1 for none, int16 (n_prompts, n_tiers). scores: of each check by name, NaN where it was not made,
    float32 (n_prompts, n_tiers). The order of the prompts has nothing to do with their outcomes.
    """

    success: np.ndarray = field(repr=False)
    output_tokens: np.ndarray = field(repr=False)
    input_tokens: np.ndarray = field(repr=False)
    context_tokens: np.ndarray = field(repr=False)
    correct: np.ndarray = field(repr=False)
    answer_number: np.ndarray = field(repr=False)
    scores: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self.success)

    def looked_at(self, agreement: bool, checks: Sequence[str]) -> Calibration:
        """The prompts on which all of it was logged: an answer where answers are compared, every verdict of checks."""
        keep = np.ones(self.n_prompts, bool)
        if agreement:
            keep &= (self.answer_number >= 0).any(axis=1)
        for name in checks:
            keep &= np.isfinite(self.scores[name]).all(axis=1)
        if keep.all():
            return self
        kept = {name: getattr(self, name)[keep] for name in _ARRAYS}
        return Calibration(**kept, scores={name: scores[keep] for name, scores in self.scores.items()})

    def to_bytes(self) -> bytes:
        """The content of calibration.npz (numpy's format, compressed, no pickle)."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {_CHECK + name: scores for name, scores in self.scores.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def parse(cls, content: bytes, n_tiers: int, source: str) -> Calibration:
        """From calibration.npz; raises BundleError where it has another form."""
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if (size := sum(entry.file_size for entry in archive.infolist())) > MOST_BYTES:
                    raise ValueError(f"it unpacks to {size:,} bytes; expected at most {MOST_BYTES:,}")
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            scores = {name.removeprefix(_CHECK): found.pop(name) for name in list(found) if name.startswith(_CHECK)}
            calibration = cls(**found, scores=scores)
            n = calibration.n_prompts
            shapes = {name: found[name].shape for name in _ARRAYS} | {name: each.shape for name, each in scores.items()}
            for name, shape in shapes.items():
                if shape != ((n,) if name == "context_tokens" else (n, n_tiers)):
                    raise ValueError(f"{name} has the shape {shape}")
            numbers = [found[name] for name in _ARRAYS]
            if not all(np.isfinite(each).all() for each in numbers):
                raise ValueError("not all numbers are finite")
            shares = [found["success"], found["correct"], *(each[np.isfinite(each)] for each in scores.values())]
            if not all(((each >= 0) & (each <= 1)).all() for each in shares):
                raise ValueError("success, outcomes and scores are not all from 0 to 1")
        except (
            OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
        ) as error:  # fmt: skip
            raise BundleError(f"{source}: not as expected ({error}); train or copy the bundle again") from error
        return calibration
