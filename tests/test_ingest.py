"""Laws of reading a log: what is broken is set aside with a reason, the rest is used, and nothing else escapes."""

import gzip
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import TierError
from router.portfolio.tiers import parse_tiers
from router.prompt import valid_unicode
from training.errors import LogError
from training.log.checked import checked_logs
from training.log.ingest import ingest
from training.log.readers import NOT_UTF8

TIERS_TOML = """
[[tiers]]
name = "small"
offers = [
    { model = "s1", aliases = ["s1-latest"], provider = "east", region = "x", context_window = 2000000, usd_per_mtok_input = 1, usd_per_mtok_output = 2 },
    { model = "s1", provider = "west", region = "x", context_window = 2000000, usd_per_mtok_input = 3, usd_per_mtok_output = 6 },
    { model = "s2", provider = "east", region = "x", context_window = 2000000, usd_per_mtok_input = 1, usd_per_mtok_output = 1 },
]
[[tiers]]
name = "large"
offers = [{ model = "l1", provider = "east", region = "x", context_window = 2000000, usd_per_mtok_input = 10, usd_per_mtok_output = 20 }]
"""  # noqa: E501
TIERS = parse_tiers(TIERS_TOML)
PAIR = [{"prompt": "p", "model": "s1", "correct": True}, {"prompt": "p", "model": "l1", "correct": False}]
NAN = float("nan")


def frame(*rows, **more):
    """A DataFrame of an observed pair and further rows."""
    return pd.DataFrame([*PAIR, *rows]).assign(**more)


def jsonl(*rows):
    return "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows).encode()


