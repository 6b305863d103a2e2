"""The routers to beat.

The learned ones are fitted on the bundle's own training prompts and embeddings. Each estimates success per tier and
then decides by `worth x success - mean cost of the tier`.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from training.encoders.encoder import N_SURFACE
from training.evaluation.bundle_graph import embed_with
from training.evaluation.judged import JudgedPrompts
from training.evaluation.metrics import Outcomes, Policy, choices_by_worth
from training.evaluation.training_data import TrainingData

N_NEIGHBOURS = 100
N_CLUSTERS = 64
PRIOR_WEIGHT = 5.0


def baseline_policies(
    judged: JudgedPrompts, training: TrainingData, vectors: np.ndarray | None, worths: np.ndarray
) -> dict[str, Policy]:
    """Every baseline of the report, by name.

    vectors: embeddings of the judged prompts, (n_prompts, n_dims); computed where None. worths: values of worth_usd
    at which the learned baselines decide.
    """
    outcomes = judged.outcomes
    n, n_tiers = outcomes.correct.shape
    mean_cost = training.mean_cost_usd
    policies = {
        "random": Policy(np.tile(np.arange(n_tiers), (n, 1))),
        "cheapest": Policy(np.full((n, 1), int(mean_cost.argmin()))),
        "strongest": Policy(np.full((n, 1), outcomes.best)),
        "oracle": Policy(_oracle(outcomes), gain(outcomes.correct, outcomes.best)),
    }
    if vectors is None:
        vectors = embed_with(judged.graph.bundle, judged.table.prompts)
    rows = np.random.default_rng(judged.seed).permutation(len(training.embedding))
    correct = training.correct[training.embedded[rows]]
    for fit in (knn, kmeans, linear):
        with threadpool_limits(1):  # as in training.train
            success = fit(training.embedding[rows], correct, vectors)
        policies[fit.__name__] = Policy(choices_by_worth(success, mean_cost, worths), gain(success, outcomes.best))
    return policies


def gain(success: np.ndarray, best: int) -> np.ndarray | None:
    """Predicted gain of the better of two tiers, (n_prompts,); None for more tiers. success: (n_prompts, n_tiers)."""
    return success[:, best] - success[:, 1 - best] if success.shape[1] == 2 else None


def _oracle(outcomes: Outcomes) -> np.ndarray:
    """The cheapest correct tier of each prompt, else the cheapest tier, int (n_prompts, 1)."""
    ordered = np.where(outcomes.correct >= 0.5, outcomes.cost_usd, np.inf)
    oracle = np.where(np.isfinite(ordered).any(axis=1), ordered.argmin(axis=1), outcomes.cost_usd.argmin(axis=1))
    return np.asarray(oracle[:, None])


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
    """The text vectors of embeddings, without the counts of token kinds and the length."""
    return embedding[:, :-N_SURFACE]


def _prior(correct: np.ndarray) -> np.ndarray:
    """Mean accuracy of each tier, (n_tiers,)."""
    return np.asarray(np.nansum(correct, axis=0) / np.maximum(np.isfinite(correct).sum(axis=0), 1))


def _shrunken_mean(correct: np.ndarray, weight: np.ndarray, prior: np.ndarray, axis: int) -> np.ndarray:
    """Weighted mean of the observed outcomes, with PRIOR_WEIGHT observations of the prior added."""
    weight = weight * np.isfinite(correct)
    total = weight.sum(axis=axis)
    return np.asarray(
        ((weight * np.nan_to_num(correct)).sum(axis=axis) + PRIOR_WEIGHT * prior) / (total + PRIOR_WEIGHT)
    )
