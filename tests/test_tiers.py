"""What tiers.toml and price files may say, and how a wrong one is refused."""

import codecs
import json
import os
import time
from pathlib import Path

import pytest

from router import PriceError, TierError
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import parse_tiers, read_tiers

OFFER = {
    "model": '"acme/small"', "provider": '"acme"', "region": '"eu"', "context_window": "8192",
    "usd_per_mtok_input": "0.1", "usd_per_mtok_output": "0.4",
}  # fmt: skip


def text_of(offer):
    """A tiers.toml of one tier with this offer."""
    lines = "".join(f"{key} = {value}\n" for key, value in offer.items())
    return f'[[tiers]]\nname = "édge"\n[[tiers.offers]]\n{lines}'


# ---- encodings -------------------------------------------------------------------------------------


def test_a_byte_order_mark_changes_nothing(tmp_path):
    plain, marked = tmp_path / "plain.toml", tmp_path / "marked.toml"
    plain.write_bytes(text_of(OFFER).encode())
    marked.write_bytes(codecs.BOM_UTF8 + text_of(OFFER).encode())
    assert read_tiers(marked) == read_tiers(plain)
    assert PriceTable.read(marked, ["édge"]).id == PriceTable.read(plain, ["édge"]).id


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_named_with_the_remedy(tmp_path, encoding):
    path = tmp_path / "tiers.toml"
    path.write_bytes(text_of(OFFER).encode(encoding))
    with pytest.raises(TierError, match="tiers.toml: byte [0-9]+ is not UTF-8; save the file with the encoding UTF-8"):
        read_tiers(path)
    with pytest.raises(PriceError, match="price table refused: .*tiers.toml: byte [0-9]+ is not UTF-8"):
        PriceTable.read(path, ["édge"])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TierError, match="nowhere.toml: cannot be read"):
        read_tiers(tmp_path / "nowhere.toml")


# ---- what is missing -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", OFFER)
def test_what_an_offer_lacks_is_missing_not_nothing(key):
    with pytest.raises(TierError, match=rf"tier 1 \(édge\), offer 1: {key} is missing; expected "):
        parse_tiers(text_of({name: value for name, value in OFFER.items() if name != key}))


def test_all_that_is_missing_is_said_at_once():
    with pytest.raises(TierError, match="provider, context_window, usd_per_mtok_output are missing"):
        parse_tiers(text_of({name: OFFER[name] for name in ("model", "region", "usd_per_mtok_input")}))
    with pytest.raises(TierError, match="tier 1: name is missing"):
        parse_tiers("[[tiers]]\ncritical = true\n")
    with pytest.raises(TierError, match="self_hosted: bandwidth_usd_per_hour, .*mtok_per_hour are missing"):
        hosted = {name: value for name, value in OFFER.items() if not name.startswith("usd")}
        parse_tiers(text_of({**hosted, "self_hosted": "{ electricity_usd_per_hour = 1 }"}))


# ---- prices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("paid", "answer"), [("1e-7", "4e-7"), ("3e-6", "0.000015"), ("1e-8", "0")])
def test_prices_per_token_are_pointed_out(paid, answer):
    with pytest.raises(TierError, match="look like prices per token; expected USD per million tokens: ") as refusal:
        parse_tiers(text_of({**OFFER, "usd_per_mtok_input": paid, "usd_per_mtok_output": answer}))
    assert str(refusal.value).endswith(f": {1e6 * float(paid):g} and {1e6 * float(answer):g}")


@pytest.mark.parametrize(("paid", "answer"), [("0", "0"), ("0.01", "0.02"), ("0.0025", "0"), ("1e-6", "0.3")])
def test_cheap_and_free_offers_are_taken(paid, answer):
    (tier,) = parse_tiers(text_of({**OFFER, "usd_per_mtok_input": paid, "usd_per_mtok_output": answer}))
    assert (tier.offers[0].usd_per_mtok_input, tier.offers[0].usd_per_mtok_output) == (float(paid), float(answer))


@pytest.mark.parametrize("served", [1e-200, 1e-160])
def test_own_hardware_that_serves_next_to_nothing_has_no_price(served):
    text = f"""
[[tiers]]
name = "edge"
[[tiers.offers]]
model = "local/tiny"
provider = "local"
region = "local"
context_window = 8192
[tiers.offers.self_hosted]
electricity_usd_per_hour = 0.04
bandwidth_usd_per_hour = 0.0
hardware_usd_per_hour = 0.1
utilization = {served}
mtok_per_hour = {served}
"""
    with pytest.raises(TierError, match="no finite price"):
        parse_tiers(text)


# ---- absurd files ----------------------------------------------------------------------------------

