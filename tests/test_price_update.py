"""`broker prices`: what a price map changes is shown first, and written only where it is believed and asked for."""

import json
import shutil

import pytest

from router import Router
from router.cli import main
from router.errors import PriceError, PriceMapError
from router.feeds.price_map import read_price_map
from router.feeds.update import find_changes
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import read_tiers

TIERS = """# Ours. Ask Kim before you touch it.
[[tiers]]
name = "small"    # cheap
offers = [
    { model = "gpt-small", provider = "openai", region = "us", context_window = 9999, usd_per_mtok_input = 0.20, usd_per_mtok_output = 0.6 },  # inline
]

[[tiers]]
name   =   "large"
[[tiers.offers]]
model = "pro"
provider = 'gemini'        # the other quotes
region = "us"
context_window = 1_000_000
usd_per_mtok_input = 1.25  # since May
usd_per_mtok_output = 8
hours = [{ utc_start = "16:30", utc_end = "00:30", factor = 0.5 }]
[[tiers.offers]]
model = "own"
provider = "us"
region = "local"
context_window = 9999
self_hosted = { electricity_usd_per_hour = 0.02, bandwidth_usd_per_hour = 0.0, hardware_usd_per_hour = 0.06, utilization = 0.35, mtok_per_hour = 0.9 }

[[caps]]
provider = "gemini"
max_share = 0.5
"""  # noqa: E501


def a_map(folder, **prices):
    """A map in LiteLLM's format. prices: USD per million tokens (input, output) by name."""
    known = {"gpt_small": ("gpt-small", "openai"), "pro": ("gemini/pro", "gemini"), "own": ("own", "us")}
    entries = {
        known[name][0]: {
            "litellm_provider": known[name][1],
            "mode": "chat",
            "input_cost_per_token": usd_input / 1e6,
            "output_cost_per_token": usd_output / 1e6,
        }
        for name, (usd_input, usd_output) in prices.items()
    }
    path = folder / "map.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def tiers(tmp_path):
    path = tmp_path / "tiers.toml"
    path.write_text(TIERS)
    return path


def test_only_numbers_change_and_all_else_in_the_file_stays(tmp_path, tiers):
    update = find_changes(
        tiers, read_price_map(str(a_map(tmp_path, gpt_small=(0.15, 0.6), pro=(1.25, 10), own=(9, 9))))
    )
    assert [(change.tier, change.key, change.old, change.new) for change in update.changes] == [
        ("small", "usd_per_mtok_input", 0.2, 0.15),
        ("large", "usd_per_mtok_output", 8, 10),
    ]
    assert update.n_self_hosted == 1 and not update.missing
    assert tiers.read_text() == TIERS, "nothing is written yet"
    update.apply()
    expected = TIERS.replace("usd_per_mtok_input = 0.20,", "usd_per_mtok_input = 0.15,")
    assert tiers.read_text() == expected.replace("usd_per_mtok_output = 8", "usd_per_mtok_output = 10.0")
    assert len(PriceTable.parse(tiers.read_text()).limits) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"tiers.toml", "map.json"}


def test_prices_that_the_file_does_not_have_yet_are_added(tmp_path, tiers):
    path = a_map(tmp_path, gpt_small=(0.2, 0.6))
    entries = json.loads(path.read_text())
    entries["gpt-small"] |= {"cache_read_input_token_cost": 2e-8, "input_cost_per_token_above_200k_tokens": 4e-7}
    path.write_text(json.dumps(entries))
    update = find_changes(tiers, read_price_map(str(path)))
    update.apply()
    offer = read_tiers(tiers)[0].offers[0]
    assert (offer.usd_per_mtok_cached_input, offer.above[0].input_tokens, offer.above[0].usd_per_mtok_input) == (
        0.02, 200_000, 0.4,
    )  # fmt: skip
    assert update.missing == ("pro at gemini",) and "# inline" in tiers.read_text()


@pytest.mark.parametrize("prices", [(0.0, 0.6), (0.0002, 0.6), (200, 0.6)])
def test_prices_that_cannot_be_believed_are_shown_and_not_written(tmp_path, tiers, prices, capsys):
    path = a_map(tmp_path, gpt_small=prices, pro=(1.25, 10))
    assert main(["prices", str(path), "--tiers", str(tiers), "--apply"]) == 0
    assert "NOT BELIEVED" in capsys.readouterr().out
    assert [read_tiers(tiers)[0].offers[0].usd_per_mtok_input, read_tiers(tiers)[1].offers[0].usd_per_mtok_output] == [
        0.2,
        10,
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"gpt-small": {"input_cost_per_token": "NaN"}}', ""])
def test_a_broken_price_map_changes_nothing(tmp_path, tiers, content, capsys):
    (tmp_path / "map.json").write_text(content)
    assert main(["prices", str(tmp_path / "map.json"), "--tiers", str(tiers), "--apply"]) == 2
    assert "map.json" in capsys.readouterr().err and tiers.read_text() == TIERS


