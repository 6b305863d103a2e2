"""Everything that is learned from outcomes: estimator, lengths, bills, dial, clusters, plans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router.bundle import EncoderInfo
from training.backend import Backend
from training.context import RunContext
from training.dial.evidence import CalibratedDial
from training.encoders.encoder import Encoder
from training.fit.billing import InputModel
from training.fit.clusters import PromptClusters
from training.fit.estimator import SuccessEstimator
from training.fit.lengths import LengthModel
from training.fit.model import TierModel
from training.fit.plans import PlanModel
from training.log.part import LogPart


@dataclass(frozen=True)
class Learned:
    """What the training part of a log taught.

    settings: of the estimator, where they are not the standard.
    out_of_fold: calibrated success of the training prompts, (n_prompts, n_tiers).
    n_trained_on: prompts that the classifier saw, which on a cluster are more than the table has.
    plans: None where there are none to choose from.
    """

    settings: dict[str, str]
    model: TierModel
    out_of_fold: np.ndarray
    dial: CalibratedDial
    plans: PlanModel | None
    n_trained_on: int


def learn(
    known: LogPart,
    encoder: Encoder,
    info: EncoderInfo,
    estimator: SuccessEstimator,
    backend: Backend,
    context: RunContext,
) -> Learned:
    """Fit everything that is learned from outcomes."""
    config, table = context.config, known.table
    estimator.fit(
        known.vectors,
        table.correct,
        propensity=table.propensity,
        cost_usd=known.costs.cost_usd,
        groups=table.groups,
        fit_label_forest=backend.fit_label_forest(encoder, known.tiers, known.costs.mean_output_tokens),
        on_step=context.done,
    )
    success = estimator.model_
    basis = success.basis
    billed = known.costs.billed
    lengths = LengthModel.fit(
        basis, known.vectors, billed.output_tokens, known.costs.mean_output_tokens, table.groups, config.seed
    )
    n_chars = np.array([len(prompt) for prompt in table.prompts])
    context_tokens = n_chars * info.tokens_per_char * info.billed_tokens_per_token
    inputs = InputModel.fit(basis, known.vectors, billed.input_tokens, context_tokens, table.groups, config.seed)
    context.done("lengths")
    dial = CalibratedDial.of(table, known.costs.cost_usd, estimator.out_of_fold_, config.confidence)
    context.done("dial")
    clusters = PromptClusters.fit(
        basis, known.vectors, table, dial.outcomes, config.seed, keep_examples=config.keep_examples
    )
    context.done("clusters")
    plans = PlanModel.fit(
        table,
        estimator.out_of_fold_,
        lengths.predict(known.vectors),
        inputs.predict(known.vectors, context_tokens),
        context_tokens,
    )
    context.done("plans")
    has_classifier = success.classifier is not None
    return Learned(
        settings=estimator.changed_settings,
        model=TierModel(success, lengths, inputs, clusters),
        out_of_fold=estimator.out_of_fold_,
        dial=dial,
        plans=plans,
        n_trained_on=backend.n_trained_on(table.n_prompts) if has_classifier else table.n_prompts,
    )
