"""Price maps of others: what they say is read, proposed and taken over; what is broken changes nothing."""

import json
import re
from datetime import date

import pandas as pd
import pytest

from router.cli import main
from router.errors import PriceMapError
from router.feeds.price_map import LIST_PRICES, read_price_map
from router.feeds.proposal import ModelFacts, propose
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import parse_tiers, read_tiers

LITELLM_MAP = {
    "sample_spec": {"input_cost_per_token": 0.0, "mode": "one of: chat"},
    "gpt-small": {
        "input_cost_per_token": 1.5e-07,
        "output_cost_per_token": 6e-07,
        "cache_read_input_token_cost": 7.5e-08,
        "cache_creation_input_token_cost": 0.0,
        "litellm_provider": "openai",
        "max_input_tokens": 128000,
        "mode": "chat",
        "supports_function_calling": True,
    },
    "gemini/pro": {
        "input_cost_per_token": 1.25e-06,
        "output_cost_per_token": 1e-05,
        "litellm_provider": "gemini",
        "mode": "chat",
        "input_cost_per_token_above_200k_tokens": 2.5e-06,
        "output_cost_per_token_above_200k_tokens": 1.5e-05,
        "input_cost_per_token_above_200k_tokens_priority": 9.0,
        "max_input_tokens": 1048576,
    },
    "dashscope/max": {
        "litellm_provider": "dashscope",
        "mode": "chat",
        "max_input_tokens": 258048,
        "tiered_pricing": [
            {"input_cost_per_token": 1.2e-06, "output_cost_per_token": 6e-06, "range": [0, 32000.0]},
            {"input_cost_per_token": 2.4e-06, "output_cost_per_token": 1.2e-05, "range": [32000.0, 128000.0]},
        ],
    },
    "azure/gpt-small": {
        "input_cost_per_token": 2e-07,
        "output_cost_per_token": 7e-07,
        "litellm_provider": "azure",
        "mode": "chat",
    },
    "embed": {"input_cost_per_token": 1e-08, "output_cost_per_token": 0.0, "mode": "embedding"},
    "no-price": {"litellm_provider": "openai", "mode": "chat"},
}
OPENROUTER_LIST = {
    "data": [
        {
            "id": "deepseek/chat",
            "context_length": 131072,
            "supported_parameters": ["tools"],
            "architecture": {"input_modalities": ["text", "image"]},
            "pricing": {
                "prompt": "0.00000028",
                "completion": "0.00000042",
                "input_cache_read": "0.000000028",
                "request": "0",
                "overrides": [{"min_prompt_tokens": 32000, "prompt": "0.0000005", "completion": "0.000001"}],
            },
        },
        {"id": "openrouter/auto", "context_length": 1, "pricing": {"prompt": "-1", "completion": "-1"}},
    ]
}


@pytest.fixture
def litellm_map(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(LITELLM_MAP))
    return path


# ---- price maps ------------------------------------------------------------------------------------


def test_litellms_map(litellm_map):
    found = {model.model: model for model in read_price_map(str(litellm_map)).models}
    assert set(found) == {"gpt-small", "gemini/pro", "dashscope/max", "azure/gpt-small"}
    small, pro, most = found["gpt-small"], found["gemini/pro"], found["dashscope/max"]
    assert (small.usd_per_mtok_input, small.usd_per_mtok_output, small.usd_per_mtok_cached_input) == (0.15, 0.6, 0.075)
    assert small.usd_per_mtok_cache_write is None, "0 says that nothing is known: writing is not free"
    assert (small.provider, small.region, small.context_window, small.capabilities) == (
        "openai",
        "us",
        128000,
        ("tools",),
    )
    [above] = pro.above
    assert (above.input_tokens, above.usd_per_mtok_input, above.usd_per_mtok_output) == (200000, 2.5, 15.0)
    [above] = most.above
    assert (most.usd_per_mtok_input, above.input_tokens, above.usd_per_mtok_input) == (1.2, 32000, 2.4)


