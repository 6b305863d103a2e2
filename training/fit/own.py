"""An estimator of one's own in place of the three voices, and how it gets into the graph.

Any classifier with `fit` and `predict_proba` will do for cross-validation. To ship, a converter must know it: skl2onnx
for scikit-learn, onnxmltools for LightGBM (extra `own`). The runtime must know the operators that these write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.utils
from sklearn.base import clone

from router.bundle.operators import refused_operators
from router.extras import install_command
from training.errors import EstimatorError
from training.graph.builder import ML_OPSET, OPSET, Graph
from training.graph.readout import Readout


@dataclass(frozen=True)
class OwnVoice:
    """One fitted classifier for each tier.

    models: None for a tier whose outcomes were all the same. rates: share of correct answers, (n_tiers,), which stands
    in for a model that is None. n_dims: of the embeddings that they were fitted on.
    """

    models: tuple[Any, ...]
    rates: np.ndarray
    n_dims: int

    @classmethod
    def fit(cls, estimator: Any, embedding: np.ndarray, correct: np.ndarray) -> OwnVoice:
        """Fit a copy of the estimator for each tier, on the prompts that the tier was observed on.

        embedding: float32 (n_prompts, n_dims). correct: 0..1, (n_prompts, n_tiers), NaN where not observed; 0.5 and
        more counts as right.
        """
        models: list[Any] = []
        rates = np.full(correct.shape[1], 0.5)
        for tier, outcomes in enumerate(correct.T):
            seen = np.isfinite(outcomes)
            right = outcomes[seen] >= 0.5
            rates[tier] = (right.sum() + 0.5) / (len(right) + 1)
            is_mixed = right.any() and not right.all()
            models.append(clone(estimator, safe=False).fit(embedding[seen], right.astype(int)) if is_mixed else None)
        return cls(tuple(models), rates, embedding.shape[1])

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct) before calibration, (n_prompts, n_tiers)."""
        columns = [
            np.full(len(embedding), rate) if model is None else np.asarray(model.predict_proba(embedding))[:, 1]
            for model, rate in zip(self.models, self.rates.tolist(), strict=True)
        ]
        return np.stack(columns, axis=1).astype(np.float64)

    def readouts(self, graph: Graph, embedding: str) -> list[tuple[Readout, float]]:
        """What the graph adds up: the probabilities of both classes of every model, side by side.

        Raises EstimatorError where a model cannot be exported.
        """
        exported = [(tier, model) for tier, model in enumerate(self.models) if model is not None]
        n_tiers = len(self.models)
        bias = np.where([model is None for model in self.models], self.rates, 0.0)
        if not exported:
            return [(Readout(embedding, np.zeros((self.n_dims, n_tiers)), bias), 1.0)]
        values = [graph.part(to_onnx(model, self.n_dims), embedding, f"own{tier}_") for tier, model in exported]
        weights = np.zeros((2 * len(exported), n_tiers))
        for place, (tier, _) in enumerate(exported):
            weights[2 * place + 1, tier] = 1.0
        return [(Readout(graph.add("Concat", *values, axis=1), weights, bias), 1.0)]


def to_onnx(model: Any, n_dims: int) -> onnx.ModelProto:
    """The graph of a fitted classifier from `X`, float32 (n, n_dims), to the probabilities of both classes, (n, 2).

    Raises EstimatorError where no converter knows the model, or the runtime does not know what the converter writes.
    """
    try:
        import skl2onnx
    except ImportError as error:
        raise EstimatorError(model, f"skl2onnx is not installed: {install_command('own')}") from error
    _know_lightgbm()
    try:
        whole = skl2onnx.to_onnx(
            model, np.zeros((1, n_dims), np.float32), target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
            options={"zipmap": False},
        )  # fmt: skip
        outputs = [output.name for output in whole.graph.output]
        graph = onnx.utils.Extractor(whole).extract_model(["X"], outputs[1:2])
    except Exception as error:  # converters raise errors of every kind for what they do not know
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        raise EstimatorError(model, f"skl2onnx has no graph for it ({type(error).__name__}: {reason})") from error
    if refused := refused_operators(graph.SerializeToString()):
        raise EstimatorError(model, f"the runtime would refuse its graph: it {refused}")
    return graph


def _know_lightgbm() -> None:
    """Tell skl2onnx of onnxmltools' converter for LightGBM's classifier, where onnxmltools is installed."""
    try:
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
    except ImportError:
        return
    from lightgbm import LGBMClassifier
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes

    update_registered_converter(
        LGBMClassifier, "LightGbmLGBMClassifier", calculate_linear_classifier_output_shapes, convert_lightgbm,
        options={"nocl": [True, False], "zipmap": [True, False, "columns"]},
    )  # fmt: skip
