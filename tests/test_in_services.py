"""Laws of the runtime as a library inside somebody else's service."""

import asyncio
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from importlib import resources

import pytest

from router import Router

PROMPTS = ["What is 17 * 23?", "Prove that sqrt(2) is irrational.", "Bonjour"]

IMPORT_REPORT = """
import json, logging, sys, threading
before = {name: list(logging.getLogger(name).handlers) for name in (None, "router")}
read = []
import os
get = os.environ.__class__.__getitem__
def spy(self, key):
    frame = sys._getframe(1)
    while frame:
        if "router" in frame.f_globals.get("__name__", "").split("."):
            read.append(key)
        frame = frame.f_back
    return get(self, key)
import numpy, onnxruntime, tokenizers
os.environ.__class__.__getitem__ = spy
threads = threading.active_count()
import router
handlers = {name: list(logging.getLogger(name).handlers) for name in (None, "router")}
print(json.dumps({
    "threads": threading.active_count() - threads,
    "handlers": handlers != before,
    "environment": read,
    "root_level": logging.getLogger().level,
}))
"""


def test_importing_starts_no_thread_adds_no_handler_and_reads_no_environment():
    shown = subprocess.run([sys.executable, "-c", IMPORT_REPORT], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown) == {"threads": 0, "handlers": False, "environment": [], "root_level": logging.WARNING}


def test_types_are_shipped():
    assert resources.files("router").joinpath("py.typed").is_file()


def test_loading_and_routing_start_no_python_thread(bundle):
    before = threading.active_count()
    Router.load(bundle).route(PROMPTS[0])
    assert threading.active_count() == before


def test_an_event_loop_goes_on_while_a_thread_routes(bundle):
    """The documented way for slow encoders and big batches: `await asyncio.to_thread(router.route, ...)`."""
    router = Router.load(bundle)

    async def serve():
        ticks = 0
        routing = asyncio.ensure_future(asyncio.to_thread(router.route_batch, PROMPTS * 500))
        while not routing.done():
            await asyncio.sleep(0)
            ticks += 1
        return ticks, await routing

    ticks, decisions = asyncio.run(serve())
    assert ticks > 1
    assert decisions[:3] == router.route_batch(PROMPTS)


def _route_in_child(router, answers):
    answers.put([router.route(prompt).tier for prompt in PROMPTS])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("used_before", [False, True])
def test_a_router_loaded_before_a_fork_decides_the_same_after_it(bundle, used_before):
    """As servers do that load once and fork their workers."""
    router = Router.load(bundle)
    if used_before:
        router.route(PROMPTS[0])
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_route_in_child, args=(router, answers))
    child.start()
    found = answers.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    assert found == [router.route(prompt).tier for prompt in PROMPTS]
