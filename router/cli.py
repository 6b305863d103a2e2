"""The command `broker`: its own subcommands, and those that an extra adds.

Exit codes: 0 done, 1 the work failed, 2 bad usage or input, 3 another run holds the store. Results go to stdout,
everything else to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from router.bundle.bundle import Bundle
from router.bundle.signature import TrustedKeys, sign
from router.command import BAD_INPUT, DONE, FAILED, Command, say, usd_text
from router.decision import Decision
from router.errors import BundleError, RouterError
from router.extras import install_command
from router.feeds.commands import INIT_HELP, PRICES_HELP, init, init_arguments, prices, prices_arguments
from router.golden import check_golden, proven
from router.plans.checks import CheckModel
from router.plans.planner import MOST_CALLS
from router.router import Router
from router.shares import PORTFOLIO_HELP, portfolio, portfolio_arguments

COMMAND_GROUP = "token_broker.commands"
_EXTRA_COMMANDS = {
    "import": "make an outcome log of the files that others write (extra: train)",
    "audit": "say whether routing can pay, from outcome logs alone (extra: train)",
    "train": "learn a router from outcome logs (extra: train)",
    "evaluate": "judge a bundle on logged outcomes (extra: train)",
    "compare": "compare two bundles on the same prompts (extra: train)",
    "demo": "train, evaluate and route on the simulated sample log (extra: train)",
    "retrain": "train a challenger and promote it if it is better (extra: train)",
    "rollback": "put the previous champion back (extra: train)",
    "store": "show a store of `broker retrain` (extra: train)",
    "play": "try a bundle in the browser: prompts, dials, prices, plans and why",
    "serve": "serve a bundle behind LiteLLM's proxy (extra: gateway)",
    "outcomes": "ask, compact, export and label an outcome log (extra: outcomes)",
}
_ORDER = (
    "demo", "import", "init", "audit", "train", "evaluate", "compare", "play", "route", "plan", "verify", "sign",
    "serve", "outcomes", "portfolio", "prices", "retrain", "rollback", "store",
)  # fmt: skip
"""In the order in which one needs them."""

_EXAMPLES = """where to begin:
  broker demo                                                    everything once, on a simulated log
  broker audit --logs log.parquet --tiers tiers.toml             can routing pay on your log?
  broker train --logs log.parquet --tiers tiers.toml --out models/mine
  broker play --bundle models/mine                               try it in the browser
  broker route --bundle models/mine --quality 0.98 --explain "your prompt"
"""
_IN_ROUTER = {"play": "router.play.command", "serve": "router.serve.cli", "outcomes": "router.outcomes.cli"}
"""Modules of this package with a command of that name; the other commands are entry points of COMMAND_GROUP."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `broker`; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="broker",
        description="Send every request to the cost-optimal tier of models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"token-broker {_version()}")
    if not words:
        sys.stderr.write(f"usage: broker COMMAND ...\n\n{_EXAMPLES}\nAll commands: broker --help\n")
        return BAD_INPUT
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {
        "route": Command(_ROUTE_HELP, _route_arguments, _route),
        "plan": Command(_PLAN_HELP, _plan_arguments, _plan),
        "verify": Command(_VERIFY_HELP, _verify_arguments, _verify),
        "sign": Command(_SIGN_HELP, _sign_arguments, _sign),
        "init": Command(INIT_HELP, init_arguments, _saying(init)),
        "portfolio": Command(PORTFOLIO_HELP, portfolio_arguments, _saying(portfolio)),
        "prices": Command(PRICES_HELP, prices_arguments, _saying(prices)),
    }
    try:
        commands |= _named_commands(words)
    except ImportError as error:
        return _complain(str(error), BAD_INPUT)
    for name in _ORDER:
        if name in commands:
            command = commands[name]
            command.add_arguments(subparsers.add_parser(name, help=command.help, description=command.help))
        else:
            subparsers.add_parser(name, help=_EXTRA_COMMANDS[name])
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        return commands[options.command].run(options)
    except RouterError as error:
        return _complain(str(error), error.exit_code)
    except ImportError as error:
        return _complain(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return _complain("interrupted", FAILED)
    except (OSError, MemoryError) as error:
        return _complain(f"{type(error).__name__}: {error}", FAILED)


def _version() -> str:
    """The version that is installed."""
    try:
        return version("token-broker")
    except PackageNotFoundError:
        return "(not installed, run from its folder)"


def _named_commands(words: Iterable[str]) -> dict[str, Command]:
    """The command that the words name where it belongs to an extra; only that extra is imported."""
    name = next((word for word in words if not word.startswith("-")), None)
    if name not in _EXTRA_COMMANDS:
        return {}
    if name in _IN_ROUTER:
        return {name: getattr(import_module(_IN_ROUTER[name]), name)}
    found = [entry for entry in entry_points(group=COMMAND_GROUP) if entry.name == name]
    if not found:
        raise ImportError(f"`broker {name}` is not installed: {install_command('train')}")
    return {name: found[0].load()}


def _saying(work: Callable[[argparse.Namespace], tuple[int, str]]) -> Callable[[argparse.Namespace], int]:
    """The run of a command from a function that returns the exit code and what to say."""

    def run(options: argparse.Namespace) -> int:
        code, text = work(options)
        say(text)
        return code

    return run


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"broker: {' '.join(message.split())}\n")
    return code


