"""Running a plan: whoever calls what a Walk says, in threads or in an event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from typing import Any

from router.plan_result import Answer, PlanResult
from router.portfolio.tiers import Offer
from router.walk import Calls, Happened, Walk

Ask = Callable[[Offer], str | Answer]
"""Sends the caller's prompt to an offer and returns its answer. Any exception is a failed call."""

AsyncAsk = Callable[[Offer], Awaitable[str | Answer]]
"""The same, awaited."""


def run(walk: Walk) -> PlanResult:
    """Go the way in this thread; two calls at once are made in threads of their own."""
    with closing(walk.steps()) as steps:
        try:
            calls = next(steps)
            while True:
                calls = steps.send(_called_at_once(calls) if len(calls) > 1 else (_not_awaited(calls[0]),))
        except StopIteration as end:
            result: PlanResult = end.value
            return result


async def arun(walk: Walk) -> PlanResult:
    """Go the way in the event loop. Functions that are not async are called in threads, which do not stop it."""
    with closing(walk.steps()) as steps:
        try:
            calls = next(steps)
            while True:
                calls = steps.send(tuple(await asyncio.gather(*map(_awaited, calls))))
        except StopIteration as end:
            result: PlanResult = end.value
            return result


def _called_at_once(calls: Calls) -> tuple[Happened, ...]:
    with ThreadPoolExecutor(len(calls)) as threads:
        waiting = [threads.submit(copy_context().run, _not_awaited, call) for call in calls]
        return tuple(each.result() for each in waiting)


def _called(call: Callable[[], Any]) -> Happened:
    began, value, failure = time.perf_counter(), None, None
    try:
        value = call()
    except Exception as error:
        failure = error
    return Happened(value, failure, (time.perf_counter() - began) * 1000)


def _not_awaited(call: Callable[[], Any]) -> Happened:
    came = _called(call)
    if inspect.iscoroutine(came.value):
        came.value.close()  # else Python warns that it was never awaited
        return came._replace(value=None, error=TypeError("the function is async; use arun"))
    return came


async def _awaited(call: Callable[[], Any]) -> Happened:
    began = time.perf_counter()
    came = _called(call) if inspect.iscoroutinefunction(call) else await asyncio.to_thread(_called, call)
    if not inspect.isawaitable(came.value):
        return came
    value, failure = None, None
    try:
        value = await came.value
    except Exception as error:
        failure = error
    return Happened(value, failure, (time.perf_counter() - began) * 1000)