def write(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        table = content if isinstance(content, pa.Table) else pa.Table.from_pandas(content, preserve_index=False)
        pq.write_table(table, path)
    return path


@cache
def pair_digest():
    return ingest(pd.DataFrame(PAIR), TIERS).digest


def cell(table, prompt, tier, measure="correct"):
    return getattr(table, measure)[table.prompts.index(prompt), table.tiers.index(tier)]


def broken(path: Path):
    return pq.read_table(path).to_pylist()


def quarantined(log, **settings):
    return ingest(log, TIERS, **settings).summary.quarantined


def is_whole(summary):
    others = [*summary.quarantined.values(), *summary.in_no_tier.values(), summary.incomplete]
    return summary.n_used + sum(others) == summary.n_rows


# What a table holds


def test_unobserved_cells_stay_open():
    table = ingest(frame({"prompt": "q", "model": "l1", "correct": 1}), TIERS)
    assert cell(table, "p", "small") == 1 and cell(table, "p", "large") == 0
    assert np.isnan(cell(table, "q", "small")) and cell(table, "q", "large") == 1


def test_repeats_are_averaged_first_and_then_the_models_of_a_tier():
    rows = [("s1", 1), ("s1", 0), ("s1-latest", 0), ("s2", 1)]  # an alias is its model: s1 a third, s2 one
    table = ingest(frame(*({"prompt": "q", "model": m, "correct": c, "cost_usd": c + 1} for m, c in rows)), TIERS)
    assert cell(table, "q", "small") == pytest.approx((1 / 3 + 1) / 2)
    assert cell(table, "q", "small", "cost_usd") == pytest.approx((1 / 3 + 1) / 2 + 1)
    assert table.summary.repeated == 2


def test_an_unjudged_row_counts_for_tokens_and_cost_only():
    row = {"prompt": "p", "model": "s1", "correct": None, "output_tokens": 100, "cost_usd": 2.0}
    table = ingest(frame(row), TIERS)
    assert cell(table, "p", "small") == 1
    assert cell(table, "p", "small", "output_tokens") == 100 and cell(table, "p", "small", "cost_usd") == 2
    assert table.summary.unjudged == 1


def test_an_unparsed_answer_is_unobserved_where_asked_for():
    log = frame({"prompt": "q", "model": "s1", "correct": 0, "output_tokens": 7, "parsed": False})
    assert cell(ingest(log, TIERS), "q", "small") == 0
    table = ingest(log, TIERS, drop_unparsed=True)
    assert np.isnan(cell(table, "q", "small")) and cell(table, "q", "small", "output_tokens") == 7
    assert (table.summary.unparsed, ingest(log, TIERS).summary.unparsed) == (1, 0)


def test_a_missing_cost_is_tokens_times_the_price_of_the_provider():
    tokens = {"prompt": "q", "correct": 1, "input_tokens": 1e6, "output_tokens": 1e6}
    log = frame(
        {**tokens, "model": "s1", "provider": "west"},
        {**tokens, "model": "l1", "cost_usd": 0.5},
        {**tokens, "model": "s1", "prompt": "unknown provider"},
    )
    table = ingest(log, TIERS)
    assert cell(table, "q", "small", "cost_usd") == 3 + 6
    assert cell(table, "q", "large", "cost_usd") == 0.5
    assert cell(table, "unknown provider", "small", "cost_usd") == (1 + 3) / 2 + (2 + 6) / 2


def test_models_in_no_tier_are_counted_and_no_error():
    table = ingest(frame({"prompt": "only here", "model": "stranger", "correct": 1}), TIERS)
    assert table.summary.in_no_tier == {"stranger": 1} and table.prompts == ["p"]


def test_prompts_are_one_group_where_they_share_a_key_or_all_their_letters():
    log = pd.DataFrame(
        [
            {"prompt": prompt, "model": model, "correct": 1, "question_key": key}
            for prompt, key in [("a?", None), ("A!", None), ("b", "k"), ("c", "k"), ("?", None), ("!", None)]
            for model in ("s1", "l1")
        ]
    )
    table = ingest(log, TIERS)
    group = dict(zip(table.prompts, table.groups, strict=True))
    assert group["a?"] == group["A!"] and group["b"] == group["c"]
    assert len(set(group.values())) == 4


def test_a_long_name_takes_no_room_for_every_prompt():
    table = ingest(frame(dataset="d" * 10_000, question_key="k" * 10_000), TIERS)
    assert table.segments.dtype.itemsize + table.groups.dtype.itemsize < 1_000


def test_the_price_at_the_time_of_an_attempt_is_averaged_and_makes_its_cost():
    tokens = {"prompt": "q", "correct": 1, "input_tokens": 1e6, "output_tokens": 1e6}
    log = frame(
        {**tokens, "model": "s1", "usd_per_mtok_input": 5.0, "usd_per_mtok_output": 7.0},
        {**tokens, "model": "s1", "usd_per_mtok_input": 7.0, "usd_per_mtok_output": 7.0},
        {**tokens, "model": "l1"},
    )
    table = ingest(log, TIERS)
    assert cell(table, "q", "small", "usd_per_mtok_input") == 6 and cell(table, "q", "small", "cost_usd") == 13
    assert np.isnan(cell(table, "q", "large", "usd_per_mtok_output")) and cell(table, "q", "large", "cost_usd") == 30
    again = ingest(log.assign(usd_per_mtok_output=8.0, cost_usd=1.0), TIERS)
    without = ingest(log.drop(columns=["usd_per_mtok_input", "usd_per_mtok_output"]).assign(cost_usd=1.0), TIERS)
    assert again.digest != without.digest
    assert ingest(log.assign(usd_per_mtok_input=None, usd_per_mtok_output=None, cost_usd=1.0), TIERS).digest == (
        without.digest
    )


def test_a_column_of_missing_prices_changes_no_digest():
    names = ("usd_per_mtok_input", "usd_per_mtok_output", "cached_input_tokens", "reasoning_tokens")
    assert ingest(frame(**dict.fromkeys(names)), TIERS).digest == pair_digest()


def test_the_digest_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    n = 3_000
    log = pd.DataFrame(
        {
            "prompt": [f"p{i}" for i in rng.integers(0, 20, n)],  # many repeats: sums of many numbers
            "model": rng.choice(["s1", "s1-latest", "s2", "l1"], n),
            "correct": rng.random(n),
            "cost_usd": 10 ** rng.uniform(-9, 3, n),
            "dataset": rng.choice(["a", "b"], n),
        }
    )
    tables = [ingest(log.sample(frac=1, random_state=seed), TIERS) for seed in range(3)]
    assert len({table.digest for table in tables}) == 1
    assert len({table.cost_usd.tobytes() for table in tables}) == 1
    assert len({tuple(table.segments) for table in tables}) == 1


def test_the_digest_changes_with_an_outcome():
    assert ingest(frame(), TIERS).digest != ingest(frame(correct=True), TIERS).digest


def test_rows_picks_the_same_by_mask_and_by_number():
    table = ingest(frame({"prompt": "q", "model": "l1", "correct": 1}), TIERS)
    mask = np.array([False, True])
    assert table.rows(mask).prompts == table.rows(np.array([1])).prompts == [table.prompts[1]]
    assert table.rows(mask).digest == table.rows(np.array([1])).digest != table.digest


# Formats


def formats():
    csv_text = pd.DataFrame(PAIR).to_csv(index=False)
    yield "a.jsonl", jsonl(*PAIR)
    yield "bom.jsonl", b"\xef\xbb\xbf" + jsonl(*PAIR)
    yield "crlf.jsonl", jsonl(*PAIR).replace(b"\n", b"\r\n")
    yield "blank.ndjson", b"\n \n" + jsonl(*PAIR) + b"\r\n\n"
    yield "no-end.jsonl", jsonl(*PAIR).rstrip()
    yield "a.jsonl.gz", gzip.compress(jsonl(*PAIR))
    yield "a.jsonl.zst", pa.compress(jsonl(*PAIR), "zstd", asbytes=True)
    yield "a.csv", csv_text.encode()
    yield "bom.csv", b"\xef\xbb\xbf" + csv_text.encode()
    yield "bom.csv.gz", gzip.compress(b"\xef\xbb\xbf" + csv_text.encode())
    yield "bom.jsonl.zst", pa.compress(b"\xef\xbb\xbf" + jsonl(*PAIR), "zstd", asbytes=True)
    yield "crlf.csv", csv_text.replace("\n", "\r\n").encode()
    yield "mixed-ends.csv", csv_text.replace("\n", "\r\n", 2).encode()
    yield "semicolon.csv", csv_text.replace(",", ";").encode()
    yield "a.CSV.gz", gzip.compress(csv_text.encode())
    yield "a.parquet", pd.DataFrame(PAIR)
    yield "it's [odd] * name.parquet", pd.DataFrame(PAIR)


@pytest.mark.parametrize(("name", "content"), list(formats()), ids=[name for name, _ in formats()])
def test_every_format_reads_alike(tmp_path, name, content):
    table = ingest(write(tmp_path / name, content), TIERS)
    assert table.digest == pair_digest()
    assert table.summary.n_rows == 2


def test_a_folder_may_mix_formats_and_hold_what_is_no_log(tmp_path):
    write(tmp_path / "a.jsonl", jsonl(PAIR[0]))
    write(tmp_path / "deep" / "b.parquet", pd.DataFrame(PAIR[1:]))
    for name in (".hidden.jsonl", ".cache/c.jsonl", "readme.txt", "quarantine.parquet"):
        write(tmp_path / name, b"no log\n")
    table = ingest(tmp_path, TIERS, quarantine=tmp_path / "quarantine.parquet")
    assert table.summary.n_rows == table.summary.n_used == 2
    assert ingest(f"{tmp_path}/**/*.*", TIERS).digest == table.digest
    assert ingest([tmp_path / "a.jsonl", pd.DataFrame(PAIR[1:])], TIERS).digest == table.digest


def test_quotes_and_newlines_inside_csv_prompts_are_kept(tmp_path):
    prompt = 'say ""\r\n"hi",\nthen\tgo; \\"bye\\"'
    log = pd.DataFrame(PAIR).assign(prompt=prompt, **{"a, b": 'x"\ny'})
    path = tmp_path / "a.csv"
    log.to_csv(path, index=False)
    assert ingest(path, TIERS).prompts == [prompt]


@pytest.mark.parametrize(
    "prompt", ["a\0b", "\x02", "  ", "nan", "é" * 2_500_000, "\u2028", "🙂", "'; DROP TABLE raw;--"]
)
def test_any_text_is_a_prompt(tmp_path, prompt):
    log = pd.DataFrame(PAIR).assign(prompt=prompt)
    path = write(tmp_path / "a.jsonl", jsonl(*log.to_dict("records")))
    assert ingest([log, path], TIERS).prompts == [prompt]


def test_a_lone_surrogate_in_a_frame_is_replaced():
    log = pd.DataFrame(PAIR).astype({"prompt": object}).assign(prompt=pd.Series(["\ud800"] * 2, dtype=object))
    assert ingest(log, TIERS).prompts == ["?"]


@pytest.mark.parametrize(
    ("escaped", "prompt"),
    [
        ("\\ud800", "?"),
        ("a\\udc00\\ud83d", "a??"),
        ("\\ud83d\\ude42 \\uD83D", "🙂 ?"),
        ("\\\\ud800", "\\ud800"),
        ("\\\\\\ud800\\u00e9", "\\?é"),
    ],
)
def test_a_lone_surrogate_in_a_line_is_replaced_as_the_runtime_does(tmp_path, escaped, prompt):
    line = '{"prompt": "' + escaped + '", "model": "%s", "correct": 1}\n'
    assert valid_unicode(json.loads(line % "s1")["prompt"]) == prompt
    chat = '{"messages": [{"role": "user", "content": "' + escaped + '"}], "model": "%s", "correct": 1}\n'
    for each in (line, chat):
        path = write(tmp_path / "a.jsonl", (each % "s1" + each % "l1").encode())
        assert ingest(path, TIERS).prompts == [prompt]


class OnlyPandas:
    """A frame of a library that converts to pandas."""

    def to_pandas(self):
        return pd.DataFrame(PAIR)


def test_a_frame_of_another_library_is_read_alone_and_in_a_list():
    table = pa.Table.from_pandas(pd.DataFrame(PAIR))
    for frame_of_another in (table, OnlyPandas()):
        assert ingest(frame_of_another, TIERS).digest == pair_digest()
        assert ingest([frame_of_another], TIERS).digest == pair_digest()
    polars = pytest.importorskip("polars")
    chat = polars.DataFrame({"messages": [CHAT] * 2, "model": ["s1", "l1"], "correct": [True, None]})
    assert ingest([chat, frame()], TIERS).prompts == ingest([chat.to_pandas(), frame()], TIERS).prompts


@pytest.mark.parametrize("log", [pa.array([1]), pd.Series([1.5])])
def test_what_is_no_frame_is_refused_with_its_type(log):
    with pytest.raises(LogError, match="expected a path, a glob or a DataFrame|; expected a DataFrame"):
        ingest([log], TIERS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_of_another_encoding_says_so(tmp_path, name, encoding):
    text = pd.DataFrame(PAIR).to_csv(index=False) if "csv" in name else jsonl(*PAIR).decode()
    content = text.encode(encoding)
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    [(reason, count)] = ingest([path, frame()], TIERS).summary.quarantined.items()
    assert reason.startswith("cannot be read: the file is UTF-") and "save it again as UTF-8" in reason and count == 1


def test_lines_in_latin_1_say_so_and_cost_only_themselves(tmp_path):
    rows = [*PAIR, {**PAIR[0], "prompt": "café"}]
    texts = {
        "a.csv": pd.DataFrame(rows).to_csv(index=False),
        "b.jsonl": "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows),
    }
    for name, text in texts.items():
        summary = ingest(write(tmp_path / name, text.encode("latin-1")), TIERS).summary
        [reason] = summary.quarantined
        assert "not UTF-8; save the file again as UTF-8" in reason and summary.n_used == 2


CHAT = [
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": None},
    {"role": "user", "content": "new"},
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]}
]


