"""Serves the router that run.py trained: both models and `broker serve` in front of them, on this machine only.

python examples/local/serve.py [--bundle models/local] [--port 4000]
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from run import beside, cache
from servers import INSTALL, MODELS, missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code of `broker serve`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("models/local"), help="that run.py made")
    parser.add_argument("--port", type=int, default=4000, help="of the broker; default: 4000")
    options = parser.parse_args(arguments)
    if missing():
        print(f"{', '.join(missing())}: not installed. {INSTALL}", file=sys.stderr)
        return 2
    print("loading both models", file=sys.stderr)
    servers = [model.serve(cache(options.bundle)) for model in MODELS]  # They live as long as this process.
    environment = {
        **os.environ,
        **{
            api_base(model.provider): f"{server.listening_address}/v1"
            for model, server in zip(MODELS, servers, strict=True)
        },
    }
    if "LITELLM_MASTER_KEY" not in environment:
        environment["LITELLM_MASTER_KEY"] = f"sk-{secrets.token_hex(16)}"
        print(
            f"export LITELLM_MASTER_KEY={environment['LITELLM_MASTER_KEY']}   # for clients, in another terminal",
            flush=True,
        )
    command = [
        *("serve", "--bundle", options.bundle, "--prices", beside(options.bundle, "tiers.toml")),
        *("--outcomes", beside(options.bundle, "outcomes"), "--keep-prompts", "--port", options.port),
    ]
    broker = subprocess.Popen([sys.executable, "-m", "router", *map(str, command)], env=environment)
    signal.signal(signal.SIGTERM, lambda *_: broker.terminate())
    signal.signal(signal.SIGINT, lambda *_: None)  # The broker gets Ctrl-C, too, and ends in its own time.
    return broker.wait()


def api_base(provider: str) -> str:
    """The environment variable in which `broker serve` looks for a provider's address."""
    return provider.upper().replace("-", "_") + "_API_BASE"


if __name__ == "__main__":
    sys.exit(main())