# ---- route -----------------------------------------------------------------------------------------

_ROUTE_HELP = "decide which tier answers a prompt"


def _route_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, type=Path, help="folder of a bundle, for example models/demo")
    parser.add_argument("--quality", type=float, help="keep this share of the best tier's accuracy, in (0, 1]")
    parser.add_argument("--worth-usd", type=float, help="what a correct answer is worth, in USD")
    parser.add_argument(
        "--critical", action="store_true", help="ask only the best of the tiers reserved for critical requests"
    )
    parser.add_argument("--explain", action="store_true", help="say what would change the decision")
    parser.add_argument("--prices", type=Path, help="today's prices, in the format of tiers.toml")
    parser.add_argument("--policy", type=Path, help="policy.toml: rules for requests and their classes")
    parser.add_argument("--class", dest="request_class", metavar="NAME", help="the class of the policy to route it in")
    parser.add_argument("--json", action="store_true", help="print the decision as JSON")
    parser.add_argument(
        "prompt",
        metavar="PROMPT",
        help='the prompt, or "-" to read requests as JSONL from stdin: one JSON decision per line',
    )


def _route(options: argparse.Namespace) -> int:
    router = Router.load(options.bundle)
    if options.prices is not None:
        router.update_prices(options.prices)
    if options.policy is not None:
        router.update_policy(options.policy)
    dials = {"quality": options.quality, "worth_usd": options.worth_usd, "critical": options.critical}
    dials["request_class"] = options.request_class
    if options.prompt == "-":
        return _route_lines(router, sys.stdin.buffer, dials, explain=options.explain)
    decision = router.route(options.prompt, **dials)
    if options.json:
        say(_decision_json(decision, explain=options.explain))
    else:
        say(_decision_text(decision, explain=options.explain))
    return DONE


_REQUEST_KEYS = {
    "prompt", "messages", "quality", "worth_usd", "critical", "context_tokens", "regions", "capabilities", "request_id",
}  # fmt: skip


def _route_lines(router: Router, lines: Iterable[bytes], dials: dict[str, Any], *, explain: bool) -> int:
    """Print a decision per line of JSONL; a line that is no request gets an error instead, and the exit code is 2."""
    code = DONE
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or not set(request) <= _REQUEST_KEYS:
                raise ValueError(f"expected a JSON object with keys of {', '.join(sorted(_REQUEST_KEYS))}")
            say(_decision_json(router.route(**{**dials, **request}), explain=explain))
        except (ValueError, TypeError, RecursionError) as error:
            say(json.dumps({"error": f"line {number}: {error}"}, ensure_ascii=False))
            code = BAD_INPUT
    return code


def _decision_json(decision: Decision, *, explain: bool) -> str:
    if not explain:
        return decision.to_json()
    document = {**json.loads(decision.to_json()), "explanation": decision.explain().to_json()}
    return json.dumps(document, ensure_ascii=False)


