"""A classifier of one's own in place of the three voices: what ships, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from router.bundle.operators import refused_operators
from router.golden import check_golden
from training import SuccessEstimator, train
from training.errors import ConfigError, EstimatorError, LogError
from training.fit.own import OwnVoice, to_onnx
from training.graph.session import cpu_session

pytest.importorskip("skl2onnx", reason="needs the extra `own`")

SHIPS = [
    LogisticRegression(),
    make_pipeline(StandardScaler(), LogisticRegression()),
    MLPClassifier((4,), max_iter=30),
    RandomForestClassifier(5),
    GradientBoostingClassifier(n_estimators=3),
    CalibratedClassifierCV(LogisticRegression(), cv=2),
    LGBMClassifier(n_estimators=3, verbose=-1),
]


class Rates:
    """No scikit-learn model: the share of right answers, for every prompt."""

    def fit(self, X, y):
        self.rate = y.mean()
        return self

    def predict_proba(self, X):
        return np.tile([1 - self.rate, self.rate], (len(X), 1))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(200, 20)).astype(np.float32)
    correct = (embedding[:, :3] + rng.normal(size=(200, 3)) > 0).astype(float)
    correct[::5, 1] = np.nan
    return embedding, correct


@pytest.mark.filterwarnings("ignore")  # of the models themselves, and of the converters
@pytest.mark.parametrize("model", SHIPS, ids=lambda model: type(model).__name__)
def test_what_can_ship_estimates_in_the_graph_as_in_python(model, data):
    fitted = OwnVoice.fit(model, *data).models[1]
    graph = to_onnx(fitted, data[0].shape[1])
    (found,) = cpu_session(graph).run(None, {"X": data[0]})
    np.testing.assert_allclose(found, fitted.predict_proba(data[0]), atol=1e-5)
    assert refused_operators(graph.SerializeToString()) == ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model", "problem"), [(Rates(), "no graph"), (KNeighborsClassifier(5), "Scan")])
def test_what_cannot_ship_is_refused_by_name_and_can_still_be_cross_validated(model, problem, data):
    fitted = SuccessEstimator(estimator=model, n_surface=0).fit(*data)
    assert fitted.out_of_fold_.shape == (200, 3)
    with pytest.raises(EstimatorError, match=problem) as refused:
        to_onnx(fitted.model_.voices.models[0], data[0].shape[1])
    assert type(model).__name__ in str(refused.value)


def test_a_tier_that_is_always_right_needs_no_model(data):
    embedding, correct = data
    voice = OwnVoice.fit(LogisticRegression(), embedding, np.where(np.arange(3) == 2, 1.0, correct))
    assert voice.models[2] is None
    assert voice.predict(embedding)[:, 2].min() > 0.99


def test_a_bundle_with_a_classifier_of_ones_own_says_so_and_passes_every_gate(sample_log, sample_tiers, tmp_path):
    log = pd.read_parquet(sample_log)
    some = log[log.question_key.isin(sorted(log.question_key.unique())[:150])]
    result = train(some, sample_tiers, tmp_path / "own", estimator=LogisticRegression(C=0.01), tracking_uri="none")
    assert result.manifest.training["estimator"] == {"estimator": "LogisticRegression(C=0.01)"}
    assert result.manifest.training["n_trees"] == 0
    assert result.parity.success < 1e-4
    assert check_golden(result.bundle).passed
    with pytest.raises(ConfigError, match="cluster"):
        train(some, sample_tiers, tmp_path / "none", estimator=SuccessEstimator(), cluster="tcp://nowhere:1")
    with pytest.raises(ConfigError, match="fit and predict_proba"):
        train(some, sample_tiers, tmp_path / "none", estimator="logistic")
    few = some[some.question_key.isin(sorted(some.question_key.unique())[:20])]
    with pytest.raises(LogError, match="at least 60 prompts"):
        train(few, sample_tiers, tmp_path / "few", tracking_uri="none")
