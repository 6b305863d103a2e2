"""Running the plan graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime

from router.plans.checks import CheckModel

PLAN_OUTPUTS = (
    "first", "direct", "is_plan", "second", "is_checked", "third", "after_one", "after_two", "after_three",
)  # fmt: skip


@dataclass(frozen=True)
class PlanTables:
    """The best plan of each of n prompts at each of W worths, as the graph gives it.

    Of K tiers there are S = K (K - 1) ordered pairs: pair (i, j) is number i (K - 1) + j, less 1 where j > i. B: number
    of classes of the check's scores, 1 without a check. O = B x B: of the first answer and of the second.

    is_plan: whether looking at answers pays; bool (n, W). Where not, tier `direct` is asked alone, int (n, W).
    first: the tier to ask first, int (n, W).
    second: the tier to ask after each class of each first answer, -1 to return that one; int (n, W, K, B).
    is_checked: whether the second answer is checked, bool (n, W, S, B). Where not, there is no third call.
    third: the tier to ask third, -1 for nobody; int (n, W, S, O, 2: agree or not).
    after_one: P(class), P(class and the first is right); (n, K, B, 2).
    after_two: P(seen), P(seen and the first is right), and the second; (n, S, O, 2, 3).
    after_three: P(seen), P(seen and the first is right), the second, the third; (n, S, K, O, 5 patterns, 4).
    """

    first: np.ndarray
    direct: np.ndarray
    is_plan: np.ndarray
    second: np.ndarray
    is_checked: np.ndarray
    third: np.ndarray
    after_one: np.ndarray
    after_two: np.ndarray
    after_three: np.ndarray


class PlanEngine:
    """The plan graph in a session of ONNX Runtime; safe to share between threads."""

    def __init__(self, graph: bytes, n_threads: int = 1) -> None:
        """Load the graph; raises onnxruntime's own errors where it cannot be loaded, ValueError without an output."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        found = {output.name for output in self._session.get_outputs()}
        if missing := [name for name in PLAN_OUTPUTS if name not in found]:
            raise ValueError(f"the plan graph has no output {', '.join(missing)}")

    def try_out(self, n_tiers: int) -> None:
        """Make a plan for two prompts; raises ValueError where its form is not as it must be, or the graph's error."""
        n, pairs, ones = 2, n_tiers * (n_tiers - 1), np.ones((2, n_tiers), np.float32)
        tables = self.run(ones / 2, ones, ones > 0, np.ones((n, 1), np.float32), None, agreement=True, max_calls=3)
        expected = {
            "first": (n, 1), "direct": (n, 1), "is_plan": (n, 1), "second": (n, 1, n_tiers, 1),
            "is_checked": (n, 1, pairs, 1), "third": (n, 1, pairs, 1, 2), "after_one": (n, n_tiers, 1, 2),
            "after_two": (n, pairs, 1, 2, 3), "after_three": (n, pairs, n_tiers, 1, 5, 4),
        }  # fmt: skip
        for name, shape in expected.items():
            found = getattr(tables, name)
            if found.shape != shape or not np.isfinite(found).all():
                raise ValueError(f"it answers {name} with the shape {found.shape}; expected finite numbers, {shape}")

    def run(
        self,
        success: np.ndarray,
        cost_usd: np.ndarray,
        eligible: np.ndarray,
        worth_usd: np.ndarray,
        check: CheckModel | None,
        *,
        agreement: bool,
        max_calls: int,
    ) -> PlanTables:
        """The best plan of each prompt.

        success, cost_usd: float32 (n, n_tiers); eligible: bool, same shape; worth_usd: float32 (n, n_worths).
        check: the verifier that looks at every answer but the last; None for none.
        agreement: answers are compared. max_calls: 1 to 3.
        """
        n_tiers = success.shape[1]
        feeds = {
            "success": success,
            "cost_usd": cost_usd,
            "eligible": eligible,
            "worth_usd": worth_usd,
            "verdicts": np.ones((2, n_tiers, 1, 2), np.float32) if check is None else check.verdicts_input,
            "check_usd": np.zeros(n_tiers, np.float32) if check is None else check.usd_input,
            "agreement": np.array(agreement),
            "max_calls": np.array(max_calls, np.int64),
        }
        return PlanTables(*self._session.run(list(PLAN_OUTPUTS), feeds))
