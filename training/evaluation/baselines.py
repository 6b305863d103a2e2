"""The routers to beat, fitted on the same training prompts and the same embeddings.

Each estimates success per tier and then decides by `worth x success - mean cost of the tier`.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from training.encoders.encoder import N_SURFACE

N_NEIGHBOURS = 100
N_CLUSTERS = 64
PRIOR_WEIGHT = 5.0


def knn(train: np.ndarray, correct: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Success as the mean of the 100 nearest training prompts, Gaussian weights.

    train, test: embeddings; correct: 0..1, NaN unobserved, (n_train, n_tiers). Returns (n_test, n_tiers).
    """
    n_neighbours = min(N_NEIGHBOURS, len(train))
    nearest = NearestNeighbors(n_neighbors=n_neighbours).fit(_text_part(train))
    distance, index = nearest.kneighbors(_text_part(test))
    width = np.maximum(np.median(distance[:, -1]), 1e-9)
    weight = np.exp(-0.5 * (2 * distance / width) ** 2)[:, :, None]
    return _shrunken_mean(correct[index], weight, _prior(correct), axis=1)


def kmeans(train: np.ndarray, correct: np.ndarray, test: np.ndarray, seed: int = 0) -> np.ndarray:
    """Success as the smoothed mean of the prompt's cluster (as Avengers-Pro, Zhang et al. 2025)."""
    n_clusters = max(1, min(N_CLUSTERS, len(train) // 10))
    clusters = KMeans(n_clusters, n_init=3, random_state=seed).fit(_text_part(train))
    one = np.ones((1, 1))
    rates = np.stack(
        [
            _shrunken_mean(correct[clusters.labels_ == cluster], one, _prior(correct), axis=0)
            for cluster in range(n_clusters)
        ]
    )
    return np.asarray(rates[clusters.predict(_text_part(test))])


def linear(train: np.ndarray, correct: np.ndarray, test: np.ndarray, seed: int = 0) -> np.ndarray:
    """Logistic regression per tier; the strength of its penalty is chosen on a fifth of the training prompts."""
    scaler = StandardScaler().fit(train)
    x_train, x_test = scaler.transform(train), scaler.transform(test)
    success = np.empty((len(test), correct.shape[1]))
    for tier in range(correct.shape[1]):
        seen = np.isfinite(correct[:, tier])
        x, y = x_train[seen], correct[seen, tier] >= 0.5
        if y.all() or not y.any():
            success[:, tier] = y.mean()
            continue
        success[:, tier] = _logistic(x, y, seed).predict_proba(x_test)[:, 1]
    return success


def _logistic(x: np.ndarray, y: np.ndarray, seed: int) -> LogisticRegression:
    held_out = np.random.default_rng(seed).random(len(y)) < 0.2
    models = [LogisticRegression(C=c, max_iter=2000) for c in (0.001, 0.01, 0.1, 1.0)]
    if len(np.unique(y[~held_out])) < 2 or not held_out.any():
        return models[1].fit(x, y)

    def loss(model: LogisticRegression) -> float:
        p = np.clip(model.fit(x[~held_out], y[~held_out]).predict_proba(x[held_out])[:, 1], 1e-6, 1 - 1e-6)
        return float(-np.mean(np.where(y[held_out], np.log(p), np.log(1 - p))))

    return min(models, key=loss).fit(x, y)


def _text_part(embedding: np.ndarray) -> np.ndarray:
    """The vectors of an embedding, without the counts of token kinds and the length."""
    return embedding[:, :-N_SURFACE]


def _prior(correct: np.ndarray) -> np.ndarray:
    """Mean accuracy of each tier, (n_tiers,)."""
    return np.asarray(np.nansum(correct, axis=0) / np.maximum(np.isfinite(correct).sum(axis=0), 1))


def _shrunken_mean(correct: np.ndarray, weight: np.ndarray, prior: np.ndarray, axis: int) -> np.ndarray:
    """Weighted mean of what was observed, with PRIOR_WEIGHT observations of the prior added."""
    weight = weight * np.isfinite(correct)
    total = weight.sum(axis=axis)
    return np.asarray(
        ((weight * np.nan_to_num(correct)).sum(axis=axis) + PRIOR_WEIGHT * prior) / (total + PRIOR_WEIGHT)
    )
