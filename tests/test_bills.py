"""Usage records as providers send them, each with its bill: through LiteLLM's own reading of them, at stated prices.

The records have the shape of the providers' published examples; the figures are small ones that can be checked by hand.
"""

import importlib.util
import os

import pytest

from router.portfolio.tiers import parse_tiers

if importlib.util.find_spec("litellm") is None:
    pytest.skip("litellm is not installed: make test-gateway installs it", allow_module_level=True)

OFFER = """
[[tiers]]
name = "t"
[[tiers.offers]]
model = "m"
provider = "p"
region = "r"
context_window = 1000000
usd_per_mtok_input = 2.0
usd_per_mtok_output = 8.0
usd_per_mtok_cached_input = 0.5
usd_per_mtok_cache_write = 2.5
"""
ABOVE = (
    "above = [{ input_tokens = 200000, usd_per_mtok_input = 4.0, usd_per_mtok_output = 12.0, "
    "usd_per_mtok_cached_input = 1.0 }]\n"
)
HOURS = 'hours = [{ utc_start = "16:30", utc_end = "00:30", factor = 0.5 }]\n'


@pytest.fixture(scope="module")
def litellm():
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    return litellm


def openai_usage(record):
    from litellm.types.utils import Usage

    return Usage(**record)


def anthropic_usage(record):
    from litellm import AnthropicConfig

    return AnthropicConfig().calculate_usage(record, reasoning_content=None)


def gemini_usage(record):
    from litellm import VertexGeminiConfig

    return VertexGeminiConfig._calculate_usage({"usageMetadata": record})


def usd_of(*parts):
    """Tokens x USD per million tokens, added up, in USD."""
    return sum(tokens * usd_per_mtok for tokens, usd_per_mtok in parts) / 1e6


RECORDS = {
    "openai: cached input is part of the prompt": (
        openai_usage,
        {"prompt_tokens": 1117, "completion_tokens": 46, "total_tokens": 1163,
         "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
         "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0}},
        usd_of((93, 2.0), (1024, 0.5), (46, 8.0)),
    ),
    "openai: reasoning is part of the completion": (
        openai_usage,
        {"prompt_tokens": 75, "completion_tokens": 1186, "total_tokens": 1261,
         "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 1024}},
        usd_of((75, 2.0), (1186, 8.0)),
    ),
    "anthropic: the first request writes the cache": (
        anthropic_usage,
        {"input_tokens": 21, "cache_creation_input_tokens": 188_086, "cache_read_input_tokens": 0,
         "output_tokens": 393},
        usd_of((21, 2.0), (188_086, 2.5), (393, 8.0)),
    ),
    "anthropic: the next one reads it, beside its input": (
        anthropic_usage,
        {"input_tokens": 21, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 188_086,
         "output_tokens": 393},
        usd_of((21, 2.0), (188_086, 0.5), (393, 8.0)),
    ),
    "deepseek: hits and misses": (
        openai_usage,
        {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050, "prompt_cache_hit_tokens": 896,
         "prompt_cache_miss_tokens": 104},
        usd_of((104, 2.0), (896, 0.5), (50, 8.0)),
    ),
    "gemini: thoughts beside candidates, both billed as output": (
        gemini_usage,
        {"promptTokenCount": 2152, "cachedContentTokenCount": 2027, "candidatesTokenCount": 10,
         "thoughtsTokenCount": 90, "totalTokenCount": 2252,
         "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 2152}]},
        usd_of((125, 2.0), (2027, 0.5), (100, 8.0)),
    ),
    "qwen: like openai": (
        openai_usage,
        {"prompt_tokens": 3019, "completion_tokens": 104, "total_tokens": 3123,
         "prompt_tokens_details": {"cached_tokens": 2048}, "completion_tokens_details": {"reasoning_tokens": 60}},
        usd_of((971, 2.0), (2048, 0.5), (104, 8.0)),
    ),
    "openrouter: its own cost is not taken for ours": (
        openai_usage,
        {"prompt_tokens": 194, "completion_tokens": 2, "total_tokens": 196, "cost": 0.95,
         "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 50},
         "completion_tokens_details": {"reasoning_tokens": 0}},
        usd_of((44, 2.0), (100, 0.5), (50, 2.5), (2, 8.0)),
    ),
}  # fmt: skip


def billed(offer_text, usage, minute=None):
    from router.gateway.usage import billed_usd, reported_usage

    [tier] = parse_tiers(offer_text)
    return billed_usd(tier.offers[0], reported_usage(usage.model_dump()), None, minute)


@pytest.mark.parametrize("name", RECORDS)
def test_each_providers_usage_comes_to_its_bill(litellm, name):
    read, record, expected_usd = RECORDS[name]
    assert billed(OFFER, read(record)) == pytest.approx(expected_usd, abs=1e-7)


@pytest.mark.parametrize(
    ("n_input", "expected_usd"),
    [
        (200_000, usd_of((100_000, 2.0), (100_000, 0.5), (10, 8.0))),
        (200_001, usd_of((100_001, 4.0), (100_000, 1.0), (10, 12.0))),
    ],
)
def test_beyond_a_threshold_the_whole_request_has_other_prices(litellm, n_input, expected_usd):
    usage = openai_usage(
        {"prompt_tokens": n_input, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 100_000}}
    )
    assert billed(OFFER + ABOVE, usage) == pytest.approx(expected_usd, abs=1e-7)


@pytest.mark.parametrize(("minute", "factor"), [(16 * 60 + 29, 1.0), (16 * 60 + 30, 0.5), (29, 0.5), (30, 1.0)])
def test_the_hour_of_the_request_has_its_price(litellm, minute, factor):
    usage = openai_usage({"prompt_tokens": 1000, "completion_tokens": 100})
    expected_usd = factor * usd_of((1000, 2.0), (100, 8.0))
    assert billed(OFFER + HOURS, usage, minute) == pytest.approx(expected_usd, abs=1e-7)
    long_one = openai_usage({"prompt_tokens": 200_001, "completion_tokens": 100})
    expected_usd = factor * usd_of((200_001, 4.0), (100, 12.0))
    assert billed(OFFER + ABOVE + HOURS, long_one, minute) == pytest.approx(expected_usd, abs=1e-7)


def test_an_offer_at_the_prices_of_a_request_is_not_repriced_twice():
    [tier] = parse_tiers(OFFER + ABOVE + HOURS)
    once = tier.offers[0].at(300_000, 0)
    assert once.at(300_000, 0) == once
    assert once.usd_per_mtok_input == 2.0  # 4.0 at half price
