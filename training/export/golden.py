"""Golden prompts: fixed prompts with the decisions that a sound copy of the bundle makes on them."""

from __future__ import annotations

from typing import Any

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


def golden_entries(router: Router) -> list[dict[str, Any]]:
    """What the router decides on the golden prompts, without dials and at the bundle's own prices.

    One entry per prompt, with the keys of `golden.jsonl`; `models/README.md` describes them.
    """
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
