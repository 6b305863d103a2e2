"""The three voices of the estimate: kernel, classifier of the cheapest-correct label, and local rates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.fit.classifier import Classifier
from training.fit.kernel import Kernel
from training.fit.local import LocalRates
from training.graph.builder import Graph
from training.graph.readout import Readout


@dataclass(frozen=True)
class ThreeVoices:
    """The average of kernel, classifier and local rates.

    classifier: None where too few prompts have a label. classifier_weight: its share in the average with the kernel, 0
    without one. local: None for partial feedback. local_weight: its share in the average with these two, 0 without it.
    """

    kernel: Kernel
    classifier: Classifier | None
    classifier_weight: float
    local: LocalRates | None
    local_weight: float

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct) before calibration, (n_prompts, n_tiers)."""
        estimate = self.kernel.predict(embedding)
        if self.classifier is not None:
            estimate = blend(estimate, self.classifier.predict(embedding), self.classifier_weight)
        if self.local is not None:
            estimate = blend(estimate, self.local.predict(embedding), self.local_weight)
        return estimate

    def readouts(self, graph: Graph, embedding: str) -> list[tuple[Readout, float]]:
        """What the graph adds up, each with its weight."""
        others = 1 - self.local_weight
        weighted = [(self.kernel.add_to(graph, embedding), others * (1 - self.classifier_weight))]
        if self.classifier is not None:
            weighted.append((self.classifier.add_to(graph, embedding), others * self.classifier_weight))
        if self.local is not None:
            weighted.append((self.local.add_to(graph, embedding), self.local_weight))
        return weighted


def blend(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """The average of two estimates, (n_prompts, n_tiers) each; weight: of the second, from 0 to 1."""
    return np.average([first, second], axis=0, weights=(1 - weight, weight))