def test_openrouters_list(tmp_path):
    path = tmp_path / "models.json"
    path.write_text(json.dumps(OPENROUTER_LIST))
    [model] = read_price_map(str(path)).models
    assert (model.model, model.provider, model.context_window) == ("openrouter/deepseek/chat", "openrouter", 131072)
    assert (model.usd_per_mtok_input, model.usd_per_mtok_output, model.usd_per_mtok_cached_input) == (0.28, 0.42, 0.028)
    assert model.capabilities == ("tools", "vision") and model.above[0].usd_per_mtok_input == 0.5


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("model,provider,cny_per_mtok_input,cny_per_mtok_output", "m,deepseek,2,8"),
        ("model,provider,currency,per_mtok_input,per_mtok_output", "m,deepseek,CNY,2,8"),
        ("model,provider,input_cny_per_mtok,output_cny_per_mtok", "m,deepseek,2,8"),
        ("model,provider,usd_per_mtok_input,usd_per_mtok_output", "m,deepseek,0.28,1.12"),
    ],
)
def test_other_currencies_need_a_stated_rate(tmp_path, header, row):
    path = tmp_path / "prices.csv"
    path.write_text(f"{header}\n{row}\n")
    [model] = read_price_map(str(path), {"CNY": 0.14}).models
    assert (model.usd_per_mtok_input, model.usd_per_mtok_output, model.region) == pytest.approx((0.28, 1.12, "cn"))
    if "usd" not in header:
        with pytest.raises(PriceMapError, match="prices are in CNY; state the rate, for example --usd-per CNY=0.14"):
            read_price_map(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", "{}"),
        ("a.json", '{"m": {"input_cost_per_token": "x"}}'),
        ("a.json", "3"),
        ("a.csv", "model\nm\n"),
        ("a.csv", "model,usd_per_mtok_input,usd_per_mtok_output\nm,-1,2\n"),
    ],
)
def test_a_broken_price_map_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(PriceMapError, match=re.escape(str(tmp_path / name))):
        read_price_map(str(tmp_path / name))


def test_the_table_that_ships_is_a_price_map():
    prices = read_price_map(str(LIST_PRICES))
    assert len(prices.models) > 20 and prices.find("gpt-4o-mini") is not None
    assert all(model.usd_per_mtok_output >= model.usd_per_mtok_input > 0 for model in prices.models)


@pytest.mark.parametrize(
    ("name", "provider", "expected"),
    [
        ("gpt-small", None, ("gpt-small", True)),
        ("GPT-Small", None, ("gpt-small", True)),
        ("openai/gpt-small", None, ("gpt-small", True)),
        ("gpt-small", "azure", ("azure/gpt-small", True)),
        ("gpt-small", "nobody", ("gpt-small", True)),
        ("gpt-small-2026-01-31", None, ("gpt-small", False)),
        ("pro-latest", None, ("gemini/pro", False)),
    ],
)
def test_a_model_is_found_by_the_nearest_name(litellm_map, name, provider, expected):
    model, is_sure = read_price_map(str(litellm_map)).find(name, provider)
    assert (model.model, is_sure) == expected
    assert read_price_map(str(litellm_map)).find("gpt-smaller") is None


def test_a_free_offer_is_not_the_nearest_where_another_has_a_price(tmp_path):
    path = tmp_path / "prices.csv"
    header = "model,provider,usd_per_mtok_input,usd_per_mtok_output"
    path.write_text(f"{header}\nollama/m,ollama,0,0\nsomewhere-far/m,far,1,2\n")
    assert read_price_map(str(path)).find("m")[0].provider == "far"


# ---- broker init -----------------------------------------------------------------------------------


def facts(name, accuracy=None, cost_usd=None, n_judged=100):
    return ModelFacts(name, None, n_judged if accuracy else 0, accuracy, 1000.0, 100.0, cost_usd)