def _decision_text(decision: Decision, *, explain: bool) -> str:
    offer = decision.offer
    where = f"{offer.model} at {offer.provider} ({offer.region})" if offer else "no eligible offer"
    table = [f"{'tier':<20} {'success':>8} {'USD':>12} {'output tokens':>14}"]
    table += [
        f"{tier:<20} {success:>8.3f} {usd_text(decision.cost_usd[tier]):>12} {decision.output_tokens[tier]:>14.0f}"
        for tier, success in decision.success.items()
    ]
    why = ["", *decision.explain().lines, "", f"Logged as: {decision.reason}"] if explain else []
    head = [f"{decision.tier}  ->  {where}", *([] if explain else [decision.reason]), ""]
    return "\n".join([*head, *table, *why])


# ---- plan ------------------------------------------------------------------------------------------

_PLAN_HELP = "plan whom to ask for an answer, what to look at, and whom to ask then"


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, type=Path, help="folder of a bundle, for example models/demo")
    parser.add_argument(
        "--check",
        action="append",
        dest="checks",
        metavar="NAME[:sensitivity=S,specificity=T[,usd=C]]",
        help='what may be looked at: "agreement", a check that the bundle has learned, or one with stated figures; '
        "may be given again; default: agreement, where the bundle has learned it",
    )
    parser.add_argument("--quality", type=float, help="keep this share of the best tier's accuracy, in (0, 1]")
    parser.add_argument("--worth-usd", type=float, help="what a correct answer is worth, in USD")
    parser.add_argument("--max-calls", type=int, default=MOST_CALLS, help=f"1 to {MOST_CALLS}; default: {MOST_CALLS}")
    parser.add_argument("--prices", type=Path, help="today's prices, in the format of tiers.toml")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt")


def _plan(options: argparse.Namespace) -> int:
    router = Router.load(options.bundle)
    if options.prices is not None:
        router.update_prices(options.prices)
    n_tiers = len(router.bundle.manifest.tiers)
    checks = options.checks and [
        CheckModel.declared_by(text, n_tiers) if ":" in text else text for text in options.checks
    ]
    router.prove_plans(checks, max_calls=options.max_calls)
    dials = {"quality": options.quality, "worth_usd": options.worth_usd}
    plan = router.plan(options.prompt, checks=checks, max_calls=options.max_calls, **dials)
    say(plan.to_json() if options.json else str(plan))
    return DONE


# ---- verify ----------------------------------------------------------------------------------------

_VERIFY_HELP = "check a bundle: digests, format, golden prompts and plans, signature"


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, type=Path, help="folder of a bundle")
    parser.add_argument(
        "--trusted-key",
        action="append",
        type=Path,
        help="a public key, one of which must have signed the bundle; may be given several times (extra: signing)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _verify(options: argparse.Namespace) -> int:
    if not options.bundle.is_dir():
        raise BundleError(f"{options.bundle}: no such folder; expected the folder of a bundle")
    try:
        keys = None if options.trusted_key is None else TrustedKeys.read(options.trusted_key)
        check = check_golden(options.bundle, keys)
    except BundleError as error:
        if options.json:
            say(json.dumps({"ok": False, "error": str(error)}, ensure_ascii=False))
            return FAILED
        return _complain(str(error), FAILED)
    if options.json:
        say(json.dumps({"ok": check.passed, **asdict(check)}))
    else:
        golden = f"{check.n_prompts} golden prompts" + ("" if check.n_plans is None else f", {check.n_plans} plans")
        largest = f"largest difference {check.largest_difference:.1e}"
        outcome = f"all as expected ({largest})" if check.passed else f"not all as expected: {check.in_words}"
        say(f"{options.bundle}: bundle {check.bundle_id}, every digest holds; {golden}, {outcome}")
    return DONE if check.passed else FAILED


# ---- sign ------------------------------------------------------------------------------------------

_SIGN_HELP = "sign a bundle, once it is verified, with an Ed25519 key (extra: signing)"


def _sign_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of a bundle")
    parser.add_argument(
        "--key", required=True, type=Path, help="private key in PEM: openssl genpkey -algorithm ed25519 -out KEY"
    )


def _sign(options: argparse.Namespace) -> int:
    bundle = proven(Bundle.load(options.bundle))
    path = sign(bundle.path, bundle.manifest, options.key)
    say(f"{path}: bundle {bundle.manifest.bundle_id} is signed")
    return DONE
