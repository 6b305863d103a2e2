"""What was learned of success: P(each tier answers a prompt correctly), in numpy and as a part of the graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.fit.calibrate import LOWEST_SUCCESS, Calibration
from training.fit.classifier import Classifier
from training.fit.familiarity import Familiarity
from training.fit.kernel import Kernel
from training.fit.local import LocalRates
from training.graph.builder import Graph


@dataclass(frozen=True)
class SuccessModel:
    """The average of its voices, calibrated, then drawn towards the tiers' means for unfamiliar prompts.

    The voices are kernel, classifier and local rates. classifier: None where too few prompts have a label.
    classifier_weight: its share in the average with the kernel, 0 without one. local: None for partial feedback.
    local_weight: its share in the average with these two, 0 without it.
    """

    kernel: Kernel
    classifier: Classifier | None
    classifier_weight: float
    local: LocalRates | None
    local_weight: float
    calibration: Calibration
    familiarity: Familiarity

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """Calibrated P(correct), (n_prompts, n_tiers)."""
        estimate = self.kernel.predict(embedding)
        if self.classifier is not None:
            estimate = blend(estimate, self.classifier.predict(embedding), self.classifier_weight)
        if self.local is not None:
            estimate = blend(estimate, self.local.predict(embedding), self.local_weight)
        calibrated = self.calibration.apply(estimate)
        return self.familiarity.shrink(calibrated, self.familiarity.of(embedding))

    def raw_scores(self, embedding: np.ndarray) -> np.ndarray:
        """Raw scores of the classifier's trees, as the graph gives them; (n_prompts, 0) without a classifier."""
        return (
            np.empty((len(embedding), 0)) if self.classifier is None else self.classifier.forest.raw_scores(embedding)
        )

    def add_to(self, graph: Graph, embedding: str) -> str:
        """Outputs `success` and `familiarity`; returns the name of the similarities to the landmarks.

        The calibrated average is linear in the readouts of its parts: one matrix product each, then a clip.
        """
        others = 1 - self.local_weight
        weighted = [(self.kernel.add_to(graph, embedding), others * (1 - self.classifier_weight))]
        if self.classifier is not None:
            weighted.append((self.classifier.add_to(graph, embedding), others * self.classifier_weight))
        if self.local is not None:
            weighted.append((self.local.add_to(graph, embedding), self.local_weight))
        factors = [weight * self.calibration.slope for _, weight in weighted]
        readouts = [readout for readout, _ in weighted]
        bias = sum((f * each.bias for f, each in zip(factors, readouts, strict=True)), start=self.calibration.intercept)
        total = graph.constant(bias)
        for factor, each in zip(factors, readouts, strict=True):
            total = graph.add("Gemm", each.value, graph.constant(each.weights * factor), total)
        limits = graph.constant(LOWEST_SUCCESS), graph.constant(1 - LOWEST_SUCCESS)
        return self.familiarity.add_to(graph, embedding, graph.add("Clip", total, *limits))


def blend(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """The average of two estimates, (n_prompts, n_tiers) each; weight: of the second, from 0 to 1."""
    return np.average([first, second], axis=0, weights=(1 - weight, weight))
