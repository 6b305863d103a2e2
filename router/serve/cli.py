"""`broker serve`: what it is told, what it writes, and what it says at the start."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from router.bundle.manifest import MANIFEST_FILE
from router.command import DONE, Command, say
from router.errors import ServiceError
from router.extras import install_command
from router.outcomes.cli import OUTCOMES
from router.policy import Policy
from router.portfolio.tiers import read_tiers
from router.router import Router
from router.serve.config import (
    MASTER_KEY,
    MissingVariable,
    api_base_variable,
    litellm_config,
    missing_variables,
    model_entry,
)

DEMO_BUNDLE = Path("models/demo")
DEMO_OUTCOMES = "models/demo-outcomes"

STATE = "BROKER_STATE"
"""The environment variable with the URL of that Redis: it may hold a password, which no command line should show."""


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, help="folder of a bundle, or a link to one; followed on disk")
    parser.add_argument(
        "--prices", type=Path, help="tiers.toml with today's prices; followed on disk; default: the bundle's own"
    )
    parser.add_argument(
        "--policy",
        type=Path,
        help="policy.toml: which providers and regions answer which class of requests, and what each client's key may "
        "ask for (docs/policy.md); followed on disk; default: no rules, and every key may set quality, check and a "
        "worth of up to 0.1 USD",
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="LiteLLM's own configuration, taken as it is; default: written from the tiers",
    )
    parser.add_argument(
        "--demo", action="store_true", help=f"serve {DEMO_BUNDLE} with stub providers on this machine, without any key"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=4000, help="default: 4000")
    parser.add_argument(
        "--outcomes", help=f"folder or fsspec URL of the outcome log; default: {OUTCOMES}, with --demo {DEMO_OUTCOMES}"
    )
    parser.add_argument(
        "--state",
        help="Redis by which several services share caps, budgets, health and conversations: redis://HOST:PORT/DB "
        f"(extra: redis); default: what {STATE} is set to, or none",
    )
    parser.add_argument(
        "--exploration",
        type=float,
        default=0.0,
        help="share of requests that ask another tier within the promised quality, to learn from; default: 0",
    )
    parser.add_argument(
        "--keep-prompts", action="store_true", help="store the text of prompts in the outcome log, to train on it"
    )
    parser.add_argument(
        "--keep-answers", action="store_true", help="store the text of answers, for `broker outcomes label`"
    )
    parser.add_argument(
        "--drain-s", type=float, default=30.0, help="seconds that running requests get at the end; default: 30"
    )
    parser.add_argument("--print-config", action="store_true", help="print LiteLLM's configuration and stop")


def _serve(options: argparse.Namespace) -> int:
    if find_spec("litellm") is None:
        raise ImportError(f"`broker serve` needs LiteLLM's proxy: {install_command('gateway')}")
    bundle = _bundle(options)
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # Else LiteLLM fetches its price map at import.
    os.environ.setdefault("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "NO_CONTENT")  # else: prompts in spans
    with ExitStack() as stack:
        options.drawn_key = _set_up_demo(bundle, stack) if options.demo else ""
        config = _written_config(options, bundle) if options.config is None else _read_config(options.config)
        if options.print_config:
            say(_yaml().safe_dump(config, sort_keys=False).rstrip())
            return DONE
        path = options.config
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "litellm.yaml")
            path.write_text(_yaml().safe_dump(config, sort_keys=False), encoding="utf-8")
        _run(options, bundle, config, path)
    return DONE


def _run(options: argparse.Namespace, bundle: Path, config: Mapping[str, Any], path: Path) -> None:
    import litellm

    from router.outcomes.observers import ObservedLog, Observers
    from router.serve.app import Service, serve

    missing = missing_variables(config, os.environ, litellm.validate_environment)
    if any(variable.name == MASTER_KEY for variable in missing):
        raise ServiceError(
            f"{MASTER_KEY} is not set: clients send it as their key; export {MASTER_KEY}=sk-$(openssl rand -hex 32)"
        )
    for variable in missing:
        sys.stderr.write(f"broker: {_in_words(variable)}\n")
    outcomes = options.outcomes or (DEMO_OUTCOMES if options.demo else OUTCOMES)
    keeps_prompts, keeps_answers = options.keep_prompts or options.demo, options.keep_answers or options.demo
    log = ObservedLog(outcomes, Observers(), keep_prompts=keeps_prompts, keep_answers=keeps_answers)
    policy = Policy(exploration=options.exploration)
    state_url = options.state or os.environ.get(STATE)
    service = Service.load(bundle, options.prices, policy, outcomes, log, options.policy, state_url)
    stdout = sys.stdout

    def announce() -> None:
        stdout.write(_how_to_call(options, service.router, outcomes) + "\n")
        stdout.flush()

    serve(
        service,
        path,
        host=options.host,
        port=options.port,
        drain_s=options.drain_s,
        announce=announce,
        entry_of=None if options.config else lambda offer: model_entry(offer, os.environ, _known_providers(options)),
    )
    say("stopped: the outcome log is closed")


def _bundle(options: argparse.Namespace) -> Path:
    if options.demo:
        bundle: Path = options.bundle or DEMO_BUNDLE
        if not (bundle / MANIFEST_FILE).exists():
            raise ServiceError(f"{bundle} is not there yet: `make demo` (or `broker demo`) trains it in seconds")
        return bundle
    if options.bundle is None:
        raise ServiceError("--bundle is missing; expected the folder of a bundle, or --demo")
    return Path(options.bundle)


def _set_up_demo(bundle: Path, stack: ExitStack) -> str:
    """Start a stub for each provider of the bundle's tiers, and say where they are.

    Returns the key that was drawn for the clients; empty where they have one already.
    """
    from router.serve.stubs import stub_providers

    tiers = Router.load(bundle).prices.tiers
    urls = stack.enter_context(stub_providers([offer.provider for tier in tiers for offer in tier.offers]))
    for provider, url in urls.items():
        os.environ[api_base_variable(provider)] = url
    if MASTER_KEY in os.environ:
        return ""
    os.environ[MASTER_KEY] = drawn = f"sk-{secrets.token_hex(16)}"
    return drawn


def _written_config(options: argparse.Namespace, bundle: Path) -> dict[str, Any]:
    tiers = Router.load(bundle).prices.tiers if options.prices is None else read_tiers(options.prices)
    return litellm_config(tiers, os.environ, _known_providers(options))


def _known_providers(options: argparse.Namespace) -> set[str]:
    """The providers that LiteLLM knows; none for the demo, where all of them are stubs."""
    import litellm

    if options.demo:
        return set()
    return {str(getattr(provider, "value", provider)) for provider in litellm.provider_list}


def _read_config(path: Path) -> dict[str, Any]:
    yaml = _yaml()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ServiceError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(found, dict):
        raise ServiceError(f"{path}: found {type(found).__name__}; expected LiteLLM's configuration, a mapping")
    return found


def _yaml() -> Any:
    import yaml

    return yaml


def _in_words(missing: MissingVariable) -> str:
    who = f" ({', '.join(missing.models)} cannot answer without it)" if missing.models else ""
    return f"{missing.name} is not set{who}"


def _how_to_call(options: argparse.Namespace, router: Router, outcomes: str) -> str:
    url = f"http://{'127.0.0.1' if options.host in ('0.0.0.0', '::') else options.host}:{options.port}"
    tiers = ", ".join(tier.name for tier in router.prices.tiers)
    key = options.drawn_key
    shown = f"export {MASTER_KEY}={key}\n\n" if key else ""
    about = "STUB providers answer: nothing here is a model's work.\n" if options.demo else ""
    return f"""
The broker answers at {url} (bundle {router.bundle.manifest.bundle_id[:12]}; tiers: {tiers}).
{about}The page with all figures: {url}/broker/{"#" + key if key else ""}
Decisions and outcomes go to {outcomes}. Ctrl-C or SIGTERM stops it when running requests have finished.

{shown}curl -i {url}/v1/chat/completions -H "Authorization: Bearer ${MASTER_KEY}" -H "Content-Type: application/json" \\
  -d '{{"model": "broker/quality=0.95", "messages": [{{"role": "user", "content": "What is 17 * 23?"}}]}}'

curl {url}/v1/outcomes -H "Authorization: Bearer ${MASTER_KEY}" -H "Content-Type: application/json" \\
  -d '{{"decision_id": "FROM THE HEADER x-broker-decision-id", "correct": true}}'

import os
from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key=os.environ["{MASTER_KEY}"])
client.chat.completions.create(model="broker", messages=[{{"role": "user", "content": "What is 17 * 23?"}}])

broker outcomes show --outcomes {outcomes} --by tier
"""


serve = Command("serve a bundle behind LiteLLM's proxy (extra: gateway)", _serve_arguments, _serve)
