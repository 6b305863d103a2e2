"""The plan graph: from estimates, prices and checks to whom to ask first, when to stop, and whom to ask next.

It weighs every plan of at most three calls exactly: each ordered pair of tiers, each third tier, each thing that can be
seen of the answers. It does so backwards from the last call (dynamic programming on what was seen; Bellman 1957).
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from training.fit.agreement import N_PATTERNS, AgreementModel
from training.fit.joint import N_CELLS, N_NODES, JointModel
from training.graph.builder import Graph, Values

FORBIDDEN_USD = 1e30
"""The cost that stands for a tier that may not be asked."""

PLAN_INPUTS: Values = {
    "success": (TensorProto.FLOAT, ["n", "n_tiers"]),
    "cost_usd": (TensorProto.FLOAT, ["n", "n_tiers"]),
    "eligible": (TensorProto.BOOL, ["n", "n_tiers"]),
    "worth_usd": (TensorProto.FLOAT, ["n", "n_worths"]),
    "verdicts": (TensorProto.FLOAT, [2, "n_tiers", "n_classes", 2]),
    "check_usd": (TensorProto.FLOAT, ["n_tiers"]),
    "agreement": (TensorProto.BOOL, []),
    "max_calls": (TensorProto.INT64, []),
}
"""What the graph reads; models/README.md says it in words."""


def plan_graph(joint: JointModel, agreement: AgreementModel) -> onnx.ModelProto:
    """The graph for a joint model and how answers agree; router.plans.engine.PlanTables says what comes out."""
    return _PlanGraph(joint, agreement).model()


class _PlanGraph:
    """The graph under construction.

    Sizes in the comments: n prompts, W worths, K tiers, S = K (K - 1) ordered pairs of tiers, Q nodes of the joint
    model, B classes of a check's scores, O = B x B: of the first and of the second answer.
    """

    def __init__(self, joint: JointModel, agreement: AgreementModel) -> None:
        self._graph = Graph()
        self._joint = joint
        self._agreement = agreement
        self._n_tiers = joint.n_tiers
        self._pairs = list(permutations(range(joint.n_tiers), 2))
        self._first, self._second = (self._whole([pair[place] for pair in self._pairs]) for place in (0, 1))

    def model(self) -> onnx.ModelProto:
        """The whole graph."""
        g, n_pairs = self._graph, len(self._pairs)
        price = g.add("Where", "eligible", "cost_usd", g.constant(FORBIDDEN_USD))
        success = g.add("Clip", "success", g.constant(0.0), g.constant(1.0))
        easy = g.add("ReduceMean", success, axes=[1], keepdims=1)
        easy = self._shaped(easy, [-1, 1, 1, 1])
        scores = self._scores(easy)
        joint_of_two, joint_of_three = self._joints(success)
        scores_of_two = self._scores_of_two(scores)
        after_two = self._after_two(joint_of_two, scores_of_two, easy)
        after_three = self._after_three(joint_of_three, scores_of_two, easy)

        n_classes = g.add("Slice", g.add("Shape", "verdicts"), self._whole([2]), self._whole([3]))
        value_two = self._third_call(price, after_two, after_three)
        value_one = self._second_call(price, success, scores, after_two, value_two, n_classes)
        self._first_call(price, success, value_one)
        several = ["n", "n_worths"]
        return g.model(
            PLAN_INPUTS,
            {
                "first": (TensorProto.INT64, several),
                "direct": (TensorProto.INT64, several),
                "is_plan": (TensorProto.BOOL, several),
                "second": (TensorProto.INT64, [*several, self._n_tiers, None]),
                "is_checked": (TensorProto.BOOL, [*several, n_pairs, None]),
                "third": (TensorProto.INT64, [*several, n_pairs, None, 2]),
                "after_one": (TensorProto.FLOAT, ["n", self._n_tiers, None, 2]),
                "after_two": (TensorProto.FLOAT, ["n", n_pairs, None, 2, 3]),
                "after_three": (TensorProto.FLOAT, ["n", n_pairs, self._n_tiers, None, N_PATTERNS, 4]),
            },
        )

    # ---- what will be seen of the answers ------------------------------------------------------------------------

    def _scores(self, easy: str) -> str:
        """P(class of the score | wrong or right) of each tier for a prompt as easy as this, (n, K, B, 2)."""
        g = self._graph
        at_hard, at_easy = (g.add("Gather", "verdicts", g.constant(end, np.int64)) for end in (0, 1))
        return g.add("Add", at_hard, g.add("Mul", easy, g.add("Sub", at_easy, at_hard)))

    def _joints(self, success: str) -> tuple[str, str]:
        """P(these are right, the others wrong) of each pair and triple: (n, S, 1, 4) and (n, S, K, 1, 8)."""
        g, n, n_pairs = self._graph, self._n_tiers, len(self._pairs)
        tables, slopes = (each.reshape(n * N_CELLS, 2 * N_NODES) for each in self._joint.tables)
        place = g.add("Mul", success, g.constant(float(N_CELLS)))
        cell = g.add("Min", g.add("Floor", place), g.constant(float(N_CELLS - 1)))
        at = g.add("Add", g.add("Cast", cell, to=TensorProto.INT64), self._whole([[k * N_CELLS for k in range(n)]]))
        within = g.add("Unsqueeze", g.add("Sub", place, cell), self._whole([2]))
        change = g.add("Mul", within, g.add("Gather", g.constant(slopes), at))
        nodes = g.add("Add", g.add("Gather", g.constant(tables), at), change)
        nodes = self._shaped(nodes, [-1, 2 * n, N_NODES])  # (n, tier x wrong or right, Q)

        outcomes = [(2 * i + one, 2 * j + other) for i, j in self._pairs for one in (0, 1) for other in (0, 1)]
        first, second = (
            g.add("Gather", nodes, self._whole([pair[place] for pair in outcomes]), axis=1) for place in (0, 1)
        )
        both = g.add("Mul", g.add("Mul", first, second), g.constant(self._joint.weights))  # (n, 4 S, Q)
        of_two = self._shaped(g.add("ReduceSum", both, self._whole([2]), keepdims=0), [-1, n_pairs, 1, 4])
        of_three = g.add("MatMul", both, g.add("Transpose", nodes, perm=[0, 2, 1]))  # (n, 4 S, 2 K)
        of_three = self._shaped(of_three, [-1, n_pairs, 4, n, 2])
        of_three = g.add("Transpose", of_three, perm=[0, 1, 3, 2, 4])
        return of_two, self._shaped(of_three, [-1, n_pairs, n, 1, 8])

    def _scores_of_two(self, scores: str) -> str:
        """P(classes of both scores | wrong or right, wrong or right) of each pair, (n, S, O, 4)."""
        g = self._graph
        first, second = (g.add("Gather", scores, of, axis=1) for of in (self._first, self._second))  # (n, S, B, 2)
        both = g.add(
            "Mul",
            g.add("Unsqueeze", first, self._whole([3, 5])),  # (n, S, B, 1, 2, 1)
            g.add("Unsqueeze", second, self._whole([2, 4])),  # (n, S, 1, B, 1, 2)
        )
        return self._shaped(both, [0, len(self._pairs), -1, 4])

    def _after_two(self, joint: str, scores: str, easy: str) -> str:
        """P(seen), P(seen and the first is right), and the second; (n, S, O, 2: agree or not, 3)."""
        g, n_pairs = self._graph, len(self._pairs)
        seen = g.add("Mul", joint, scores)  # (n, S, O, 4)
        at_easy = g.add("Mul", seen, easy)
        ends = g.add("Concat", g.add("Sub", seen, at_easy), at_easy, axis=3)  # (n, S, O, 8)
        found = g.add("MatMul", ends, self._if_compared(self._agreement.of_two, 2))  # (n, S, O, 6)
        return g.add("Reshape", found, self._whole([0, n_pairs, -1, 2, 3]), output="after_two")

    def _after_three(self, joint: str, scores: str, easy: str) -> str:
        """P(seen), P(seen and the first is right), the second, the third; (n, S, K, O, N_PATTERNS, 4)."""
        g, n, n_pairs = self._graph, self._n_tiers, len(self._pairs)
        repeated = g.add("Gather", scores, self._whole([0, 0, 1, 1, 2, 2, 3, 3]), axis=3)  # (n, S, O, 8)
        seen = g.add("Mul", joint, g.add("Unsqueeze", repeated, self._whole([2])))  # (n, S, K, O, 8)
        easy = g.add("Unsqueeze", easy, self._whole([4]))
        at_easy = g.add("Mul", seen, easy)
        at_hard = g.add("Sub", seen, at_easy)
        twice_easy = g.add("Mul", at_easy, easy)
        between = g.add("Sub", at_easy, twice_easy)
        ends = g.add("Concat", g.add("Sub", at_hard, between), between, twice_easy, axis=4)  # (n, S, K, O, 24)
        found = g.add("MatMul", ends, self._if_compared(self._agreement.of_three, N_PATTERNS))  # (n, S, K, O, 20)
        return g.add("Reshape", found, self._whole([0, n_pairs, n, -1, N_PATTERNS, 4]), output="after_three")

    def _if_compared(self, table: np.ndarray, n_patterns: int) -> str:
        """The table; where answers are not compared, all that could be seen of them counts as the first pattern."""
        g = self._graph
        by_pattern = table.reshape(*table.shape[:-1], n_patterns, -1)
        merged = np.zeros_like(by_pattern)
        merged[..., 0, :] = by_pattern.sum(axis=-2)
        return g.add("Where", "agreement", g.constant(table), g.constant(merged.reshape(table.shape)))

    # ---- calls, from the last to the first --------------------------------------------------------------------------

    def _third_call(self, price: str, after_two: str, after_three: str) -> str:
        """Adds `third`; returns the value of what comes after two answers, (n, W, S, O, 2)."""
        g, n = self._graph, self._n_tiers
        worth = self._shaped("worth_usd", [0, -1, 1, 1, 1])
        seen = g.add("Gather", after_two, self._whole(0), axis=4)  # (n, S, O, 2)
        rights = g.add("Gather", after_two, self._whole([1, 2]), axis=4)
        right = g.add("Unsqueeze", g.add("ReduceMax", rights, axes=[4], keepdims=0), self._whole([1]))
        stopped = g.add("Mul", worth, right)  # (n, W, S, O, 2)

        rights = g.add("Gather", after_three, self._whole([1, 2, 3]), axis=5)
        returned = g.add("ReduceMax", rights, axes=[5], keepdims=0)  # (n, S, K, O, patterns)
        agree = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
        right = g.add("Unsqueeze", g.add("MatMul", returned, g.constant(agree)), self._whole([1]))
        paid = g.add("Mul", self._shaped(price, [-1, 1, n, 1, 1]), g.add("Unsqueeze", seen, self._whole([2])))
        again = [[third in pair for third in range(n)] for pair in self._pairs]
        forbidden = g.constant(np.array(again, np.float32)[:, :, None, None] * FORBIDDEN_USD)
        paid = g.add("Add", g.add("Add", paid, forbidden), self._too_many(3))
        gained = g.add("Mul", g.add("Unsqueeze", worth, self._whole([5])), right)
        value = g.add("Sub", gained, g.add("Unsqueeze", paid, self._whole([1])))  # (n, W, S, K, O, 2)
        asked = g.add("ReduceMax", value, axes=[3], keepdims=0)
        whom = g.add("ArgMax", value, axis=3, keepdims=0)
        g.add("Where", self._is_more(asked, stopped), whom, self._nobody(), output="third")
        return g.add("Max", asked, stopped)

    def _second_call(
        self, price: str, success: str, scores: str, after_two: str, value_two: str, n_classes: str
    ) -> str:
        """Adds `after_one`, `is_checked` and `second`; returns the value after one answer, (n, W, K)."""
        g, n = self._graph, self._n_tiers
        worth = self._shaped("worth_usd", [0, -1, 1, 1])
        success = self._shaped(success, [-1, n, 1, 1])
        outcome = g.add("Concat", g.add("Sub", g.constant(1.0), success), success, axis=3)
        outcome = g.add("Mul", scores, outcome)  # (n, K, B, 2)
        seen = g.add("ReduceSum", outcome, self._whole([3]), keepdims=1)
        right = g.add("Gather", outcome, self._whole([1]), axis=3)
        g.add("Concat", seen, right, axis=3, output="after_one")
        seen_one, right_one = (self._shaped(each, [0, 1, n, -1]) for each in (seen, right))  # (n, 1, K, B)
        seen_first = g.add("Gather", seen_one, self._first, axis=2)  # (n, 1, S, B)

        by_score = g.add("Concat", self._whole([0, 0, 0]), n_classes, self._whole([-1]), axis=0)
        checked = g.add("ReduceSum", g.add("Reshape", value_two, by_score), self._whole([4]), keepdims=0)
        by_scores = g.add("Concat", self._whole([0, 0]), n_classes, self._whole([-1, 2, 3]), axis=0)
        unseen = g.add("ReduceSum", g.add("Reshape", after_two, by_scores), self._whole([3]), keepdims=0)
        unseen = g.add("ReduceMax", g.add("Gather", unseen, self._whole([1, 2]), axis=4), axes=[4], keepdims=0)
        unseen = g.add("ReduceSum", unseen, self._whole([3]), keepdims=0)  # (n, S, B)
        unchecked = g.add("Mul", worth, g.add("Unsqueeze", unseen, self._whole([1])))  # (n, W, S, B)

        second = g.add("Gather", price, self._second, axis=1)
        paid = g.add(
            "Add", g.add("Mul", self._shaped(second, [-1, 1, len(self._pairs), 1]), seen_first), self._too_many(2)
        )
        fee = self._shaped(g.add("Gather", "check_usd", self._second), [1, 1, len(self._pairs), 1])
        checked = g.add("Sub", checked, g.add("Mul", fee, seen_first))
        g.add("Greater", checked, unchecked, output="is_checked")
        value = g.add("Sub", g.add("Max", checked, unchecked), paid)
        by_first = g.add("Concat", self._whole([0, 0, n, n - 1]), n_classes, axis=0)
        value = g.add("Reshape", value, by_first)  # (n, W, K, K - 1, B)
        asked = g.add("ReduceMax", value, axes=[3], keepdims=0)  # (n, W, K, B)
        place = g.add("ArgMax", value, axis=3, keepdims=0)
        own = g.constant(np.arange(n)[:, None], np.int64)
        after_own = g.add("Cast", g.add("GreaterOrEqual", place, own), to=TensorProto.INT64)
        stopped = g.add("Mul", worth, right_one)
        whom = g.add("Add", place, after_own)
        g.add("Where", self._is_more(asked, stopped), whom, self._nobody(), output="second")
        return g.add("ReduceSum", g.add("Max", asked, stopped), self._whole([3]), keepdims=0)

    def _first_call(self, price: str, success: str, value_one: str) -> None:
        """Adds `first`, `direct` and `is_plan`."""
        g = self._graph
        cost, worth = g.add("Unsqueeze", price, self._whole([1])), g.add("Unsqueeze", "worth_usd", self._whole([2]))
        planned = g.add("Sub", g.add("Sub", value_one, cost), "check_usd")  # (n, W, K)
        direct = g.add("Sub", g.add("Mul", worth, g.add("Unsqueeze", success, self._whole([1]))), cost)
        g.add("ArgMax", planned, axis=2, keepdims=0, output="first")
        g.add("ArgMax", direct, axis=2, keepdims=0, output="direct")
        best_plan, best_direct = (g.add("ReduceMax", each, axes=[2], keepdims=0) for each in (planned, direct))
        g.add("Identity", self._is_more(best_plan, best_direct), output="is_plan")

    # ---- small parts ---------------------------------------------------------------------------------------------

    def _is_more(self, value: str, other: str) -> str:
        """Whether a value is larger by more than rounding."""
        g = self._graph
        margin = g.add("Mul", g.add("Abs", other), g.constant(1e-6))
        return g.add("Greater", value, g.add("Add", other, margin))

    def _too_many(self, n_calls: int) -> str:
        """A cost above any worth where max_calls is below n_calls, else 0."""
        g = self._graph
        few = g.add("Less", "max_calls", self._whole(n_calls))
        return g.add("Where", few, g.constant(FORBIDDEN_USD), g.constant(0.0))

    def _shaped(self, value: str, shape: list[int]) -> str:
        return self._graph.add("Reshape", value, self._whole(shape))

    def _nobody(self) -> str:
        return self._whole(-1)

    def _whole(self, values: Any) -> str:
        return self._graph.constant(values, np.int64)
