"""The outcome log: decisions, what was tried for them and, later, their outcomes; on disk, one row per attempt.

Each serving process appends lines to a journal of its own, which needs nothing but the standard library. `compact`
brings the journals of all processes into Parquet, one row per decision, joined with what is known of its outcome:

    day=2026-11-24/attempts-<batch>.parquet    the log, in the format of data/README.md; the day is the decision's, UTC
    .journal/<writer>.jsonl                    what was appended; hidden, so that no reader takes it for a log
    .journal/state.json                        how far the journals are in Parquet, and outcomes without a decision
    .index/<day>-<digest>                      which ids the files of a day hold; can be deleted at any time
    .unreadable/                               what compaction could not read, with the reasons; hidden too
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any

from router.checks import Verdict
from router.decision import Decision
from router.errors import PromptError
from router.outcomes.columns import OF_A_DECISION, checked, checked_attempt, microseconds
from router.outcomes.compaction import Compaction, compact
from router.outcomes.storage import Journal, extra, files_at
from router.prompt import Messages, prompt_text, valid_unicode

logger = logging.getLogger(__name__)

_fields = attrgetter(*OF_A_DECISION)
_USUAL_TYPES = ((str, str, float, str, str, str), (str, type(None), float, str, str, str))


class OutcomeLog:
    """Takes decisions and their outcomes, from many threads, processes and forks at once.

    >>> log = OutcomeLog("logs/router")                                                     # doctest: +SKIP
    >>> log.decided(decision, prompt)                                                       # doctest: +SKIP
    >>> log.outcome(decision.decision_id, output_tokens=212, cost_usd=0.0004)               # doctest: +SKIP
    >>> log.outcome(decision.decision_id, correct=True)   # days later, in any process      # doctest: +SKIP
    >>> log.compact()                                     # now and then, in any process    # doctest: +SKIP

    path: a folder, or a URL of fsspec (`s3://...`). Object stores cannot append, so lines wait in memory for `flush`.
    keep_prompts: store the text of prompts. Without it a row has only `prompt_id`, a digest; to train on such rows,
        put a `prompts.parquet` (prompt_id, prompt) into the folder of their day. The digest hides a prompt from
        readers, but who guesses the text can check the guess.
    keep_answers: store the text of answers, so that `broker outcomes label` can look at them.

    `decided`, `outcome` and `attempt` never raise and never wait for another process: what cannot be stored (a full
    disk, a value of another type or out of range) is counted in `n_lost` and logged as a warning. What they have put
    into a folder outlives the process. Only the owner may read the files, and open the folders, that the log makes.
    Needs POSIX; `compact` and URLs need the extra `outcomes`.
    """

    def __init__(self, path: str | Path, *, keep_prompts: bool = False, keep_answers: bool = False) -> None:
        self.n_lost = 0
        self._keep_prompts = keep_prompts
        self._keep_answers = keep_answers
        self._trouble = ""
        self._files = files_at(path)
        self._latest = self._files.latest_write()
        self._journals: dict[int, Journal] = {}

    def decided(
        self,
        decision: Decision,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        timestamp: datetime | None = None,
        is_planned: bool = False,
    ) -> None:
        """Take a decision, once, with the prompt or messages it was made for; a second time within a day is ignored.

        timestamp: when it was asked, in the years 1 to 9999; UTC where it has no time zone, now where missing.
        is_planned: a plan that looks at answers took the decision's place. Then the row has no propensity, since who
            answered depends on the answers, too.
        """
        try:
            at = time.time_ns() // 1000 if timestamp is None else microseconds(timestamp)
            _check(decision)
            asked = json.dumps(self._asked(prompt, messages), ensure_ascii=False)[1:-1]
            planned = '"is_planned":true,' if is_planned else ""
            self._append(f'{{"at":{at},{asked},{planned}"decision":{decision.to_json()}}}\n')
        except Exception as error:  # Whatever it is, it must not stop serving.
            self._lose("a decision", error)

    def outcome(
        self,
        decision_id: str,
        *,
        correct: float | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cached_input_tokens: int | None = None,
        cache_write_tokens: int | None = None,
        reasoning_tokens: int | None = None,
        tokens_estimated: bool | None = None,
        cache_hit: bool | None = None,
        cost_usd: float | None = None,
        latency_ms: float | None = None,
        model: str | None = None,
        provider: str | None = None,
        tier: str | None = None,
        ended: str | None = None,
        answer: str | None = None,
        checks: Mapping[str, Verdict] | None = None,
        judged_by: str | None = None,
        comment: str | None = None,
        answer_text: str | None = None,
    ) -> bool:
        """Take what became of a decision, at once or piece by piece; a later value replaces an earlier one.

        Returns whether it is in the log; False where it could not be stored.
        correct: whether the answer was right, or a score from 0 to 1; missing as long as nobody has judged it.
        judged_by, comment: who or what judged the answer, and what they said of it.
        answer_text: the answer as the client got it, stored only where the log keeps answers.
        cached_input_tokens, cache_write_tokens: those of the input tokens that the provider read from its prompt cache,
            or wrote into it. reasoning_tokens: those of the output tokens that are not in the visible answer.
        tokens_estimated: the provider has not counted the tokens, so input_tokens, output_tokens or both are estimates.
        cache_hit: an earlier answer was given again and no model was asked, so there are no tokens and no cost.
        model, provider, tier: who answered, where it was not the decision's offer; an empty tier where it was no offer
            of any. The propensity is that of the tier chosen, so a row that another tier answered has none.
        ended: "complete" where the answer is whole; "cut" where the provider broke it off, "failed" where none began,
            "left" where the client did not wait for its end. `attempt` logs what was tried before.
        answer: the final answer in a normal form, of which only a digest is stored: it says which answers are the same.
        checks: what was said of the answer by each check, by name; stored as `check_NAME` and `check_NAME_usd`.
        decision_id may also be the attempt_id of an answer that `attempt` took.
        """
        try:
            given = {
                "correct": correct,
                "input_tokens": input_tokens,
                "output_tokens": output_tokens,
                "cached_input_tokens": cached_input_tokens,
                "cache_write_tokens": cache_write_tokens,
                "reasoning_tokens": reasoning_tokens,
                "tokens_estimated": tokens_estimated,
                "cache_hit": cache_hit,
                "cost_usd": cost_usd,
                "latency_ms": latency_ms,
                "model": model,
                "provider": provider,
                "tier": tier,
                "ended": ended,
                "judged_by": judged_by,
                "comment": comment,
                "answer_text": answer_text if self._keep_answers else None,
                **_looked_at(answer, checks),
            }
            values = {name: checked(name, value) for name, value in given.items() if value is not None}
            event = {"at": self._now(), "outcome_of": checked("decision_id", decision_id), **values}
            self._append(json.dumps(event, ensure_ascii=False) + "\n")
        except Exception as error:  # Whatever it is, it must not stop serving.
            self._lose("an outcome", error)
            return False
        return True

    def attempt(
        self,
        decision: Decision,
        *,
        ended: str,
        model: str,
        provider: str,
        tier: str,
        attempt_id: str | None = None,
        prompt: str | None = None,
        answer: str | None = None,
        checks: Mapping[str, Verdict] | None = None,
        **outcome: Any,
    ) -> None:
        """Take an attempt whose answer the client did not get: it failed, or a plan returned another answer.

        It becomes a row of its own, with an `attempt_id`, beside the decision's, and has no propensity. Training uses
        it where it has a prompt and a whole answer.
        ended: "failed" where no answer began, "cut" where it broke off, "complete" where the answer is whole, "left"
            where nobody waited for it.
        model, provider, tier: who was asked. attempt_id: 32 hexadecimal digits by which `outcome` finds the row; drawn
        where missing. prompt: what was asked, where the answer is whole.
        answer, checks: as `outcome` takes them, and so are the others: the tokens, `tokens_estimated`, `cost_usd` and
        `latency_ms`.
        """
        try:
            took_us = round(1000 * outcome.get("latency_ms", 0))
            names = {"decision_id": decision.decision_id, "request_id": decision.request_id}
            source = {"bundle_id": decision.bundle_id, "price_table_id": decision.price_table_id}
            given = {"ended": ended, "model": model, "provider": provider, "tier": tier, **outcome}
            given |= _looked_at(answer, checks)
            row = {"attempt_id": attempt_id or os.urandom(16).hex(), **names, **source}
            row |= {name: value for name, value in given.items() if value is not None}
            if prompt is not None:
                row |= self._asked(prompt, None)
            event = {"at": time.time_ns() // 1000 - took_us, **checked_attempt(row)}
            self._append(json.dumps(event, ensure_ascii=False) + "\n")
        except Exception as error:  # Whatever it is, it must not stop serving.
            self._lose("an attempt", error)

    def flush(self) -> None:
        """Hand the lines in memory to the object store; does nothing for a folder, where no line waits.

        Raises OSError, and keeps the lines, where the store does not take them.
        """
        if journal := self._journals.get(os.getpid()):
            journal.flush()

    def close(self) -> None:
        """Flush and end this process's journal. The log can still be used: it then starts another journal."""
        if journal := self._journals.get(os.getpid()):
            journal.close()

    def __enter__(self) -> OutcomeLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def compact(self) -> Compaction:
        """Bring all that any process has taken so far into Parquet; the next compaction takes what comes meanwhile.

        One process at a time compacts a log. In a folder the others wait; an object store cannot make them wait, so
        BlockingIOError is raised. What cannot be read is put aside in `.unreadable/` and counted.
        Raises ImportError without pyarrow, and OSError where files cannot be read or written; then nothing is lost,
        and the next compaction begins again.
        """
        self.flush()
        extra("pyarrow")
        with self._files.alone():
            return compact(self._files)

    def _asked(self, prompt: str | None, messages: Messages | None) -> dict[str, str | None]:
        """The columns `prompt_id` and `prompt`; None where a prompt cannot be read, or is not kept."""
        try:
            text = valid_unicode(prompt_text(prompt, messages))
        except PromptError:  # The decision is a fallback whose reason says so.
            return {"prompt_id": None, "prompt": None}
        return {"prompt_id": _digest(text), "prompt": text if self._keep_prompts else None}

    def _now(self) -> int:
        """Microseconds since 1970, later than all earlier outcomes: the clock may go back."""
        self._latest = max(time.time_ns() // 1000, self._latest + 1)
        return self._latest

    def _append(self, line: str) -> None:
        process = os.getpid()  # A fork writes a journal of its own.
        journal = self._journals.get(process) or self._journals.setdefault(process, self._files.journal())
        journal.append(line.encode("utf-8", "replace"))

    def _lose(self, what: str, error: Exception) -> None:
        self.n_lost += 1
        if str(error) != self._trouble:
            logger.warning("%s is not in the outcome log: %s", what, error)
        self._trouble = str(error)


def _digest(text: str) -> str:
    """16 hexadecimal digits that are the same for the same text."""
    return sha256(text.encode()).hexdigest()[:16]


def _looked_at(answer: str | None, checks: Mapping[str, Verdict] | None) -> dict[str, Any]:
    """The columns that say which answer it was, and what checks said of it."""
    columns: dict[str, Any] = {} if answer is None else {"answer": _digest(valid_unicode(answer))}
    for name, verdict in (checks or {}).items():
        columns |= {f"check_{name}": verdict.score, f"check_{name}_usd": verdict.cost_usd}
    return columns


def _check(decision: Decision) -> None:
    """Raise TypeError or ValueError where a value of the decision cannot be in its column."""
    offer, fields = decision.offer, _fields(decision)
    names = {} if offer is None else {"model": offer.model, "provider": offer.provider}
    has_usual_types = tuple(map(type, fields)) in _USUAL_TYPES and {*map(type, names.values())} <= {str}
    if not has_usual_types or not 0 <= decision.propensity <= 1:  # Asked first, since it is much faster.
        checked_attempt({**dict(zip(OF_A_DECISION, fields, strict=True)), **names})