@pytest.mark.parametrize(("chat", "prompt"), [(CHAT, "new\n\n\n\nfirst"), (PARTS, "see")])
def test_a_chat_reads_alike_in_every_format(tmp_path, chat, prompt):
    log = pd.DataFrame({"messages": [chat, chat], "model": ["s1", "l1"], "correct": [1, 0]})
    text = log.assign(messages=json.dumps(chat))
    text.to_csv(tmp_path / "a.csv", index=False)
    write(tmp_path / "b.jsonl", jsonl(*log.to_dict("records"), *text.to_dict("records")))
    write(tmp_path / "c.parquet", log)
    write(tmp_path / "d.parquet", text)
    table = ingest([tmp_path, log, text], TIERS)
    assert table.prompts == [prompt] and table.summary.n_used == table.summary.n_rows == 14


def test_messages_that_are_not_a_chat_are_broken(tmp_path):
    not_chats = ["nope", [], {}, [1], [{"role": "user", "content": 5}], "[" * 100_000]
    rows = [{"messages": messages, "model": "s1", "correct": 1} for messages in not_chats]
    path = write(tmp_path / "a.jsonl", jsonl(*PAIR, *rows))
    for log in (path, [pd.DataFrame(PAIR), pd.DataFrame(rows)]):
        assert ingest(log, TIERS).summary.quarantined == {"messages is not a chat": len(rows)}


def test_prompts_parquet_fills_in_for_its_own_folder_only(tmp_path):
    for folder, id_type in (("one", "int64"), ("two", "str"), ("three", "float64")):
        ids = pd.DataFrame({"prompt_id": [1, 1, 2], "model": ["s1", "l1", "s1"], "correct": 1})
        write(tmp_path / folder / "log.parquet", ids.astype({"prompt_id": "int64"}))
        known = pd.DataFrame({"prompt_id": [1], "prompt": [folder], "dataset": ["d"], "question_key": [7]})
        write(tmp_path / folder / "prompts.parquet", known.astype({"prompt_id": id_type}))
    table = ingest(tmp_path, TIERS)
    assert sorted(table.prompts) == ["one", "three", "two"]
    assert set(table.segments) == {"d"} and set(table.groups) == {"7"}
    assert sum(table.summary.quarantined.values()) == 3 and is_whole(table.summary)


