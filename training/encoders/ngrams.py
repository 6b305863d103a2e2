"""Character n-grams inside tokens, for scripts that are written without spaces between words.

A tokenizer learned from Chinese prompts has long tokens, such as whole phrases, each of them rare. Tokens that share
characters get similar vectors from what is inside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from training.encoders.encoder import is_cjk

LONGEST = 3


def cjk_ngrams(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    """How often each text has each n-gram of 1 to LONGEST Chinese, Japanese or Korean characters in a row.

    float32 (n_texts, n_ngrams); a text without such characters is an empty row.
    """
    rows = [_ngrams(text) for text in texts]
    place = {ngram: at for at, ngram in enumerate(sorted({ngram for row in rows for ngram in row}))}
    indices = np.array([place[ngram] for row in rows for ngram in row], dtype=np.int32)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    shape = (len(texts), len(place))
    counts = scipy.sparse.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=shape)
    counts.sum_duplicates()
    return counts


def _ngrams(text: str) -> list[str]:
    runs = "".join(char if is_cjk(char) else " " for char in text).split()
    return [run[at : at + n] for run in runs for n in range(1, LONGEST + 1) for at in range(len(run) - n + 1)]
