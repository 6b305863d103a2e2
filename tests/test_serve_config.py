"""Laws of the configuration that `broker serve` writes for LiteLLM: an entry per offer, and no key in it."""

import argparse
import json

import pytest

from router.cli import main
from router.errors import ServiceError
from router.portfolio.tiers import parse_tiers
from router.serve.cli import _bundle
from router.serve.config import litellm_config, missing_variables

KNOWN = {"openai", "deepseek", "dashscope", "openrouter", "bedrock"}
SECRET = "sk-of-the-operator-4711"


def offer(model: str, provider: str, more: str = "") -> str:
    prices = "context_window = 8192, usd_per_mtok_input = 1.0, usd_per_mtok_output = 2.0"
    return f'{{ model = "{model}", provider = "{provider}", region = "r", {prices}{more} }}'


def config_of(*offers: str, **environment: str) -> dict:
    return litellm_config(parse_tiers(f'[[tiers]]\nname = "t"\noffers = [{", ".join(offers)}]'), environment, KNOWN)


def params_of(*offers: str, **environment: str) -> dict:
    return config_of(*offers, **environment)["model_list"][0]["litellm_params"]


@pytest.mark.parametrize(
    ("model", "provider", "called", "key"),
    [
        ("deepseek/deepseek-chat", "deepseek", "deepseek/deepseek-chat", "DEEPSEEK_API_KEY"),
        ("deepseek-chat", "deepseek", "deepseek/deepseek-chat", "DEEPSEEK_API_KEY"),
        ("dashscope/qwen-turbo", "alibaba", "dashscope/qwen-turbo", "DASHSCOPE_API_KEY"),
        ("openrouter/deepseek/deepseek-chat", "openrouter", "openrouter/deepseek/deepseek-chat", "OPENROUTER_API_KEY"),
        ("deepseek/deepseek-chat", "Openrouter", "deepseek/deepseek-chat", "DEEPSEEK_API_KEY"),
    ],
)
def test_a_provider_that_litellm_knows_gets_its_name_and_its_key(model, provider, called, key):
    assert params_of(offer(model, provider)) == {"model": called, "api_key": f"os.environ/{key}"}


def test_a_provider_that_litellm_does_not_know_is_a_server_at_an_address_of_its_own():
    params = params_of(offer("sim/edge-4b", "sim-east", ", usd_per_mtok_cached_input = 0.5"), SIM_EAST_API_KEY=SECRET)
    assert params == {
        "model": "openai/sim/edge-4b",
        "api_base": "os.environ/SIM_EAST_API_BASE",
        "api_key": "os.environ/SIM_EAST_API_KEY",
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 2e-6,
        "cache_read_input_token_cost": 5e-7,
        "cache_creation_input_token_cost": 1e-6,
    }


def test_a_server_without_a_key_of_its_own_never_gets_that_of_openai():
    assert params_of(offer("m", "sim-east"), OPENAI_API_KEY=SECRET)["api_key"] == "none"
    own = {"MY_GPU_API_BASE": "http://gpu/v1", "OPENAI_API_KEY": SECRET}
    params = params_of(offer("openai/gpt-oss-120b", "my-gpu"), **own)
    assert (params["model"], params["api_base"], params["api_key"]) == (
        "openai/gpt-oss-120b", "os.environ/MY_GPU_API_BASE", "none",
    )  # fmt: skip


def test_the_address_of_a_known_provider_can_be_another():
    params = params_of(offer("deepseek/chat", "deepseek"), DEEPSEEK_API_BASE="http://mirror")
    assert params["api_base"] == "os.environ/DEEPSEEK_API_BASE"


def test_a_provider_with_credentials_of_its_own_kind_is_left_to_litellm():
    assert params_of(offer("bedrock/amazon.nova", "bedrock")) == {"model": "bedrock/amazon.nova"}


def test_no_value_of_the_environment_is_ever_written():
    names = ("DEEPSEEK_API_KEY", "SIM_EAST_API_KEY", "SIM_EAST_API_BASE", "LITELLM_MASTER_KEY")
    config = config_of(offer("deepseek/chat", "deepseek"), offer("m", "sim-east"), **dict.fromkeys(names, SECRET))
    assert SECRET not in json.dumps(config)
    for name in names:
        assert f"os.environ/{name}" in json.dumps(config)


def test_the_model_broker_is_listed_and_a_broken_offer_hands_over_at_once():
    config = config_of(offer("a", "x"), offer("b", "y"))
    assert [entry["model_name"] for entry in config["model_list"]] == ["a", "b", "broker"]
    assert config["router_settings"]["num_retries"] == 0 and config["router_settings"]["stream_timeout"] == 3
    assert config["general_settings"]["always_include_stream_usage"] is True


def test_each_variable_that_is_missing_is_named_with_the_models_that_need_it():
    found = {"gemini": True}

    def needed_by(model):
        return {"keys_in_environment": found.get(model.split("/")[0], False), "missing_keys": ["AWS_ACCESS_KEY_ID"]}

    config = config_of(
        offer("deepseek/chat", "deepseek"), offer("deepseek/coder", "deepseek"), offer("m", "sim-east"),
        offer("bedrock/amazon.nova", "bedrock"),
    )  # fmt: skip
    missing = {each.name: each.models for each in missing_variables(config, {}, needed_by)}
    assert missing == {
        "AWS_ACCESS_KEY_ID": ("bedrock/amazon.nova",),
        "DEEPSEEK_API_KEY": ("deepseek/chat", "deepseek/coder"),
        "LITELLM_MASTER_KEY": (),
        "SIM_EAST_API_BASE": ("m",),
    }
    found["deepseek"] = True  # LiteLLM finds the key under another name.
    assert "DEEPSEEK_API_KEY" not in {each.name for each in missing_variables(config, {}, needed_by)}


def test_a_service_without_a_bundle_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServiceError, match="--bundle is missing"):
        _bundle(argparse.Namespace(demo=False, bundle=None))
    with pytest.raises(ServiceError, match="make demo"):
        _bundle(argparse.Namespace(demo=True, bundle=None))


def test_without_its_extra_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("router.serve.cli.find_spec", lambda name: None)
    assert main(["serve", "--demo"]) == 2
    assert "pip install 'token-broker[gateway]'" in capsys.readouterr().err