def test_prompts_parquet_may_hold_chats(tmp_path):
    write(tmp_path / "log.jsonl", jsonl(*({"prompt_id": 1, "model": m, "correct": 1} for m in ("s1", "l1"))))
    write(tmp_path / "prompts.parquet", pd.DataFrame({"prompt_id": ["1"], "messages": [PARTS]}))
    assert ingest(tmp_path / "log.jsonl", TIERS).prompts == ["see"]


@pytest.mark.parametrize("content", [b"junk", pd.DataFrame({"x": [1]})])
def test_an_unusable_prompts_parquet_spares_a_log_that_has_prompts(tmp_path, content):
    write(tmp_path / "log.jsonl", jsonl(*PAIR))
    write(tmp_path / "prompts.parquet", content)
    table = ingest(tmp_path, TIERS)
    assert table.prompts == ["p"] and is_whole(table.summary)


# Columns


def odd_columns():
    names = ["prompt", "model", "correct"]
    values = [[row[name] for name in names] for row in PAIR]
    yield "case first", ["Prompt", *names], [["X", *row] for row in values]
    yield "case last", [*names, "PROMPT"], [[*row, "X"] for row in values]
    yield "twice", [*names, "prompt"], [[*row, "X"] for row in values]
    unknown = [
        'we"ird; --',
        "select",
        "",
        "source",
        "reason",
        "content",
        "original",
        "log_row",
        "fields",
        "line",
        "row",
    ]
    yield "unknown", [*names, *unknown], [[*row, *unknown] for row in values]


@pytest.mark.parametrize(("names", "values"), [case[1:] for case in odd_columns()], ids=[c[0] for c in odd_columns()])
def test_unknown_columns_are_kept_out_of_the_way(tmp_path, names, values):
    log = pd.DataFrame(values, columns=names)
    log.to_csv(tmp_path / "a.csv", index=False)
    write(tmp_path / "b.parquet", pa.table([log.iloc[:, i].tolist() for i in range(len(names))], names=names))
    for source in (log, tmp_path / "a.csv", tmp_path / "b.parquet"):
        assert ingest(source, TIERS).digest == pair_digest()


def test_a_frame_may_have_any_dtype():
    pair = pd.DataFrame(PAIR)
    log = pair.assign(
        prompt=pair["prompt"].astype("string"),
        model=pair["model"].astype("category"),
        correct=pair["correct"].astype("boolean"),
        input_tokens=pd.array([1, None], "Int64"),
        output_tokens=pd.Series([2, 3], dtype="float16"),
        cost_usd=pd.arrays.SparseArray([0.5, 0.25]),
        timestamp=pd.to_datetime(["2026-01-01T02:00:00+02:00"] * 2),
        mixed=pd.Series([1, "a"], dtype=object),
        nested=pd.Series([{"a": 1}, [b"x"]], dtype=object),
        span=pd.interval_range(0, 2),
        odd=[1j, 2j],
    )
    log = log.rename(columns={"odd": 7})
    table = ingest(log, TIERS)
    assert table.digest == ingest(pair.assign(output_tokens=[2, 3], cost_usd=[0.5, 0.25]), TIERS).digest
    assert table.first_timestamp == datetime(2026, 1, 1)


# Values


SPELLINGS = [
    (True, 1), (False, 0), ("True", 1), ("false", 0), ("1", 1), (" 0 ", 0), (0.5, 0.5), ("1e0", 1), (np.float32(1), 1),
    *((missing, NAN) for missing in (None, NAN, pd.NA, "", "NaN", "null", "None", "NA")),
]  # fmt: skip


def test_correct_is_read_in_every_usual_spelling_and_missing_is_not_judged_yet(tmp_path):
    rows = [{"prompt": f"q{n}", "model": "s1", "correct": value} for n, (value, _) in enumerate(SPELLINGS)]
    log = frame(*rows).astype({"correct": object})
    log.to_csv(tmp_path / "a.csv", index=False)
    for source in (log, tmp_path / "a.csv"):
        table = ingest(source, TIERS)
        read = [cell(table, f"q{n}", "small") for n in range(len(SPELLINGS))]
        np.testing.assert_array_equal(read, [value for _, value in SPELLINGS])
        assert table.summary.unjudged == 8 and not table.summary.quarantined


BROKEN_VALUES = [
    ("correct", ["yes", 2, "inf", [1]], "correct is not true, false or a number in 0..1"),
    ("input_tokens", [-1, "inf", "1,000", 1e30], "input_tokens is not a number from 0 to 1e12"),
    ("cost_usd", [-1e-9, "free", 1e308], "cost_usd is not a number from 0 to 1e12"),
    ("propensity", [0, 1.1, "x"], "propensity is not a number above 0 and at most 1"),
    (
        "timestamp",
        ["yesterday", "infinity", 1e300, -1, "0001-01-01"],
        "timestamp is not a point in time from 1970 to 2199",
    ),
    ("parsed", ["perhaps"], "parsed is not true or false"),
    ("model", ["", None, " "], "no model"),
    ("prompt", ["", None], "no prompt"),
    ("prompt", [["a"], {"a": 1}], "prompt is a list or an object; put chats into `messages`"),
]


def test_broken_values_are_set_aside_with_reason_source_and_content(tmp_path):
    good = {"prompt": "q", "model": "s1", "correct": 1, "note": "kept"}
    rows = [{**good, name: value} for name, values, _ in BROKEN_VALUES for value in values]
    path = write(tmp_path / "a.jsonl", jsonl(*PAIR, *rows))
    table = ingest(path, TIERS, quarantine=tmp_path / "out" / "quarantine.parquet")
    assert table.summary.quarantined == {reason: len(values) for _, values, reason in BROKEN_VALUES}
    assert table.summary.n_used == 2 and is_whole(table.summary)
    found = broken(tmp_path / "out" / "quarantine.parquet")
    assert {row["source"] for row in found} == {str(path)}
    assert sorted(row["content"] for row in found) == sorted(json.dumps(row) for row in rows)


