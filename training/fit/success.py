"""What was learned of success: P(each tier answers a prompt correctly), in numpy and as a part of the graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.fit.calibrate import LOWEST_SUCCESS, Calibration
from training.fit.classifier import Classifier
from training.fit.familiarity import Familiarity
from training.fit.kernel import KernelBasis
from training.fit.own import OwnVoice
from training.fit.voices import ThreeVoices
from training.graph.builder import Graph


@dataclass(frozen=True)
class SuccessModel:
    """What the voices say, calibrated, then drawn towards the tiers' means for unfamiliar prompts."""

    voices: ThreeVoices | OwnVoice
    calibration: Calibration
    familiarity: Familiarity

    @property
    def basis(self) -> KernelBasis:
        """The landmarks that prompts are compared with."""
        return self.familiarity.basis

    @property
    def classifier(self) -> Classifier | None:
        """LightGBM on the cheapest-correct label; None where there is none among the voices."""
        return self.voices.classifier if isinstance(self.voices, ThreeVoices) else None

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """Calibrated P(correct), (n_prompts, n_tiers)."""
        calibrated = self.calibration.apply(self.voices.predict(embedding))
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
        weighted = self.voices.readouts(graph, embedding)
        factors = [weight * self.calibration.slope for _, weight in weighted]
        readouts = [readout for readout, _ in weighted]
        bias = sum((f * each.bias for f, each in zip(factors, readouts, strict=True)), start=self.calibration.intercept)
        total = graph.constant(bias)
        for factor, each in zip(factors, readouts, strict=True):
            total = graph.add("Gemm", each.value, graph.constant(each.weights * factor), total)
        limits = graph.constant(LOWEST_SUCCESS), graph.constant(1 - LOWEST_SUCCESS)
        return self.familiarity.add_to(graph, embedding, graph.add("Clip", total, *limits))