def test_a_file_that_someone_else_changes_is_not_overwritten(tmp_path, tiers):
    update = find_changes(tiers, read_price_map(str(a_map(tmp_path, gpt_small=(0.15, 0.6)))))
    tiers.write_text(TIERS + "# mine\n")
    with pytest.raises(PriceError, match="changed in the meantime"):
        update.apply()
    assert tiers.read_text().endswith("# mine\n") and len(list(tmp_path.iterdir())) == 2


def test_an_offer_is_priced_by_its_own_provider_only(tmp_path, tiers):
    path = tmp_path / "prices.csv"
    header = "model,provider,usd_per_mtok_input,usd_per_mtok_output"
    path.write_text(f"{header}\ngpt-small,elsewhere,1,1\npro,gemini,1.25,9\n")
    update = find_changes(tiers, read_price_map(str(path)))
    assert [(change.model, change.new) for change in update.changes] == [("pro", 9)]
    assert update.missing == ("gpt-small at openai",)


def test_a_link_keeps_leading_to_the_file(tmp_path, tiers):
    link = tmp_path / "link.toml"
    link.symlink_to(tiers)
    find_changes(link, read_price_map(str(a_map(tmp_path, gpt_small=(0.15, 0.6))))).apply()
    assert link.is_symlink() and read_tiers(tiers)[0].offers[0].usd_per_mtok_input == 0.15


def test_what_it_moves_is_shown_before_it_is_written(tmp_path, bundle, sample_log, capsys):
    tiers = tmp_path / "tiers.toml"
    shutil.copy(bundle / "tiers.toml", tiers)
    before = tiers.read_bytes()
    path = tmp_path / "prices.csv"
    header = "model,provider,usd_per_mtok_input,usd_per_mtok_output"
    path.write_text(f"{header}\nsim/frontier-1,sim-cloud,0.125,0.5\n")
    words = ["prices", str(path), "--tiers", str(tiers), "--logs", str(sample_log), "--bundle", str(bundle)]
    assert main([*words, "--quality", "0.9"]) == 0
    said = capsys.readouterr().out
    assert "usd_per_mtok_input 1.25 -> 0.125" in said and "nothing is written" in said and tiers.read_bytes() == before
    assert main([*words, "--quality", "0.9", "--json", "--apply"]) == 0
    document = json.loads(capsys.readouterr().out)
    moved = document["effect"]
    assert document["applied"] and moved["n_prompts"] == 3000 and moved["n_moved"] > 100
    assert moved["shares"]["frontier"]["new"] > moved["shares"]["frontier"]["now"]
    for when in ("now", "new"):
        assert sum(share[when] for share in moved["shares"].values()) == pytest.approx(1)
    assert moved["usd_per_1k"]["new"] < moved["usd_per_1k_unmoved"] < moved["usd_per_1k"]["now"]
    assert moved["promised"]["new"] == moved["promised"]["now"] > 0.5
    router = Router.load(bundle)
    router.update_prices(tiers)
    assert main(words) == 0 and "0 prices change" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [(["a", "b"], "expected FILE"), (["a", "--logs", "x"], "--bundle"), (["nowhere.json"], "nowhere.json")],
)
def test_wrong_usage_says_what_was_expected(tiers, words, said, capsys):
    assert main(["prices", *words, "--tiers", str(tiers)]) == 2
    assert said in capsys.readouterr().err


def test_openrouters_file_may_be_named_as_such(tmp_path, tiers, capsys):
    document = {"data": [{"id": "x", "pricing": {"prompt": "0.000001", "completion": "0.000001"}}]}
    (tmp_path / "models.json").write_text(json.dumps(document))
    assert main(["prices", "openrouter", str(tmp_path / "models.json"), "--tiers", str(tiers)]) == 0
    assert "not in the map, so unchanged: gpt-small at openai, pro at gemini" in capsys.readouterr().out
    with pytest.raises(PriceMapError):
        read_price_map(str(tmp_path / "none.json"))