def test_a_broken_row_of_a_table_keeps_all_its_columns(tmp_path):
    row = {"prompt": "q", "model": "s1", "correct": 2.0, "cost_usd": 0.5, "note": "kept"}
    log = frame(row).astype({"correct": float})
    ingest(log, TIERS, quarantine=tmp_path / "q.parquet")
    [found] = broken(tmp_path / "q.parquet")
    assert found["source"] == "DataFrame 1" and json.loads(found["content"]) == row


def test_no_quarantine_file_where_nothing_is_broken(tmp_path):
    ingest(frame(), TIERS, quarantine=tmp_path / "q.parquet")
    assert not (tmp_path / "q.parquet").exists()


# Values that count as not logged


def test_a_count_of_0_tokens_is_unknown_and_the_outcome_stays():
    log = frame({"prompt": "q", "model": "s1", "correct": 1, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.5})
    table = ingest(log, TIERS)
    assert cell(table, "q", "small") == 1 and cell(table, "q", "small", "cost_usd") == 0.5
    assert np.isnan(cell(table, "q", "small", "input_tokens")) and np.isnan(cell(table, "q", "small", "output_tokens"))
    assert table.summary.unknown == {"input_tokens is 0": 1, "output_tokens is 0": 1}
    assert "1 values taken as unknown: input_tokens is 0" in str(table.summary) and is_whole(table.summary)


@pytest.mark.parametrize("ended", ["cut", "failed", "left", " Cut "])
def test_an_attempt_that_gave_no_whole_answer_teaches_nothing(ended):
    """Neither that the tier was wrong, nor how long its answers are, nor that it was asked; it needs no prompt."""
    whole = [{"prompt": p, "model": m, "correct": 1, "output_tokens": 9} for p in "ab" for m in ("s1", "l1")]
    part = {"model": "s1", "correct": 0, "output_tokens": 1, "cost_usd": 5, "ended": ended}
    rows = [*whole, {**part, "prompt": "a"}, {**part, "prompt": "c"}, {**part, "prompt": None}]
    table, alone = ingest(frame(*rows), TIERS), ingest(frame(*whole), TIERS)
    assert table.digest == alone.digest and table.prompts == alone.prompts
    assert is_whole(table.summary) and table.summary.incomplete == 3 and table.summary.n_used == alone.summary.n_used
    assert table.summary.repeated == 0 and "3 rows of attempts that gave no whole answer" in str(table.summary)


def test_a_column_ended_with_other_values_changes_nothing():
    rows = [{"prompt": "a", "model": m, "correct": 1} for m in ("s1", "l1")]
    for ended in ("complete", None, "2026-01-01T00:00:00Z"):
        table = ingest(frame(*({**row, "ended": ended} for row in rows)), TIERS)
        assert (table.summary.incomplete, table.summary.n_used) == (0, table.summary.n_rows)


def test_0_among_the_counts_of_repeated_attempts_is_left_out_of_their_mean():
    rows = [{"prompt": "q", "model": "s1", "correct": 1, "output_tokens": n} for n in (0, 10, 20)]
    assert cell(ingest(frame(*rows), TIERS), "q", "small", "output_tokens") == 15


def test_a_cost_of_0_is_a_cost_only_where_the_tier_is_free():
    tokens = {"correct": 1, "input_tokens": 1e6, "output_tokens": 1e6, "cost_usd": 0}
    log = frame({**tokens, "prompt": "q", "model": "s1", "provider": "east"}, {**tokens, "prompt": "q", "model": "l1"})
    table = ingest(log, TIERS)
    assert cell(table, "q", "small", "cost_usd") == 3 and cell(table, "q", "large", "cost_usd") == 30
    assert table.summary.unknown == {"cost_usd is 0 in a paid tier": 2}
    free = parse_tiers(TIERS_TOML.replace("usd_per_mtok_input = 10, usd_per_mtok_output = 20", FREE))
    assert cell(ingest(log, free), "q", "large", "cost_usd") == 0
    assert ingest(log, free).summary.unknown == {"cost_usd is 0 in a paid tier": 1}


FREE = "usd_per_mtok_input = 0, usd_per_mtok_output = 0"


@pytest.mark.parametrize("name", ["input_tokens", "output_tokens"])
@pytest.mark.parametrize(("count", "cost", "is_known"), [
    (2_000_000, None, True),
    (2_000_001, None, False),
    (2**32 - 1, None, False),
    (2**32 - 1, 0.002, False),
    (2e11, 1e9, False),
    (8_000_000, 160, True),  # the sum over the calls of an agent, which its cost confirms
    (8_000_000, 0.01, False),
])  # fmt: skip
def test_a_count_beyond_the_window_is_unknown_unless_its_cost_says_that_it_is_a_sum(name, count, cost, is_known):
    log = frame({"prompt": "q", "model": "l1", "correct": 1, name: count, "cost_usd": cost})
    table = ingest(log, TIERS)
    np.testing.assert_array_equal(cell(table, "q", "large", name), count if is_known else NAN)
    assert table.summary.unknown == ({} if is_known else {f"{name} is beyond the context window": 1})
    assert cell(table, "q", "large") == 1


def test_columns_that_are_nearly_those_of_the_format_are_pointed_at(tmp_path):
    row = {
        "prompt_tokens": 1, "completion_tokens": 2, "spend": 0.1, "startTime": "2026-01-02", "response_model": "x",
        "usage": {"prompt_tokens": 1}, "Dataset": "a", "colour": "red", "cached_input_tokens": 1,
    }  # fmt: skip
    expected = {
        "prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "spend": "cost_usd",
        "startTime": "timestamp", "usage.prompt_tokens": "input_tokens", "Dataset": "dataset",
    }  # fmt: skip
    log = frame(**{name: [value] * 2 for name, value in row.items()})
    path = write(tmp_path / "a.jsonl", jsonl(*({**each, **row} for each in PAIR)))
    for source in (log, path, write(tmp_path / "b.parquet", log)):
        summary = ingest(source, TIERS).summary
        assert summary.not_used == expected
        assert "columns that are not used, but may be meant: --map " in str(summary) and "cost_usd=spend" in str(
            summary
        )
    assert ingest(frame(cost_usd=1.0, spend=0.1), TIERS).summary.not_used == {}
    elsewhere = ingest([frame(cost_usd=1.0), frame(spend=0.1)], TIERS).summary
    assert elsewhere.not_used == {"spend": "cost_usd"}, "each log by itself"