DEEP = "x = " + "[" * 20_000
LONG = "x = " + "9" * 5_000
MANY = """[[tiers.offers]]
model = "m-{0}"
provider = "p"
region = "eu"
context_window = 1000
usd_per_mtok_input = 0.5
usd_per_mtok_output = 1.0
"""


def tiers_of(n_offers: int, n_tiers: int = 3) -> str:
    """The text of a tiers.toml with so many offers."""
    parts = []
    for tier in range(n_tiers):
        parts.append(f'[[tiers]]\nname = "t{tier}"\n')
        parts += [MANY.format(f"{tier}-{n}") for n in range(n_offers // n_tiers)]
    return "\n".join(parts)


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        LONG,
        "x = " + "{a = " * 20_000,
        "a." * 100_000 + "a = 1",
        "[[tiers]]\nname = " + "[" * 300 + "]" * 300,
        tiers_of(3).replace("= 1000", "= " + "9" * 400),
        tiers_of(3).replace("= 1000", "= 0x" + "f" * 10_000),
        tiers_of(3).replace("= 0.5", "= 1e999"),
        tiers_of(3).replace('"t0"', '""' + '"x' * 9),
        "\n".join(f"unknown-{n} = 1" for n in range(30_000)),
    ],
    ids=[
        "deep list",
        "long integer",
        "deep table",
        "long key",
        "deep name",
        "no float",
        "hex",
        "infinite",
        "no TOML",
        "unknown",
    ],
)
def test_an_absurd_text_is_refused_in_a_few_words(text):
    with pytest.raises(TierError) as refused:
        parse_tiers(text)
    assert len(str(refused.value)) < 1000


def test_a_file_beyond_all_measure_or_no_file_at_all_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "prices.toml"
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no space on the disk
    with pytest.raises(TierError, match="1,099,511,627,776 bytes; expected at most"):
        read_tiers(path)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(TierError, match=r"no regular file|[Dd]irectory"):
            read_tiers(other)


def table(tmp_path, text, name):
    path = tmp_path / name
    path.write_text(text)
    return PriceTable.read(path, ["t0", "t1"])


def many_offers(n_offers: int) -> dict:
    """A price table of two tiers, as plain values."""
    prices = {"usd_per_mtok_input": 0.25, "usd_per_mtok_output": 1, "aliases": ["x", "é"]}
    place = {"provider": "p", "region": "eu", "context_window": 8192}
    tiers = [[{"model": f"m{tier}-{n}", **place, **prices} for n in range(n_offers // 2)] for tier in range(2)]
    for tier, offers in enumerate(tiers):
        for offer in offers:
            offer["aliases"] = [f"{name}-{tier}" for name in prices["aliases"]]
    return {"tiers": [{"name": f"t{tier}", "offers": offers} for tier, offers in enumerate(tiers)]}


def as_toml(document: dict) -> str:
    lines = []
    for tier in document["tiers"]:
        lines += ["[[tiers]]", f"name = {json.dumps(tier['name'])}"]
        for offer in tier["offers"]:
            lines.append("[[tiers.offers]]")
            lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in offer.items()]
    return "\n".join(lines)


def test_a_price_file_in_json_is_the_same_table_and_is_read_much_faster(tmp_path):
    document = many_offers(4000)
    texts = {"prices.toml": as_toml(document), "prices.json": json.dumps(document)}
    tables, seconds = {}, {}
    for name, text in texts.items():
        spent = []
        for _ in range(3):
            start = time.process_time()
            tables[name] = table(tmp_path, text, name)
            spent.append(time.process_time() - start)
        seconds[name] = min(spent)
    assert tables["prices.json"].tiers == tables["prices.toml"].tiers
    assert seconds["prices.json"] < 0.6 * seconds["prices.toml"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"tiers": NaN}', '{"tiers": []}', "[" * 100_000, '{"tiers": ' + "9" * 5000 + "}",
     '{"tiers": [], "tiers": []}', json.dumps({**many_offers(2), "prices": 1}),
     json.dumps(many_offers(2)).replace("0.25", "NaN"), json.dumps(many_offers(2)).replace("0.25", "-1"),
     json.dumps(many_offers(2)).replace("0.25", "1e400"), json.dumps(many_offers(2)).replace('"region"', '"provider"')],
    ids=range(15),
)  # fmt: skip
def test_what_is_no_price_table_in_json_is_refused(tmp_path, text):
    with pytest.raises(PriceError, match="price table refused: .*prices.json"):
        table(tmp_path, text, "prices.json")


def test_ten_times_the_offers_take_about_ten_times_as_long():
    def seconds(n_offers):
        text = tiers_of(n_offers)
        start = time.process_time()
        parse_tiers(text)
        return time.process_time() - start

    assert seconds(15_000) < 30 * max(seconds(1_500), seconds(1_500))
