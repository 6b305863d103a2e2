"""Laws of the distilled word-piece table; no torch."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from training.encoders.distill import principal_components, quantise
from training.encoders.piece_vectors import PIECE_VECTORS, PieceVectors
from training.errors import ConfigError


@pytest.fixture(scope="module")
def shipped() -> PieceVectors:
    return PieceVectors.load()


@pytest.fixture
def toy() -> PieceVectors:
    return PieceVectors(
        pieces=("rout", "##er", "##ing", "cheap", "est", "é"),
        vectors=np.array([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]], np.int8),
        scale=np.array([0.5, 2.0], np.float32),
        lowercase=True,
        source="toy, CC0",
    )


def test_vector_of_a_text_is_the_sum_of_its_pieces(toy: PieceVectors) -> None:
    assert_array_equal(toy.compose(["router"]), [[0.5 * (1 + 3), 2.0 * (2 + 4)]])
    assert_array_equal(toy.compose([" Routing  CHEAP "]), [[0.5 * (1 + 5 + 7), 2.0 * (2 + 6 + 8)]])


def test_words_that_cannot_be_spelled_contribute_nothing(toy: PieceVectors) -> None:
    assert_array_equal(toy.compose(["cheap xyz", "cheapest", "[UNK]", ""]), [[3.5, 16], [0, 0], [0, 0], [0, 0]])


def test_composition_is_additive(shipped: PieceVectors) -> None:
    texts = ["Prove that", "the square root", "of 2 is irrational.", "def f(x): return x**2"]
    assert_allclose(shipped.compose([" ".join(texts)])[0], shipped.compose(texts).sum(axis=0), atol=1e-4)


def test_a_batch_equals_its_singles(shipped: PieceVectors) -> None:
    texts = ["integral", "", "Routing", "日本 naïve 🙂", "cheap " * 1000]
    assert_array_equal(shipped.compose(texts), np.concatenate([shipped.compose([text]) for text in texts]))


def test_unknown_scripts_are_zero_and_known_words_are_not(shipped: PieceVectors) -> None:
    vectors = shipped.compose(["ሰላም ልዑል", "🙂🚀", " \n\t", "hello", "国"])
    assert vectors.any(axis=1).tolist() == [False, False, False, True, True]


def test_neighbours_mean_something(shipped: PieceVectors) -> None:
    vectors = shipped.compose(["cat", "kitten", "integral", "derivative"])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T
    assert similarity[0, 1] > similarity[0, 2] + 0.2
    assert similarity[2, 3] > similarity[1, 3] + 0.1


def test_nothing_to_compose_keeps_the_shape(shipped: PieceVectors) -> None:
    assert shipped.compose([]).shape == (0, 256)
    assert shipped.compose([]).dtype == shipped.compose(["x"]).dtype == np.float32


def test_shipped_table_is_small_plain_and_attributed(shipped: PieceVectors) -> None:
    assert PIECE_VECTORS.stat().st_size < 8_000_000
    assert "all-MiniLM-L6-v2" in shipped.source
    assert "Apache-2.0" in shipped.source
    assert shipped.vectors.shape == (29_523, 256)
    assert not any(piece.startswith("[unused") or piece in {"[CLS]", "[SEP]", "[PAD]"} for piece in shipped.pieces)
    with np.load(PIECE_VECTORS, allow_pickle=False) as file:
        assert not any(file[name].dtype.hasobject for name in file)


def test_saved_and_loaded_equals_the_original(toy: PieceVectors, tmp_path: Path) -> None:
    toy.save(tmp_path / "toy.npz")
    loaded = PieceVectors.load(tmp_path / "toy.npz")
    assert (loaded.pieces, loaded.lowercase, loaded.source) == (toy.pieces, toy.lowercase, toy.source)
    assert_array_equal(loaded.compose(["routing é"]), toy.compose(["routing é"]))


def test_case_and_accents_count_where_the_model_keeps_them(toy: PieceVectors) -> None:
    cased = PieceVectors(toy.pieces, toy.vectors, toy.scale, lowercase=False, source=toy.source)
    assert_array_equal(cased.compose(["Cheap", "cheap", "é"]), [[0, 0], [3.5, 16], [5.5, 24]])


def test_a_table_that_does_not_fit_itself_is_refused(toy: PieceVectors, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(6, 2\); pieces and scale ask for \(5, 2\)"):
        PieceVectors(toy.pieces[1:], toy.vectors, toy.scale, lowercase=True, source="")
    wrong: Any = toy.vectors.astype(np.float64)
    with pytest.raises(ValueError, match="float64 and float32; expected int8 and float32"):
        PieceVectors(toy.pieces, wrong, toy.scale, lowercase=True, source="")
    with pytest.raises(ValueError, match="pieces repeat"):
        PieceVectors(("a",) * 6, toy.vectors, toy.scale, lowercase=True, source="")
    np.savez(tmp_path / "other.npz", pieces=np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match=r"other\.npz lacks \['vectors', 'scale', 'lowercase', 'source'\]"):
        PieceVectors.load(tmp_path / "other.npz")


def test_rounding_to_int8_moves_no_number_by_more_than_half_a_step() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * np.float32([1, 100, 1e-3, 0])
    vectors, scale = quantise(rows)
    assert vectors.dtype == np.int8 and np.abs(vectors.astype(int)).max() == 127
    assert (np.abs(vectors * scale - rows) <= scale * 0.501).all()


def test_principal_components_keep_distances_and_refuse_more_dimensions_than_there_are() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    components = principal_components(rows, 4)
    np.testing.assert_allclose(
        np.linalg.norm(components[1:] - components[0], axis=1), np.linalg.norm(rows[1:] - rows[0], axis=1), rtol=1e-4
    )
    assert (np.diff(components.var(axis=0)) <= 0).all()
    with pytest.raises(ConfigError, match="n_dims is 5; expected 1 to 4"):
        principal_components(rows, 5)


def test_reading_the_table_needs_no_torch() -> None:
    code = "import training.encoders.piece_vectors, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "sentence_transformers"} & set(loaded)