def test_a_file_of_broken_rows_is_no_log_of_its_folder(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(*PAIR, {}))
    summary = ingest(path, TIERS, quarantine=tmp_path / "b-quarantine.parquet").summary
    assert summary.quarantine == str(tmp_path / "b-quarantine.parquet") and summary.quarantine in summary.lines
    assert ingest(tmp_path, TIERS).summary.n_rows == 3
    assert ingest(frame(), TIERS, quarantine=tmp_path / "none.parquet").summary.quarantine is None


def test_a_missing_optional_value_breaks_nothing():
    names = ["input_tokens", "output_tokens", "cost_usd", "latency_ms", "propensity", "timestamp", "parsed"]
    for missing in ([None, NAN], ["", "NaN"], [pd.NA, pd.NaT]):
        table = ingest(frame(**{name: pd.Series(missing, dtype=object) for name in names}), TIERS)
        assert not table.summary.quarantined and table.first_timestamp is None


NOON = datetime(2026, 1, 2, 12)


def test_a_time_is_read_in_every_usual_spelling(tmp_path):
    texts = ["2026-01-02T12:00:00", "2026-01-02 12:00:00Z", "2026-01-02T14:00:00+02:00", "1767355200"]
    numbers = [1767355200, 1767355200.0, 1767355200_000, 1767355200_000_000, 1767355200_000_000_000]  # s, ms, us, ns
    rows = [{**PAIR[0], "timestamp": value} for value in [*texts, *numbers]]
    path = write(tmp_path / "a.jsonl", jsonl(*PAIR, *rows))
    typed = [frame(timestamp=pd.to_datetime([text] * 2)) for text in texts[:3]]
    for log in (path, *typed, frame(timestamp=pd.Series([NOON, texts[0]], dtype=object))):
        table = ingest(log, TIERS)
        assert (table.first_timestamp, table.last_timestamp) == (NOON, NOON)
        assert not table.summary.quarantined


@pytest.mark.parametrize(
    "written", [46024.5, "46024.5", "20260102", 20260102, "20260102.0", pd.Timestamp("2026-01-02").value / 1e9]
)
def test_days_of_a_spreadsheet_and_days_without_dashes_are_not_seconds_of_1970(written):
    table = ingest(frame(timestamp=[written] * 2), TIERS)
    assert table.first_timestamp.date() == NOON.date() and not table.summary.quarantined


def test_a_prompt_was_asked_when_it_was_asked_last_or_at_no_known_time():
    later, never = NOON + timedelta(hours=1), [{**row, "prompt": "another"} for row in PAIR]
    rows = [{**PAIR[0], "timestamp": NOON}, {**PAIR[1], "timestamp": later}, *never]
    table = ingest(pd.DataFrame(rows), TIERS)
    asked_at = dict(zip(table.prompts, table.asked_at.tolist(), strict=True))
    assert asked_at == {PAIR[0]["prompt"]: later, "another": None}
    assert table.rows(np.array([0])).asked_at.tolist() == table.asked_at[:1].tolist()


def test_a_time_without_zone_is_utc_wherever_it_is_read():
    code = (
        "import pandas as pd; from router.portfolio.tiers import read_tiers; from training.log.ingest import ingest\n"
        "log = pd.DataFrame({'prompt': 'p', 'model': ['sim/edge-4b', 'sim/frontier-1'], 'correct': 1,\n"
        "    'timestamp': ['2026-01-02T12:00:00', '2026-01-02T12:00:00Z']})\n"
        "table = ingest(log, read_tiers('data/tiers.toml')); print(table.first_timestamp, '|', table.last_timestamp)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TZ": "Asia/Tokyo"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split("|")[0].strip() == run.stdout.split("|")[1].strip() == str(NOON)
    assert run.stderr == ""


# Broken files


def test_a_broken_json_line_costs_only_itself(tmp_path):
    bad = [b'{"prompt": "x", "mod', b"[1, 2]", b'"text"', b"null", b'{"prompt": "\xff"}', b'{"prompt": "a\0b"}', b"{}"]
    path = write(tmp_path / "a.jsonl", b"\n".join(bad) + b"\n" + jsonl(*PAIR))
    table = ingest(path, TIERS, quarantine=tmp_path / "q.parquet")
    assert table.summary.quarantined == {"not a JSON object": 5, "no model": 1, NOT_UTF8: 1}
    assert cell(table, "p", "small") == 1 and is_whole(table.summary)
    contents = {row["content"] for row in broken(tmp_path / "q.parquet")}
    assert '{"prompt": "\\xff"}' in contents and bad[0].decode() in contents


def test_a_broken_csv_line_costs_only_itself(tmp_path):
    lines = [
        b"prompt,model,correct",
        b"p,s1,1",
        b"too,few",
        b"p,l1,1,too,many",
        b'"x" y,s1,1',
        b"caf\xe9,s1,1",
        b"p,l1,0",
    ]
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, b"\n".join([*lines, b'"never closed,s1,1', b"q,l1,1"]))
    table = ingest(tmp_path, TIERS, quarantine=tmp_path / "q.parquet")
    assert cell(table, "p", "small") == 1 and cell(table, "p", "large") == 0
    assert sum(table.summary.quarantined.values()) == 2 * 5 and is_whole(table.summary)
    assert "too,few" in {row["content"] for row in broken(tmp_path / "q.parquet")}


