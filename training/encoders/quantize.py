"""The int8 form of a transformer encoder, and the gate it has to pass before it ships.

Weights are rounded once, per output channel; activations while the graph runs, per token. The usual dynamic
quantisation (`DynamicQuantizeLinear`) rounds a whole batch with one step, which makes a prompt's embedding depend on
its neighbours and on padding: decisions in a batch would differ from those one by one. A step per token costs one pass
more over the activations and has neither fault, and about half the rounding error.

In the graph stand pairs of `QuantizeLinear` and `DequantizeLinear`, operators of `ai.onnx`, around every product with
weights. ONNX Runtime multiplies such pairs in integers.

Rounding amplifies last digits: where another processor or another optimisation of the graph adds in another order, a
value may fall to the next step, and estimates move as far as rounding itself moves them. The golden prompts of an int8
bundle therefore agree within their tolerance only on the kind of machine and version of ONNX Runtime that made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from router.portfolio.tiers import Tier
from training.encoders.embed import embed
from training.encoders.encoder import N_SURFACE, Encoder
from training.errors import EncoderError, LogError, ParityError
from training.evaluation.metrics import Outcomes, Policy, choices_by_worth, policy_figures, resamples, worth_grid
from training.fit.model import TierModel
from training.graph.builder import decide
from training.log.costs import attempt_costs
from training.log.table import OutcomeTable

MAX_CHANGED = 0.05
"""Largest share of decisions that rounding may change."""

MAX_AIQ_LOSS = 0.005
"""Largest AIQ that rounding may cost."""

MIN_COSINE = 0.98
"""Least mean cosine of rounded and exact vectors: both other figures are blind to what no model learned from."""

MAX_PROMPTS = 500
"""Held-out prompts that the gate looks at."""

_WEIGHT_LEVELS = 64
"""Seven bits: x86 processors without VNNI add pairs of (uint8 x int8) in int16, and 2 x 255 x 64 still fits."""

_LEVELS = 127
_ZERO_LEVEL = 128
_TINY = float(np.finfo(np.float32).tiny)


def quantized(encoder: Encoder) -> Encoder:
    """The same encoder with its weights in int8 and `-int8` in its name; `unquantized` is the one given.

    Rounded are the tables that tokens are looked up in, and the weights and activations of every product of both.
    Raises EncoderError where the graph has no such product.
    """
    rewriting = _Rewriting(encoder.graph)
    if not rewriting.n_products:
        raise EncoderError(f"encoder {encoder.name!r} has no product with weights; expected a transformer's graph")
    return replace(encoder, name=f"{encoder.name}-int8", graph=rewriting.model(), unquantized=encoder)


class _Rewriting:
    """A graph being rewritten node by node; constants that no node reads any more are left out."""

    def __init__(self, source: onnx.ModelProto) -> None:
        self._source = source
        self._weights = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in source.graph.initializer
            if len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
        }
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._rounded: set[str] = set()
        self.n_products = 0
        for node in source.graph.node:
            if node.op_type == "MatMul" and node.input[1] in self._weights:
                self._product(node.input[0], node.input[1], node.output[0])
            elif node.op_type == "Gather" and node.input[0] in self._weights and not node.attribute:
                self._look_up(node.input[0], node.input[1], node.output[0])
            else:
                self._nodes.append(node)

    def model(self) -> onnx.ModelProto:
        """The rewritten model."""
        model = onnx.ModelProto()
        model.CopyFrom(self._source)
        read = {name for node in self._nodes for name in node.input}
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self._nodes)
        model.graph.initializer.extend(tensor for tensor in self._source.graph.initializer if tensor.name in read)
        model.graph.initializer.extend(self._constants.values())
        onnx.checker.check_model(model)
        return model

    def _product(self, rows: str, weights: str, output: str) -> None:
        """Rows (..., a) x weights (a, b): both rounded, then brought back to the scale of each row."""
        self.n_products += 1
        self._add("MatMul", [self._rounded_rows(rows), self._rounded_columns(weights)], f"{output}/of_unit_rows")
        self._add("Mul", [f"{output}/of_unit_rows", f"{rows}/largest"], output)

    def _rounded_rows(self, rows: str) -> str:
        """Each row over its largest magnitude, in steps of 1 / _LEVELS; (..., a)."""
        name = f"{rows}/rounded"
        if name not in self._rounded:
            self._rounded.add(name)
            tiny = self._constant("int8/tiny", np.float32(_TINY))  # a row of zeros stays one
            step = self._constant("int8/step", np.float32(1 / _LEVELS))
            zero = self._constant("int8/zero", np.uint8(_ZERO_LEVEL))
            self._add("Abs", [rows], f"{rows}/magnitude")
            self._add("ReduceMax", [f"{rows}/magnitude"], f"{rows}/largest_or_zero", axes=[-1], keepdims=1)
            self._add("Max", [f"{rows}/largest_or_zero", tiny], f"{rows}/largest")  # (..., 1)
            self._add("Div", [rows, f"{rows}/largest"], f"{rows}/unit")
            self._add("QuantizeLinear", [f"{rows}/unit", step, zero], f"{rows}/levels")
            self._add("DequantizeLinear", [f"{rows}/levels", step, zero], name)
        return name

    def _rounded_columns(self, weights: str) -> str:
        """Weights with a step per column, (a, b)."""
        name = f"{weights}/rounded"
        if name not in self._rounded:
            self._rounded.add(name)
            values = self._weights[weights]
            step = np.maximum(np.abs(values).max(axis=0) / _WEIGHT_LEVELS, _TINY)
            levels = self._constant(f"{weights}/levels", np.round(values / step).astype(np.int8))
            self._add("DequantizeLinear", [levels, self._constant(f"{weights}/step", step)], name, axis=1)
        return name

    def _look_up(self, table: str, index: str, output: str) -> None:
        """Rows of a table that has a step per row."""
        values = self._weights[table]
        step = np.maximum(np.abs(values).max(axis=1, keepdims=True) / _LEVELS, _TINY)
        levels = self._constant(f"{table}/row_levels", np.round(values / step).astype(np.int8))
        self._add("Gather", [levels, index], f"{output}/row_levels")
        self._add("Gather", [self._constant(f"{table}/row_step", step), index], f"{output}/row_step")
        self._add("Cast", [f"{output}/row_levels"], f"{output}/row_whole", to=TensorProto.FLOAT)
        self._add("Mul", [f"{output}/row_whole", f"{output}/row_step"], output)

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))


# ---- the gate --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuantizationCheck:
    """What rounding does to a model's decisions on held-out prompts.

    cosine: mean, of rounded and exact vectors. changed: share of decisions, all slacks together.
    aiq, aiq_unquantized: of the decisions from rounded and from exact embeddings.
    """

    n_prompts: int
    cosine: float
    changed: float
    aiq: float
    aiq_unquantized: float

    def require(self) -> None:
        """Raises ParityError where a limit is exceeded, or a figure is NaN."""
        faults = []
        if not self.cosine >= MIN_COSINE:
            faults.append(f"mean cosine {self.cosine:.3f}, at least {MIN_COSINE:g}")
        if not self.changed <= MAX_CHANGED:
            faults.append(f"{self.changed:.1%} of decisions changed, at most {MAX_CHANGED:.1%}")
        if not self.aiq_unquantized - self.aiq <= MAX_AIQ_LOSS:
            faults.append(f"AIQ {self.aiq:.4f} for {self.aiq_unquantized:.4f}, at most {MAX_AIQ_LOSS:g} less")
        if faults:
            raise ParityError(
                f"int8 changes what the router decides on {self.n_prompts} held-out prompts (found, allowed): "
                f"{'; '.join(faults)}; not exported, use --encoder minilm instead"
            )


def check_quantized(
    model: TierModel,
    unquantized: Encoder,
    held_out: OutcomeTable,
    vectors: np.ndarray,
    tiers: tuple[Tier, ...],
    slacks: Sequence[float],
    seed: int,
) -> QuantizationCheck:
    """Compare a model's decisions from int8 embeddings with those from exact embeddings of the same prompts.

    model: fitted on int8 embeddings. unquantized: the same encoder before rounding. vectors: int8 embeddings of
    held_out, (n_prompts, n_dims). slacks: those of the dial; a decision is a prompt at one of them.

    The model is not fitted a second time on exact embeddings: two fits that differ in nothing but their random seed
    disagree on more prompts than int8 changes, so such a comparison would not show what int8 does. What it could show
    and this cannot, that rounding took away what there was to learn, the cosine shows.

    Raises ParityError where a limit of this module is exceeded, LogError where hardly any held-out prompt was
    answered by every tier: without them there is no AIQ.
    """
    complete = np.flatnonzero(np.isfinite(held_out.correct).all(axis=1))
    if len(complete) < 2:
        raise LogError(
            f"found {len(complete)} held-out prompts that every tier answered; expected some hundreds to judge int8 "
            "on, use --encoder minilm instead"
        )
    rows = np.sort(np.random.default_rng(seed).permutation(complete)[:MAX_PROMPTS])
    part, rounded = held_out.rows(rows), vectors[rows]
    exact = embed(unquantized, part.prompts, part.prompt_ids).vectors
    found, expected = (_Decisions.of(model, embedding, part, tiers, slacks) for embedding in (rounded, exact))
    check = QuantizationCheck(
        n_prompts=len(rows),
        cosine=_mean_cosine(rounded[:, :-N_SURFACE], exact[:, :-N_SURFACE]),
        changed=float((found.by_slack != expected.by_slack).mean()),
        aiq=found.aiq,
        aiq_unquantized=expected.aiq,
    )
    check.require()
    return check


@dataclass(frozen=True)
class _Decisions:
    """by_slack: the tier of each prompt, (n_slacks, n_prompts). aiq: of the decisions at all values of worth_usd."""

    by_slack: np.ndarray
    aiq: float

    @classmethod
    def of(
        cls,
        model: TierModel,
        embedding: np.ndarray,
        part: OutcomeTable,
        tiers: tuple[Tier, ...],
        slacks: Sequence[float],
    ) -> _Decisions:
        """What a model decides at the tiers' list prices."""
        attempts = attempt_costs(part, tiers)
        success = model.success(embedding)
        usd_input = np.array([tier.offers[0].usd_per_mtok_input for tier in tiers])
        usd_output = np.array([tier.offers[0].usd_per_mtok_output for tier in tiers])
        cost_usd = (attempts.input_tokens * usd_input + model.lengths.predict(embedding) * usd_output) / 1e6
        n = len(success)
        all_eligible, worthless = np.ones_like(success, dtype=bool), np.zeros(n)
        by_slack = [decide(success, cost_usd, all_eligible, worthless, np.full(n, slack)) for slack in slacks]
        worths = worth_grid(attempts.cost_usd.mean(axis=0))
        outcomes = Outcomes(part.correct, attempts.cost_usd, best=int(part.correct.mean(axis=0).argmax()))
        figures = policy_figures(
            Policy(choices_by_worth(success, cost_usd, worths)), outcomes, resamples(n, n_bootstrap=0)
        )
        return cls(np.stack(by_slack), float(figures["aiq"][0]))


def _mean_cosine(left: np.ndarray, right: np.ndarray) -> float:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / np.maximum(norms, _TINY)).mean())