def test_a_proposal_has_a_tier_for_each_model_and_says_what_to_decide(litellm_map):
    models = [facts("pro", 0.7), facts("gpt-small-2026-01-31", 0.8), facts("own", 0.5, 0.011), facts("unheard")]
    proposal = propose(models, read_price_map(str(litellm_map)), date(2026, 11, 26), ["log.parquet"])
    tiers = parse_tiers(proposal.text)
    assert [tier.name for tier in tiers] == ["gpt-small", "pro", "own"] == list(proposal.tiers), "the cheapest first"
    assert tiers[0].offers[0].aliases == ("gpt-small-2026-01-31",) and tiers[1].offers[0].aliases == ("pro",)
    assert tiers[1].offers[0].above[0].input_tokens == 200000
    assert tiers[2].offers[0].usd_per_mtok_output == pytest.approx(10), "the log's own cost by token"
    assert proposal.unpriced == ("unheard",) and 'no price is known for "unheard"' in proposal.text
    assert "gpt-small-2026-01-31 is cheaper and at least as accurate here" in proposal.text
    assert "also at azure as azure/gpt-small, 0.2 and 0.7 USD" in proposal.text
    assert "# critical = true" in proposal.text and "80.0% right on 100 judged rows" in proposal.text
    assert proposal.n_decide == proposal.text.count("# decide:") >= 5


def test_names_of_a_log_cannot_write_into_the_file(litellm_map):
    evil = 'x"\n[[budgets]]\nusd = 1\x1b'
    proposal = propose(
        [facts(evil, 0.9, 0.01), facts("pro", 0.8)], read_price_map(str(litellm_map)), date(2026, 1, 1), [evil]
    )
    table = PriceTable.parse(proposal.text)
    assert not table.limits and {offer.model for tier in table.tiers for offer in tier.offers} == {evil, "gemini/pro"}


def test_the_same_model_of_two_providers_is_one_tier(litellm_map):
    models = [ModelFacts("gpt-small"), ModelFacts("azure/gpt-small")]
    [tier] = parse_tiers(propose(models, read_price_map(str(litellm_map)), date(2026, 1, 1)).text)
    assert {offer.provider for offer in tier.offers} == {"openai", "azure"}


def test_no_price_at_all_is_refused(litellm_map):
    with pytest.raises(PriceMapError, match="has no price of unheard"):
        propose([ModelFacts("unheard")], read_price_map(str(litellm_map)), date(2026, 1, 1))


def test_what_init_writes_is_read_by_audit_at_once(tmp_path, litellm_map, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"{n} and {n}", "model": model, "grade": "pass" if n % (3 + place) else "fail", "output_tokens": 9}
        for n in range(200)
        for place, model in enumerate(("gpt-small", "pro"))
    ]
    pd.DataFrame(rows).to_parquet("log.parquet")
    words = ["init", "--logs", "log.parquet", "--prices", str(litellm_map), "--out", "tiers.toml"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 tiers (gpt-small, pro)" in said and "need a person" in said
    [following] = re.findall(r"next: broker (.*)", said)
    assert main([*following.split(), "--map", "correct=grade:pass"]) == 0
    assert "gpt-small" in capsys.readouterr().out
    assert main(words) == 2, "a file that is there is not overwritten"
    assert "exists" in capsys.readouterr().err


def test_init_by_names_with_the_table_that_ships(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("router.feeds.price_map.find_spec", lambda name: None)
    out = tmp_path / "tiers.toml"
    assert main(["init", "--models", "gpt-4o-mini", "deepseek-chat", "--out", str(out)]) == 0
    assert "list prices of 2026-11-26" in capsys.readouterr().out
    assert {tier.name for tier in read_tiers(out)} == {"gpt-4o-mini", "deepseek-chat"}
    words = ["init", "--models", "gpt-4o-mini", "--prices", "litellm", "--out", str(tmp_path / "other.toml")]
    assert main(words) == 2 and "litellm is not installed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--usd-per", "CNY=0"])