def test_of_a_file_cut_short_what_can_be_read_is_used(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"prompt": rng.bytes(40).hex(), "model": "s1", "correct": 1} for _ in range(5_000)]
    whole = gzip.compress(jsonl(*PAIR, *rows))
    write(tmp_path / "a.jsonl.gz", whole[: len(whole) // 2])
    write(tmp_path / "a.jsonl.zst", pa.compress(jsonl(*PAIR, *rows), "zstd", asbytes=True)[:-20])
    write(tmp_path / "b.jsonl", jsonl(*PAIR, *rows)[:-20])
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        summary = ingest(tmp_path / name, TIERS).summary
        assert summary.n_used > 1_000 and any("to its end" in reason for reason in summary.quarantined)
    assert ingest(tmp_path / "b.jsonl", TIERS).summary.quarantined == {"not a JSON object": 1}


def unreadable_files():
    parquet = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": ["x"] * 1_000, "model": ["s1"] * 1_000}), parquet)
    whole = parquet.getvalue().to_pybytes()
    yield "cut.parquet", whole[: len(whole) // 2]
    yield "overwritten.parquet", whole[:4] + b"\xff" * 60 + whole[64:]
    yield "empty.parquet", b""
    yield "not.jsonl.gz", jsonl(*PAIR)
    yield "not.csv.gz", b"prompt,model\n"
    yield "not.parquet", jsonl(*PAIR)


@pytest.mark.parametrize(("name", "content"), list(unreadable_files()), ids=[name for name, _ in unreadable_files()])
def test_an_unreadable_file_is_reported_and_the_others_used(tmp_path, name, content):
    write(tmp_path / name, content)
    summary = ingest([tmp_path / name, frame()], TIERS, quarantine=tmp_path / "out" / "q.parquet").summary
    assert summary.n_used == 2 and is_whole(summary)
    [(reason, count)] = summary.quarantined.items()
    assert reason.startswith("cannot be read") and count == 1
    assert broken(tmp_path / "out" / "q.parquet")[0]["source"] == str(tmp_path / name)


# Rows that were read before


def test_rows_that_were_read_before_make_the_same_table_as_their_files(tmp_path):
    first = write(tmp_path / "a.jsonl", jsonl(PAIR[0], "no json\n", {**PAIR[0], "prompt": "only in a"}))
    second = write(tmp_path / "b.parquet", frame(timestamp=[NOON, None]))
    third = write(tmp_path / "c.jsonl", jsonl({**PAIR[0], "correct": 0}))
    expected = ingest([first, second], TIERS, quarantine=tmp_path / "of files.parquet")
    with checked_logs(tmp_path / "cache") as rows:
        for path in (third, first, second):
            rows.read(path)
        rows.remove(third)
        for name in ("once", "twice"):
            table = ingest(rows, TIERS, quarantine=tmp_path / f"{name}.parquet")
            assert table.digest == expected.digest and table.summary == expected.summary
            assert broken(tmp_path / f"{name}.parquet") == broken(tmp_path / "of files.parquet")
        assert rows.prompt_ids([first, second]).tolist() == expected.prompt_ids.tolist()
        assert len(rows.prompt_ids([second])) == 1 and len(rows.prompt_ids([])) == 0
    assert not any((tmp_path / "cache").iterdir())


def test_what_was_found_in_a_file_is_said_of_each_file(tmp_path):
    good = write(tmp_path / "a.jsonl", jsonl(*PAIR, {**PAIR[0], "model": ""}, {"x": 1}, "no json\n", "no json\n"))
    timed = write(tmp_path / "b.parquet", frame(timestamp=[NOON, None]))
    cut = write(tmp_path / "c.parquet", b"PAR1 and no more")
    with checked_logs(tmp_path / "cache") as rows:
        found = rows.read(good)
        assert (found.n_rows, found.n_broken, found.n_prompts, found.last_timestamp) == (6, 4, 1, None)
        assert not found.is_unreadable and found.reason == "no model"  # as often as the other, and before it
        assert rows.outcomes(good, 10) == [("p", "l1", 0.0), ("p", "s1", 1.0)]
        assert rows.read(timed).last_timestamp == NOON
        unread = rows.read(cut)
        assert unread.is_unreadable and (unread.n_rows, unread.n_broken) == (1, 1)
        assert rows.read(good) is found and rows.outcomes(good, 10) == [("p", "l1", 0.0), ("p", "s1", 1.0)]


def test_a_log_whose_rows_are_all_removed_is_refused_and_more_can_be_read(tmp_path):
    first = write(tmp_path / "a.jsonl", jsonl(*PAIR))
    with checked_logs(tmp_path / "cache") as rows:
        rows.read(first)
        rows.remove(first)
        with pytest.raises(LogError, match="no row at all"):
            ingest(rows, TIERS)
        rows.read(write(tmp_path / "b.jsonl", jsonl(*PAIR)))
        assert ingest(rows, TIERS).digest == pair_digest()


# What is refused


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (None, "NoneType"),
        ([42], "int"),
        ("nowhere/at/all", "found no log"),
        ([], "no row at all"),
        (pd.DataFrame(), "no row at all"),
        (pd.DataFrame({"question": ["x"]}), "no model"),
        (pd.DataFrame({"question": ["x"]}), "missing: prompt .or messages, or prompt_id., model, correct; found the"),
        (pd.DataFrame({"question": ["x"]}), "columns question; perhaps --map prompt=question"),
        (pd.DataFrame(PAIR).assign(prompt=None), "no prompt"),
        (pd.DataFrame(PAIR).assign(prompt=[[{"role": "user", "content": "p"}]] * 2), "put chats into `messages`"),
        (pd.DataFrame(PAIR).drop(columns="correct"), "2 rows not judged yet"),
        (pd.DataFrame(PAIR).drop(columns="correct"), "missing: correct; found the columns model, prompt; .*--map"),
        (pd.DataFrame(PAIR).assign(correct=None), "`correct` is empty in all of them"),
        (pd.DataFrame(PAIR[:1]), "two tiers"),
        (pd.DataFrame(PAIR).assign(model="stranger"), "stranger"),
    ],
)
def test_a_log_of_no_use_is_refused_with_what_was_found(log, message):
    with pytest.raises(LogError, match=message):
        ingest(log, TIERS)


# Partial feedback


def test_a_propensity_stays_with_its_outcome_and_is_unknown_elsewhere():
    log = pd.DataFrame(PAIR).assign(prompt=["p", "q"], propensity=[0.3, None])
    table = ingest(log, TIERS)
    np.testing.assert_array_equal(table.propensity[table.prompts.index("p")], [0.3, NAN])
    np.testing.assert_array_equal(table.propensity[table.prompts.index("q")], [NAN, NAN])
    assert table.digest != ingest(log.assign(propensity=[0.4, None]), TIERS).digest
    np.testing.assert_array_equal(table.rows(np.array([1])).propensity, table.propensity[1:])


def test_of_a_prompt_asked_twice_the_propensity_is_that_of_choosing_the_tier_at_least_once():
    twice = [{"prompt": "p", "model": "s1", "correct": c, "propensity": 0.4} for c in (1, 0)]
    once = [{"prompt": "q", "model": "s1", "correct": 1, "propensity": 0.4}]
    mixed = [{"prompt": "r", "model": m, "correct": 1, "propensity": p} for m, p in (("s1", 0.9), ("l1", 0.1))]
    table = ingest(pd.DataFrame([*twice, *once, *mixed]), TIERS)
    propensity = {prompt: row for prompt, row in zip(table.prompts, table.propensity, strict=True)}
    assert propensity["q"][0] == 0.4
    np.testing.assert_allclose(propensity["p"], [1 - 0.6**2, NAN])
    np.testing.assert_allclose(propensity["r"], [1 - 0.1**2, 1 - 0.9**2])


def test_a_choice_that_was_not_judged_tells_nothing_of_how_the_outcome_came_to_be_observed():
    rows = [{"prompt": "p", "model": "s1", "correct": c, "propensity": p} for c, p in ((1, 0.4), (None, 0.8))]
    np.testing.assert_array_equal(ingest(frame(*rows), TIERS).propensity, [[0.4, NAN]])


def test_partial_feedback_without_propensities_is_said_in_the_summary_and_a_full_log_needs_none():
    assert "propensity" not in str(ingest(frame(), TIERS).summary)
    apart = pd.DataFrame(PAIR).assign(prompt=["p", "q"])
    assert "no propensity of 2 outcomes: estimates may be biased" in str(ingest(apart, TIERS).summary)
    assert "propensity" not in str(ingest(apart.assign(propensity=0.5), TIERS).summary)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_an_empty_file_is_refused(tmp_path, name):
    with pytest.raises(LogError, match="no usable row"):
        ingest(write(tmp_path / name, b""), TIERS)


def test_where_all_is_broken_the_quarantine_is_written_and_the_log_refused(tmp_path):
    with pytest.raises(
        LogError, match=r"no usable row \(found DataFrame 1: no prompt \(2 rows\)\).*rows are in .*q.parq"
    ):
        ingest(pd.DataFrame(PAIR).assign(prompt=""), TIERS, quarantine=tmp_path / "q.parquet")
    assert len(broken(tmp_path / "q.parquet")) == 2


def test_a_model_in_two_tiers_is_refused():
    with pytest.raises(TierError, match="more than one tier"):
        parse_tiers(TIERS_TOML.replace('model = "l1"', 'model = "s1-latest"'))


def test_a_log_beyond_memory_is_refused_with_the_remedy(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(*PAIR, {"prompt": "x" * 40_000_000, "model": "s1", "correct": 1}))
    with pytest.raises(MemoryError, match="memory_limit"):
        ingest(path, TIERS, memory_limit="20MB")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
columns = st.sampled_from(
    ["prompt", "messages", "prompt_id", "model", "correct", "cost_usd", "timestamp", "parsed", "x"]
)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(rows=st.lists(st.dictionaries(columns, json_values, max_size=9) | st.text(max_size=9), max_size=8))
def test_whatever_a_line_holds_the_rest_is_used_and_the_numbers_add_up(tmp_path_factory, rows):
    lines = [json.dumps(row) if isinstance(row, dict) else row.replace("\n", "") for row in rows]
    content = "\n".join(lines).encode("utf-8", "replace")
    path = write(tmp_path_factory.mktemp("any") / "a.jsonl", jsonl(*PAIR) + content)
    summary = ingest(path, TIERS).summary
    assert is_whole(summary) and summary.n_used >= 2
    assert summary.n_rows == 2 + sum(line.strip(" \t\r") != "" for line in content.decode().split("\n"))


OPTIONAL = {
    "output_tokens": st.sampled_from([0, 7, 2**32 - 1]),
    "input_tokens": st.sampled_from([0, 7, 2**32 - 1]),
    "cost_usd": st.sampled_from([0, 0.25, -1]),
    "usd_per_mtok_input": st.sampled_from([0, 3.0]),
    "propensity": st.sampled_from([0.5, 2]),
    "timestamp": st.sampled_from(["2026-01-02", "never"]),
    "dataset": st.just("d"),
    "parsed": st.booleans(),
}


@st.composite
def sparse_logs(draw):
    """Logs with any of the optional columns, each perhaps missing for one tier."""
    optional = draw(st.lists(st.sampled_from(sorted(OPTIONAL)), unique=True))
    missing_for = {name: draw(st.sampled_from(["s1", "l1", ""])) for name in optional}
    rows = []
    for prompt in "abc":
        for model in ("s1", "l1", "stranger"):
            row = {"prompt": prompt, "model": model, "correct": draw(st.sampled_from([0, 1, None]))}
            rows.append(row | {name: draw(OPTIONAL[name]) for name in optional if missing_for[name] != model})
    return rows


@settings(max_examples=12, deadline=None, derandomize=True)
@given(rows=sparse_logs(), drop_unparsed=st.booleans())
def test_a_log_with_any_optional_columns_makes_a_table_and_a_summary_that_adds_up(rows, drop_unparsed):
    table = ingest(frame(*rows), TIERS, drop_unparsed=drop_unparsed)
    summary = table.summary
    assert is_whole(summary) and summary.n_rows == 2 + len(rows)
    judged = np.isfinite(table.correct).sum()
    assert judged + summary.unjudged + summary.unparsed + summary.repeated == summary.n_used
    assert judged == sum(summary.observed_per_tier.values())
    for name in ("input_tokens", "output_tokens"):
        counts = getattr(table, name)
        assert set(counts[np.isfinite(counts)]) <= {7}
    assert not (table.cost_usd == 0).any() and json.dumps(summary.to_json())
