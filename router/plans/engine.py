"""Running the plan graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from router.graph_session import session_of
from router.plans.checks import CheckModel

PLAN_OUTPUTS = [
    "first", "direct", "is_plan", "second", "is_checked", "third", "after_one", "after_two", "after_three",
]  # fmt: skip


FORBIDDEN_USD = 1e30
"""The cost that stands for a call that may not be made."""


@dataclass(frozen=True, slots=True)
class PlanTables:
    """The best plan of each of n prompts at each of W worths, as the graph gives it.

    Of several K (tiers) the first is the tier asked first, the next the second, the last the third; of two B (classes
    of the check's scores, one class without a check) likewise.

    is_plan: whether looking at answers pays; bool (n, W). Where not, tier `direct` is asked alone, int (n, W).
    first: the tier to ask first, int (n, W).
    second: the tier to ask after each class of each first answer, -1 to return that one; int (n, W, K, B).
    is_checked: whether the second answer is checked, bool (n, W, K, K, B). Where not, there is no third call.
    third: the tier to ask third, -1 for nobody; int (n, W, K, K, B, B, 2: agree or not).
    after_one: P(class), P(class and the first is right); (n, K, B, 2).
    after_two: P(seen), P(seen and the first is right), and the second; (n, K, K, B, B, 2, 3).
    after_three: P(seen), P(seen and the first is right), the second, the third; (n, K, K, K, B, B, 5 patterns, 4).
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


def look_inputs(check: CheckModel | None, n_tiers: int, *, agreement: bool, max_calls: int) -> dict[str, np.ndarray]:
    """What the graph reads of what a plan may look at; the same for all prompts.

    check: the verifier that looks at every answer but the last; None for none. agreement: answers are compared.
    max_calls: 1 to 3.
    """
    nothing = np.zeros((n_tiers, 1, 2), np.float32)
    return {
        "verdicts": nothing + 1 if check is None else check.verdicts_input[0],
        "verdict_slopes": nothing if check is None else check.verdicts_input[1] - check.verdicts_input[0],
        "check_usd": np.zeros(n_tiers, np.float32) if check is None else check.usd_input,
        "agreement": np.array(agreement),
        "second_call_usd": np.array(0 if max_calls >= 2 else FORBIDDEN_USD, np.float32),
        "third_call_usd": np.array(0 if max_calls >= 3 else FORBIDDEN_USD, np.float32),
    }


class PlanEngine:
    """The plan graph in a session of ONNX Runtime; safe to share between threads."""

    def __init__(self, graph: bytes, n_threads: int = 1) -> None:
        """Load the graph; raises onnxruntime's own errors where it cannot be loaded, ValueError without an output."""
        self._session = session_of(graph, n_threads)
        found = {output.name for output in self._session.get_outputs()}
        if missing := [name for name in PLAN_OUTPUTS if name not in found]:
            raise ValueError(f"the plan graph has no output {', '.join(missing)}")

    def try_out(self, n_tiers: int) -> None:
        """Make a plan for two prompts; raises ValueError where its form is not as it must be, or the graph's error."""
        n, k, ones = 2, n_tiers, np.ones((2, n_tiers), np.float32)
        looks = look_inputs(None, n_tiers, agreement=True, max_calls=3)
        tables = self.run(ones / 2, ones, ones > 0, np.ones((n, 1), np.float32), looks)
        expected = {
            "first": (n, 1), "direct": (n, 1), "is_plan": (n, 1), "second": (n, 1, k, 1), "is_checked": (n, 1, k, k, 1),
            "third": (n, 1, k, k, 1, 1, 2), "after_one": (n, k, 1, 2), "after_two": (n, k, k, 1, 1, 2, 3),
            "after_three": (n, k, k, k, 1, 1, 5, 4),
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
        looks: Mapping[str, np.ndarray],
    ) -> PlanTables:
        """The best plan of each prompt.

        success, cost_usd: float32 (n, n_tiers); eligible: bool, same shape; worth_usd: float32 (n, n_worths).
        looks: of `look_inputs`.
        """
        feeds = {"success": success, "cost_usd": cost_usd, "eligible": eligible, "worth_usd": worth_usd, **looks}
        return PlanTables(*self._session.run(PLAN_OUTPUTS, feeds))
