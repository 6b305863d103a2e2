"""Checks: what can be learned of an answer once it is there.

A check is any function of prompt and answer that returns a `Verdict`, a bool or a score in 0..1. One module for each
kind that is shipped:

normalise       the final answer of a text in a normal form; whether two answers are the same
schema          an answer that must be JSON of a schema (extra `checks`)
pattern         an answer that a regular expression must match (extra `checks`)
python_tests    code that must pass tests, in a process of its own
judge           a judge prompt through any function that asks a model
"""

from router.checks.verdict import AsyncCheck, Check, Verdict, verdict_of

__all__ = ["AsyncCheck", "Check", "Verdict", "verdict_of"]
