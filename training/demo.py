"""`broker demo`: the whole line on the simulated sample log."""

from __future__ import annotations

import argparse
import shlex
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

from router.command import DONE, neighbour_command, own_command, say
from router.explanation import usd
from router.extras import install_command
from router.router import Router
from training.config import TrainingConfig
from training.pipeline import train
from training.reports.terminal import first_lines
from training.tracking import ambient_tracking_uri, default_tracking_uri

DEMO_BUNDLE = Path("models/demo")
DEMO_PROMPTS = (
    "What is 17 * 23?",
    "Write a SQL query that returns the three newest orders of each customer.",
    "请用一句话介绍一下这家公司的退货政策。",
    "Five friends sit in a row. Anna is not next to Ben, Carla is left of Dan, and Eva sits at an end. "
    "Prove who sits in the middle, step by step.",
)
"""Prompts that the sample log covers: their familiarity is 1."""

_SHOWN_PROMPT = 72


def _sample() -> tuple[Path, Path]:
    """The simulated sample log and its tiers: in the package, or in the checkout's data/."""
    packaged = Path(__file__).parent / "sample"
    folder = packaged if packaged.is_dir() else Path(__file__).parent.parent / "data"
    return folder / "sample-log.parquet", folder / "tiers.toml"


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `broker demo`."""
    parser.add_argument("--out", type=Path, default=DEMO_BUNDLE, help=f"folder of the bundle; default: {DEMO_BUNDLE}")


def run_demo(options: argparse.Namespace) -> int:
    """Train on the sample log, judge, route some prompts, and say what to do next."""
    log, tiers = _sample()
    say(f"Training on the SIMULATED sample log, {log.name}: it shows how things work, and nothing about real models.\n")
    note = (
        "Trained and judged on SIMULATED outcomes: no model was asked anything, and nothing here is about a real one."
    )
    config = TrainingConfig(note=note, keep_examples=True)
    result = train(log, tiers, options.out, config, progress=True)
    sys.stderr.flush()
    say("\n".join(first_lines(result.evaluation, with_curve=False)))
    router = Router.load(options.out)
    say("\nWho answers a prompt, and what the answer is expected to cost:")
    for prompt in DEMO_PROMPTS:
        decision = router.route(prompt)
        right, cost = decision.success[decision.tier], decision.cost_usd[decision.tier]
        shown = textwrap.shorten(prompt, _SHOWN_PROMPT, placeholder=" ...") if " " in prompt else prompt
        say(f"  {decision.tier:<10} {100 * right:3.0f} % right  {usd(cost):<14} {shown}")
    say("\n".join(["", "Where to look next:", *_next_commands(options.out)]))
    return DONE


def _next_commands(bundle: Path) -> list[str]:
    """What to paste next, each with what it does."""
    broker, quoted = own_command(), shlex.quote(str(bundle))
    of_bundle = "" if bundle == DEMO_BUNDLE else f" --bundle {quoted}"
    serve = f"{broker} serve --demo{of_bundle}"
    if find_spec("litellm") is None:
        serve = f"{install_command('gateway')} && {serve}"
    runs = ambient_tracking_uri() or default_tracking_uri(bundle)
    return [
        f"  {broker} play{of_bundle}\n      the same in the browser: prompts, dials, prices, plans and why",
        f"  {bundle / 'report.html'}\n      every picture and table of this run",
        f"  {serve}\n      ask it over HTTP: stub providers, no key",
        f"  {broker} train --logs YOUR_LOG --tiers YOUR_TIERS.toml --out models/NAME\n"
        "      learn from your own log; its format: data/README.md",
        f"  {runs if runs.startswith('http') else mlflow_command(runs)}\n      every run, with its bundle",
    ]


def mlflow_command(uri: str) -> str:
    """The command that shows the runs of a database.

    Beside LiteLLM, MLflow's server imports it. LiteLLM then fetches its price map, and where the network is closed the
    two wait for each other for ever; the variable makes LiteLLM take the map that it has.
    """
    beside = "" if find_spec("litellm") is None else "LITELLM_LOCAL_MODEL_COST_MAP=True "
    return f"{beside}{neighbour_command('mlflow')} ui --workers 1 --backend-store-uri {shlex.quote(uri)}"
