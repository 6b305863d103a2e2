"""Asks a model all tasks and makes log rows of its answers, with the price of the machine's time; and tiers.toml."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from servers import CONTEXT_WINDOW, MOST_TOKENS, Model
from tasks import EXAMPLES, Task

from router.checks.normalise import normalise


@dataclass(frozen=True, kw_only=True)
class CorePrice:
    """What one core of this machine costs. All figures are assumptions: put in your own.

    watts: that a busy core draws. electricity_usd_per_kwh: what a kilowatt-hour costs. bandwidth_usd_per_hour: network;
    nothing leaves this machine. purchase_usd: the machine's price, for one of its cores. years: that it is used.
    utilization: share of these years in which it works; the rest of the time must be paid for, too.
    """

    watts: float = 10.0
    electricity_usd_per_kwh: float = 0.30
    bandwidth_usd_per_hour: float = 0.0
    purchase_usd: float = 100.0
    years: float = 4.0
    utilization: float = 0.3

    @property
    def electricity_usd_per_hour(self) -> float:
        """What a busy core draws in an hour."""
        return self.watts / 1000 * self.electricity_usd_per_kwh

    @property
    def hardware_usd_per_hour(self) -> float:
        """The purchase, spread over all hours of its years."""
        return self.purchase_usd / (self.years * 365.25 * 24)

    @property
    def usd_per_second(self) -> float:
        """(E + B + S) / U: electricity, bandwidth and the share of the purchase, over utilization."""
        hourly = self.electricity_usd_per_hour + self.bandwidth_usd_per_hour + self.hardware_usd_per_hour
        return hourly / self.utilization / 3600


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a model said to all tasks. rows: of the outcome log, in the order of the tasks. core_s: time it computed."""

    model: Model
    rows: list[dict[str, Any]]
    core_s: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(row["correct"] for row in self.rows) / len(self.rows)

    @property
    def n_tokens(self) -> int:
        """Input and output tokens of all tasks."""
        return sum(row["input_tokens"] + row["output_tokens"] for row in self.rows)

    @property
    def mtok_per_hour(self) -> float:
        """Million tokens that one busy core serves in an hour."""
        return self.n_tokens / 1e6 / (self.core_s / 3600)


def ask_all(model: Model, tasks: Sequence[Task], price: CorePrice, folder: Path, on_task: Callable[[], None]) -> Asked:
    """Ask a model all tasks, one after the other, in this process, which must do nothing else meanwhile.

    An attempt costs its processor time, which is nearly the same however busy the machine is. folder: for the model's
    file. on_task: called after each task.
    """
    server = model.serve(folder)
    server.handle_chat_completions({"messages": [{"role": "user", "content": EXAMPLES[0][0]}]})  # reads the examples
    rows, core_s = [], 0.0
    for task in tasks:
        request = {"messages": [{"role": "user", "content": task.prompt}], "max_tokens": MOST_TOKENS}
        asked_at, began, began_core = datetime.now(UTC), time.perf_counter(), time.process_time()
        response = server.handle_chat_completions(request)
        spent = time.process_time() - began_core
        text, usage = response["choices"][0]["message"]["content"], response["usage"]
        core_s += spent
        rows.append({
            "prompt": task.prompt,
            "dataset": task.kind,
            "model": model.name,
            "provider": model.provider,
            "correct": task.is_right(text),
            "answer": normalise(text),
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "cached_input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cost_usd": spent * price.usd_per_second,
            "latency_ms": (time.perf_counter() - began) * 1000,
            "timestamp": asked_at,
        })  # fmt: skip
        on_task()
    return Asked(model=model, rows=rows, core_s=core_s)


def tiers_toml(asked: Sequence[Asked], price: CorePrice, machine: str) -> str:
    """The text of tiers.toml: one tier of one offer for each model, at the price of this machine's time."""
    text = [f"# Two real models on one core of this machine: {machine}.", "# The prices are assumptions of CorePrice."]
    for each in asked:
        hourly = (
            f"electricity_usd_per_hour = {price.electricity_usd_per_hour:.4g}",
            f"bandwidth_usd_per_hour = {price.bandwidth_usd_per_hour:.4g}",
            f"hardware_usd_per_hour = {price.hardware_usd_per_hour:.4g}",
            f"utilization = {price.utilization:.4g}",
            f"mtok_per_hour = {each.mtok_per_hour:.4g}",
        )
        text += [
            "",
            "[[tiers]]",
            f'name = "{each.model.tier}"',
            f"[[tiers.offers]]  # {each.model.package}",
            f'model = "{each.model.name}"',
            f'provider = "{each.model.provider}"',
            'region = "local"',
            f"context_window = {CONTEXT_WINDOW}",
            f"self_hosted = {{ {', '.join(hourly)} }}",
        ]
    return "\n".join(text) + "\n"
