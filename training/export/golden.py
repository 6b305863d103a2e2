"""Golden prompts: fixed prompts with the decisions and plans that a sound copy of the bundle makes on them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from router.bundle.manifest import GOLDEN_FILE
from router.plans.dial import WORTHS
from router.plans.planner import GOLDEN_PLANS_FILE, MOST_CALLS
from router.router import Router

GOLDEN_PROMPTS = (
    "",
    "Hello!",
    "What is 17 * 23?",
    "Prove that the square root of 2 is irrational.",
    "Summarise the following text in one sentence: The river rose all night, and by morning the bridge was gone.",
    "Write a Python function that returns the n-th Fibonacci number, with a docstring and type hints.",
    "SELECT name, count(*) FROM orders GROUP BY name HAVING count(*) > 3; -- explain this query",
    "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive? Answer with the time only.",
    "Extract every date as JSON: 'Signed on 3 May 2021, valid until 2024-05-03, renewed 04/05/24.'",
    "Translate into German: The committee postponed the decision once more.",
    "请用一句话解释什么是量子纠缠。",
    "一个水池有两个进水管，单独注满分别需要6小时和4小时，一起开需要多久？",
    "¿Cuál es la diferencia entre un virus y una bacteria?",
    "東京から京都まで新幹線で何時間かかりますか？",
    "Объясни теорему Пифагора простыми словами.",
    "🚀🧪 What do these emoji suggest? ❤️‍🔥",
    "Three boxes are labelled apples, oranges and mixed; every label is wrong. You may draw one fruit from one box. "
    "Which box do you draw from, and how do you then label all three?",
    "Review this contract clause for risks to the tenant: 'The landlord may enter at any time without notice.'",
    "def f(x):\n    return [i for i in range(x) if all(i % j for j in range(2, i))]\n\nWhat does f(10) return?",
    "word " * 600,
)
"""The same for all bundles, so that none of them holds a prompt of a log."""


_LEAST_USD = 1e-9


def golden_files(router: Router) -> dict[str, str]:
    """The golden files of the router's bundle: their names and texts. `models/README.md` describes them.

    router: at the bundle's own prices and without a policy. A bundle that makes no plans has no golden plans.
    """
    files = {GOLDEN_FILE: _text(_decisions(router))}
    if router.bundle.planner is not None:
        files[GOLDEN_PLANS_FILE] = _text(_plans(router, router.bundle.planner.known.names[:1]))
    return files


def _text(entries: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _decisions(router: Router) -> list[dict[str, Any]]:
    """What the router decides on the golden prompts without dials."""
    entries = []
    for prompt in GOLDEN_PROMPTS:
        decision = router.route(prompt)
        entries.append(
            {
                "prompt": prompt,
                "context_tokens": decision.context_tokens,
                "slack": decision.slack,
                "worth_usd": decision.worth_usd,
                "success": list(decision.success.values()),
                "output_tokens": list(decision.output_tokens.values()),
                "cost_usd": list(decision.cost_usd.values()),
                "tier": decision.tier,
                "familiarity": decision.familiarity,
            }
        )
    return entries


def _plans(router: Router, checks: Collection[str]) -> list[dict[str, Any]]:
    """The plans for the golden prompts, each at another worth of a correct answer, from careful to cheap."""
    entries = []
    for number, prompt in enumerate(GOLDEN_PROMPTS):
        worth = _clear_worth(router, prompt, checks, np.roll(WORTHS, -number))
        plan = router.plan(prompt, checks=checks, max_calls=MOST_CALLS, worth_usd=worth)
        entries.append(
            {
                "prompt": prompt,
                "checks": list(checks),
                "max_calls": MOST_CALLS,
                "worth_usd": plan.worth_usd,
                "tier": plan.tier,
                "is_direct": plan.is_direct,
                "success": plan.success,
                "cost_usd": plan.cost_usd,
            }
        )
    return entries


def _clear_worth(router: Router, prompt: str, checks: Collection[str], worths: np.ndarray) -> float:
    """The first worth, in USD, that may be a thousandth lower or higher and the plan stays the same.

    Where two plans are worth the same, rounding decides, and another machine may choose the other one.
    worths: in costs of the best tier on this prompt; the first one is taken where none is clear.
    """
    cost_usd = max(router.route(prompt).cost_usd[router.bundle.manifest.best_tier], _LEAST_USD)

    def is_clear(worth_usd: float) -> bool:
        lower, same, higher = (
            router.plan(prompt, checks=checks, max_calls=MOST_CALLS, worth_usd=worth_usd * factor).lines
            for factor in (0.999, 1, 1.001)
        )
        return lower == same == higher

    in_usd: list[float] = (worths * cost_usd).tolist()
    return next(filter(is_clear, in_usd), in_usd[0])
