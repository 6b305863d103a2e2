"""SQL that reads the values of a row, all of them text, and says what is wrong with a broken row."""

from __future__ import annotations

from training.log.columns import is_given
from training.log.readers import PROMPTS_FILE


def number(name: str) -> str:
    """SQL for a column as a number; NULL where it is empty or not a number."""
    return f"CASE WHEN isfinite(TRY_CAST({name} AS DOUBLE)) THEN TRY_CAST({name} AS DOUBLE) + 0.0 END"  # no -0.0


def label(text: str) -> str:
    """SQL for a text that says true, false or a number as a number; NULL where it is empty or neither."""
    return f"CASE lower({text}) WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0 ELSE {number(text)} END"


LABEL = "true, false or a number in 0..1"
AMOUNT = "a number from 0 to 1e12"


def is_no_label(text: str) -> str:
    """SQL for whether a text has a value that is not LABEL."""
    return f"{is_given(text)} AND coalesce(NOT {label(text)} BETWEEN 0 AND 1, true)"


def is_no_amount(text: str) -> str:
    """SQL for whether a text has a value that is not AMOUNT."""
    return f"{is_given(text)} AND coalesce(NOT {number(text)} BETWEEN 0 AND 1e12, true)"


CORRECT = label("correct")
_EPOCH = "epoch / CASE WHEN epoch < 1e11 THEN 1 WHEN epoch < 1e14 THEN 1e3 WHEN epoch < 1e17 THEN 1e6 ELSE 1e9 END"
_DAY = (  # 20260131, as a number or a text
    "CASE WHEN epoch BETWEEN 19700101 AND 21991231 "
    "THEN TRY_STRPTIME(regexp_replace(timestamp, '\\.0$', ''), '%Y%m%d')::TIMESTAMPTZ END"
)
_SPREADSHEET = (  # days since the end of 1899, as spreadsheets count them: 2000 to 2099
    "CASE WHEN epoch BETWEEN 36526 AND 73050 "
    "THEN (TIMESTAMP '1899-12-30' + to_seconds(round(epoch * 86400)))::TIMESTAMPTZ END"
)
ANY_TIME = (
    f"coalesce(TRY_CAST(timestamp AS TIMESTAMPTZ), {_DAY}, {_SPREADSHEET}, TRY(to_timestamp({_EPOCH})))::TIMESTAMP"
)
TIMESTAMP = "CASE WHEN any_time BETWEEN TIMESTAMP '1970-01-01' AND TIMESTAMP '2199-12-31' THEN any_time END"
_IS_CACHE_HIT = "TRY_CAST(cache_hit AS BOOLEAN)"  # No model was asked, so nothing was billed.
BILLED = f"""
    CASE WHEN {_IS_CACHE_HIT} THEN NULL ELSE cost_usd END AS cost_usd,
    CASE WHEN {_IS_CACHE_HIT} THEN NULL ELSE output_tokens END AS output_tokens,
    CASE WHEN {_IS_CACHE_HIT} OR TRY_CAST(tokens_estimated AS BOOLEAN) THEN NULL ELSE input_tokens END AS input_tokens
"""
IS_INCOMPLETE = "coalesce(lower(trim(ended)) IN ('cut', 'failed', 'left'), false)"
_AMOUNTS = ("input_tokens", "output_tokens", "cost_usd", "latency_ms", "usd_per_mtok_input", "usd_per_mtok_output")
_BROKEN_AMOUNTS = " ".join(f"WHEN {is_no_amount(name)} THEN '{name} is not {AMOUNT}'" for name in _AMOUNTS)
IN_FUTURE = "timestamp is more than a day in the future"
BAD_LABEL = f"correct is not {LABEL}"
ANSWER = f"CASE WHEN answer = '' OR {is_given('answer')} THEN hash(answer) END"
"""A digest: whether two answers are equal is all that is asked of them. An empty text is an answer."""
REASON = f"""
    CASE
        WHEN defect IS NOT NULL THEN defect
        WHEN NOT {is_given("model")} THEN 'no model'
        WHEN prompt IS NULL AND messages IS NOT NULL THEN 'messages is not a chat'
        WHEN prompt IS NULL AND has_nested_prompt THEN 'prompt is a list or an object; put chats into `messages`'
        WHEN prompt IS NULL AND prompt_id IS NOT NULL THEN 'no prompt, and prompt_id is not in a {PROMPTS_FILE} beside'
        WHEN coalesce(prompt, '') = '' THEN 'no prompt'
        WHEN {is_no_label("correct")} THEN '{BAD_LABEL}'
        {_BROKEN_AMOUNTS}
        WHEN {is_given("propensity")}
            AND coalesce(NOT {number("propensity")} BETWEEN 0 AND 1 OR {number("propensity")} = 0, true)
            THEN 'propensity is not a number above 0 and at most 1'
        WHEN {is_given("timestamp")} AND {TIMESTAMP} IS NULL THEN 'timestamp is not a point in time from 1970 to 2199'
        WHEN any_time > now()::TIMESTAMP + INTERVAL 1 DAY THEN '{IN_FUTURE}'
        WHEN {is_given("parsed")} AND TRY_CAST(parsed AS BOOLEAN) IS NULL THEN 'parsed is not true or false'
    END
"""
