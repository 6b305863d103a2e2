"""The plan graph: from estimates, prices and checks to whom to ask first, when to stop, and whom to ask next.

It weighs every plan of at most three calls exactly: each ordered pair of tiers, each third tier, each thing that can be
seen of the answers. It does so backwards from the last call (dynamic programming on what was seen; Bellman 1957).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from router.plans.engine import FORBIDDEN_USD
from training.fit.agreement import N_PATTERNS, AgreementModel
from training.fit.joint import N_CELLS, N_NODES, JointModel
from training.graph.builder import Graph, Values

_TIE = 1e-6
"""Success by which stopping is preferred to another call, asking alone to looking, and of two tiers the one that
stands first in the manifest to the next one: more than rounding can add. Without a check, asking one tier and then
another is worth the same as the other way round; the preference makes the choice the same on every machine."""

PLAN_INPUTS: Values = {
    "success": (TensorProto.FLOAT, ["n", "n_tiers"]),
    "cost_usd": (TensorProto.FLOAT, ["n", "n_tiers"]),
    "eligible": (TensorProto.BOOL, ["n", "n_tiers"]),
    "worth_usd": (TensorProto.FLOAT, ["n", "n_worths"]),
    "verdicts": (TensorProto.FLOAT, ["n_tiers", "n_classes", 2]),
    "verdict_slopes": (TensorProto.FLOAT, ["n_tiers", "n_classes", 2]),
    "check_usd": (TensorProto.FLOAT, ["n_tiers"]),
    "agreement": (TensorProto.BOOL, []),
    "second_call_usd": (TensorProto.FLOAT, []),
    "third_call_usd": (TensorProto.FLOAT, []),
}
"""What the graph reads; models/README.md says it in words."""


def plan_graph(joint: JointModel, agreement: AgreementModel) -> onnx.ModelProto:
    """The graph for a joint model and how answers agree; router.plans.engine.PlanTables says what comes out."""
    return _PlanGraph(joint, agreement).model()


class _PlanGraph:
    """The graph under construction.

    Sizes in the comments: n prompts, W worths, K tiers, Q nodes of the joint model, B classes of a check's scores. Of
    several K the first is the tier asked first, the next the second, the last the third; of two B likewise.
    """

    def __init__(self, joint: JointModel, agreement: AgreementModel) -> None:
        self._graph = Graph()
        self._joint = joint
        self._agreement = agreement
        self._n_tiers = joint.n_tiers

    def model(self) -> onnx.ModelProto:
        """The whole graph."""
        g, n = self._graph, self._n_tiers
        price = g.add("Where", "eligible", "cost_usd", g.constant(FORBIDDEN_USD))
        success = g.add("Clip", "success", g.constant(0.0), g.constant(1.0))
        easy = self._shaped(g.add("ReduceMean", success, axes=[1], keepdims=1), [-1, 1, 1, 1])
        scores = g.add("Add", "verdicts", g.add("Mul", easy, "verdict_slopes"))  # (n, K, B, 2)
        joint_of_two, joint_of_three = self._joints(success)
        scores_of_two = self._scores_of_two(scores)
        after_two = self._after_two(joint_of_two, scores_of_two, easy)
        after_three = self._after_three(joint_of_three, scores_of_two, easy)
        value_two = self._third_call(price, after_two, after_three)
        value_one = self._second_call(price, success, scores, after_two, value_two)
        self._first_call(price, success, value_one)
        several = ["n", "n_worths"]
        return g.model(
            PLAN_INPUTS,
            {
                "first": (TensorProto.INT64, several),
                "direct": (TensorProto.INT64, several),
                "is_plan": (TensorProto.BOOL, several),
                "second": (TensorProto.INT64, [*several, n, None]),
                "is_checked": (TensorProto.BOOL, [*several, n, n, None]),
                "third": (TensorProto.INT64, [*several, n, n, None, None, 2]),
                "after_one": (TensorProto.FLOAT, ["n", n, None, 2]),
                "after_two": (TensorProto.FLOAT, ["n", n, n, None, None, 2, 3]),
                "after_three": (TensorProto.FLOAT, ["n", n, n, n, None, None, N_PATTERNS, 4]),
            },
        )

    # ---- what will be seen of the answers ------------------------------------------------------------------------

    def _joints(self, success: str) -> tuple[str, str]:
        """P(these are right, the others wrong) of pairs and triples: (n, K, K, 1, 1, 4) and (n, K, K, K, 1, 1, 8)."""
        g, n = self._graph, self._n_tiers
        tables, slopes = (each.reshape(n * N_CELLS, 2 * N_NODES) for each in self._joint.tables)
        place = g.add("Mul", success, g.constant(float(N_CELLS)))
        cell = g.add("Min", g.add("Floor", place), g.constant(float(N_CELLS - 1)))
        at = g.add("Add", g.add("Cast", cell, to=TensorProto.INT64), self._whole([[k * N_CELLS for k in range(n)]]))
        within = g.add("Unsqueeze", g.add("Sub", place, cell), self._whole([2]))
        change = g.add("Mul", within, g.add("Gather", g.constant(slopes), at))
        nodes = g.add("Add", g.add("Gather", g.constant(tables), at), change)
        nodes = self._shaped(nodes, [-1, 2 * n, N_NODES])  # (n, tier x wrong or right, Q)

        outcomes = [(2 * i + a, 2 * j + b) for i in range(n) for j in range(n) for a in (0, 1) for b in (0, 1)]
        first, second = (
            g.add("Gather", nodes, self._whole([pair[place] for pair in outcomes]), axis=1) for place in (0, 1)
        )
        both = g.add("Mul", g.add("Mul", first, second), g.constant(self._joint.weights))  # (n, 4 K K, Q)
        of_two = self._shaped(g.add("ReduceSum", both, self._whole([2]), keepdims=0), [-1, n, n, 1, 1, 4])
        of_three = g.add("MatMul", both, g.add("Transpose", nodes, perm=[0, 2, 1]))  # (n, 4 K K, 2 K)
        of_three = g.add("Transpose", self._shaped(of_three, [-1, n * n, 4, n, 2]), perm=[0, 1, 3, 2, 4])
        return of_two, self._shaped(of_three, [-1, n, n, n, 1, 1, 8])

    def _scores_of_two(self, scores: str) -> str:
        """P(classes of both scores | wrong or right, wrong or right) of each pair, (n, K, K, B, B, 4)."""
        g, n = self._graph, self._n_tiers
        first = g.add("Unsqueeze", scores, self._whole([2, 4, 6]))  # (n, K, 1, B, 1, 2, 1)
        second = g.add("Unsqueeze", scores, self._whole([1, 3, 5]))  # (n, 1, K, 1, B, 1, 2)
        return self._shaped(g.add("Mul", first, second), [0, n, n, 0, 0, 4])

    def _after_two(self, joint: str, scores: str, easy: str) -> str:
        """P(seen), P(seen and the first is right), and the second; (n, K, K, B, B, 2: agree or not, 3)."""
        g, n = self._graph, self._n_tiers
        table = self._agreement.of_two[:, :, None]  # (K, K, 1, 8, 6)
        found = self._with_agreement(g.add("Mul", joint, scores), easy, 5, table)
        found = self._shaped(found, [0, n, n, 0, 0, 2, 3])
        return g.add("Where", "agreement", found, self._merged(found, 5, [0] * 12 + [1, 0]), output="after_two")

    def _after_three(self, joint: str, scores: str, easy: str) -> str:
        """P(seen), P(seen and the first is right), the second, the third; (n, K, K, K, B, B, N_PATTERNS, 4)."""
        g, n = self._graph, self._n_tiers
        repeated = g.add("Gather", scores, self._whole([0, 0, 1, 1, 2, 2, 3, 3]), axis=5)  # (n, K, K, B, B, 8)
        seen = g.add("Mul", joint, g.add("Unsqueeze", repeated, self._whole([3])))  # (n, K, K, K, B, B, 8)
        found = self._with_agreement(seen, easy, 6, self._agreement.of_three[:, :, :, None])
        found = self._shaped(found, [0, n, n, n, 0, 0, N_PATTERNS, 4])
        return g.add("Where", "agreement", found, self._merged(found, 6, [0] * 14 + [4, 0]), output="after_three")

    def _with_agreement(self, seen: str, easy: str, axis: int, table: np.ndarray) -> str:
        """What is seen (outcomes on the last axis) times the chance that answers agree, on a prompt this easy."""
        g = self._graph
        at_easy = g.add("Mul", seen, g.add("Unsqueeze", easy, self._whole(list(range(4, axis + 1)))))
        ends = g.add("Concat", g.add("Sub", seen, at_easy), at_easy, axis=axis)
        return g.add("MatMul", ends, g.constant(table))

    def _merged(self, found: str, axis: int, pads: list[int]) -> str:
        """Where answers are not compared, all that could be seen of them counts as the first pattern (of an axis)."""
        g = self._graph
        return g.add("Pad", g.add("ReduceSum", found, self._whole([axis]), keepdims=1), self._whole(pads))

    # ---- calls, from the last to the first --------------------------------------------------------------------------

    def _third_call(self, price: str, after_two: str, after_three: str) -> str:
        """Adds `third`; returns the value of what comes after two answers, (n, W, K, K, B, B, 2)."""
        g, n = self._graph, self._n_tiers
        worth = self._shaped("worth_usd", [0, -1, 1, 1, 1, 1, 1])
        seen = g.add("Gather", after_two, self._whole(0), axis=6)  # (n, K, K, B, B, 2)
        stopped = self._returned(worth, seen, g.add("Gather", after_two, self._whole([1, 2]), axis=6), 6)

        rights = g.add("Gather", after_three, self._whole([1, 2, 3]), axis=7)
        returned = g.add("ReduceMax", rights, axes=[7], keepdims=0)  # (n, K, K, K, B, B, patterns)
        agree = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
        right = g.add("Unsqueeze", g.add("MatMul", returned, g.constant(agree)), self._whole([1]))
        paid = g.add("Mul", self._shaped(price, [-1, 1, 1, n, 1, 1, 1]), g.add("Unsqueeze", seen, self._whole([3])))
        again = np.array([[[third in (i, j) for third in range(n)] for j in range(n)] for i in range(n)], np.float32)
        forbidden = g.add("Add", g.constant(again[..., None, None, None] * FORBIDDEN_USD), "third_call_usd")
        paid = g.add("Unsqueeze", g.add("Add", paid, forbidden), self._whole([1]))
        value = g.add("Sub", g.add("Mul", g.add("Unsqueeze", worth, self._whole([7])), right), paid)
        asked = g.add("ReduceMax", value, axes=[4], keepdims=0)  # of (n, W, K, K, K, B, B, 2)
        whom = g.add("ArgMax", value, axis=4, keepdims=0)
        g.add("Where", g.add("Greater", asked, stopped), whom, self._nobody(), output="third")
        return g.add("Max", asked, stopped)

    def _second_call(self, price: str, success: str, scores: str, after_two: str, value_two: str) -> str:
        """Adds `after_one`, `is_checked` and `second`; returns the value after one answer, (n, W, K)."""
        g, n = self._graph, self._n_tiers
        success = self._shaped(success, [-1, n, 1, 1])
        outcome = g.add("Concat", g.add("Sub", g.constant(1.0), success), success, axis=3)
        outcome = g.add("Mul", scores, outcome)  # (n, K, B, 2)
        seen = g.add("ReduceSum", outcome, self._whole([3]), keepdims=1)
        right = g.add("Gather", outcome, self._whole([1]), axis=3)
        g.add("Concat", seen, right, axis=3, output="after_one")
        seen_first = self._shaped(seen, [0, 1, n, 1, -1])  # (n, 1, K, 1, B)

        worth = self._shaped("worth_usd", [0, -1, 1, 1, 1])
        checked = g.add("ReduceSum", value_two, self._whole([5, 6]), keepdims=0)  # (n, W, K, K, B)
        unseen = g.add("ReduceSum", after_two, self._whole([4]), keepdims=0)  # the second score is not looked at
        unseen = g.add("ReduceMax", g.add("Gather", unseen, self._whole([1, 2]), axis=5), axes=[5], keepdims=0)
        unseen = g.add("ReduceSum", unseen, self._whole([4]), keepdims=0)  # (n, K, K, B)
        unchecked = g.add("Mul", worth, g.add("Unsqueeze", unseen, self._whole([1])))
        fee = g.add("Mul", self._shaped("check_usd", [n, 1]), seen_first)
        checked = g.add("Sub", checked, fee)
        g.add("Greater", checked, unchecked, output="is_checked")
        forbidden = g.add("Add", g.constant(np.eye(n)[:, :, None] * FORBIDDEN_USD), "second_call_usd")
        paid = g.add("Add", g.add("Mul", self._shaped(price, [-1, 1, 1, n, 1]), seen_first), forbidden)
        value = g.add("Sub", g.add("Max", checked, unchecked), paid)
        asked = g.add("ReduceMax", value, axes=[3], keepdims=0)  # (n, W, K, B)
        later = g.add("Mul", worth, g.constant(_TIE * np.arange(n)[:, None]))
        whom = g.add("ArgMax", g.add("Sub", value, later), axis=3, keepdims=0)
        worth = self._shaped("worth_usd", [0, -1, 1, 1])
        stopped = self._returned(worth, g.add("Squeeze", seen, self._whole([3])), right, 3)
        g.add("Where", g.add("Greater", asked, stopped), whom, self._nobody(), output="second")
        return g.add("ReduceSum", g.add("Max", asked, stopped), self._whole([3]), keepdims=0)

    def _first_call(self, price: str, success: str, value_one: str) -> None:
        """Adds `first`, `direct` and `is_plan`."""
        g = self._graph
        cost, worth = g.add("Unsqueeze", price, self._whole([1])), g.add("Unsqueeze", "worth_usd", self._whole([2]))
        planned = g.add("Sub", g.add("Sub", value_one, cost), "check_usd")  # (n, W, K)
        # A plan has had the preference for stopping once, so that for asking alone is larger.
        preferred = g.add("Add", success, g.constant(2 * _TIE))
        direct = g.add("Sub", g.add("Mul", worth, g.add("Unsqueeze", preferred, self._whole([1]))), cost)
        later = g.add("Mul", worth, g.constant(_TIE * np.arange(self._n_tiers)))
        g.add("ArgMax", g.add("Sub", planned, later), axis=2, keepdims=0, output="first")
        g.add("ArgMax", direct, axis=2, keepdims=0, output="direct")
        best_plan, best_direct = (g.add("ReduceMax", each, axes=[2], keepdims=0) for each in (planned, direct))
        g.add("Greater", best_plan, best_direct, output="is_plan")

    # ---- small parts ---------------------------------------------------------------------------------------------

    def _returned(self, worth: str, seen: str, rights: str, axis: int) -> str:
        """The value of returning the answer that is right with the highest probability, a little preferred.

        seen: P(seen), by which the preference is weighed, so that it is the same whatever can be seen.
        """
        g = self._graph
        right = g.add("ReduceMax", rights, axes=[axis], keepdims=0)
        preferred = g.add("Add", right, g.add("Mul", seen, g.constant(_TIE)))
        preferred = g.add("Unsqueeze", preferred, self._whole([1]))
        return g.add("Mul", worth, preferred)

    def _shaped(self, value: str, shape: list[int]) -> str:
        return self._graph.add("Reshape", value, self._whole(shape))

    def _nobody(self) -> str:
        return self._whole(-1)

    def _whole(self, values: Any) -> str:
        return self._graph.constant(values, np.int64)
