"""Laws of changing bundle and prices under a running router."""

import gc
import json
import logging
import os
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from itertools import cycle
from pathlib import Path

import pytest

from router import BundleError, PriceError, Router, RouterError, Watcher
from router.bundle import Bundle, Manifest
from router.graph_session import session_of
from training.export.golden import golden_files

PROMPTS = ["What is 17 * 23?", "Prove that sqrt(2) is irrational.", "Bonjour", "", "def f(x): return x"]


@pytest.fixture
def bundles(bundle, tmp_path) -> tuple[Path, Path]:
    """Two bundles that differ in their prices and so in their ids; both answer their golden prompts as they say."""
    first, second = (Path(shutil.copytree(bundle, tmp_path / name)) for name in ("first", "second"))
    rewrite(second, "tiers.toml", cheaper((second / "tiers.toml").read_text()))
    for name, text in golden_files(Router(Bundle.load(second))).items():
        rewrite(second, name, text)
    return first, second


def rewrite(folder, name, text):
    """Put other content into a bundle, digests and all."""
    (folder / name).write_text(text)
    document = json.loads((folder / "manifest.json").read_text())
    digest = document.pop("digest")
    manifest = Manifest.from_json(json.dumps({**document, "digest": digest}))
    files = {**manifest.files, name: sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(replace(manifest, files=files).to_json())


def cheaper(text):
    """The same price table with every price a tenth."""
    lines = []
    for line in text.split("\n"):
        name, _, number = line.partition(" = ")
        lines.append(f"{name} = {float(number) / 10}" if name.startswith("usd_per_mtok") else line)
    return "\n".join(lines)


def price_file(tmp_path, bundle, name="prices.toml"):
    path = tmp_path / name
    path.write_text(cheaper(cheaper((bundle / "tiers.toml").read_text())))
    return path


# ---- under load ------------------------------------------------------------------------------------


def decisions_by_identity(bundles, tables):
    """What a router of its own decides for PROMPTS, by ids of bundle and price table."""
    found = {}
    for bundle in bundles:
        for table in tables:
            router = Router.load(bundle)
            if table is not None:
                router.update_prices(table)
            found[router.bundle.manifest.bundle_id, router.prices.id] = [router.route(prompt) for prompt in PROMPTS]
    return found


def test_every_decision_under_load_names_one_bundle_and_one_price_table(bundles, tmp_path):
    """16 threads route while bundle and prices change; each decision is that of the pair it names."""
    first, second = bundles
    prices = price_file(tmp_path, first)
    expected = decisions_by_identity(bundles, (None, prices))
    assert len(expected) == 4
    router = Router.load(first)
    done = threading.Event()

    def work():
        seen = set()
        for row in cycle(range(len(PROMPTS))):
            decision = router.route(PROMPTS[row])
            names = decision.bundle_id, decision.price_table_id
            seen.add(names)
            assert decision == expected[names][row]
            if done.is_set():
                return seen

    with ThreadPoolExecutor(16) as threads:
        running = [threads.submit(work) for _ in range(16)]
        try:
            for _ in range(3):
                for bundle in (second, first):
                    router.reload(bundle)
                    router.update_prices(prices)
                    router.reload(bundle, prices)
        finally:
            done.set()
        assert len(set().union(*(each.result() for each in running))) > 1


def test_bundles_with_the_same_tokenizer_share_it_and_it_goes_with_the_last(bundles):
    """The library keeps memory for each pair of a tokenizer and a thread, so a reload must not make another one."""
    first, second = bundles
    router = Router.load(first)
    before = weakref.ref(router.bundle.tokenizer)
    router.reload(second)
    assert router.bundle.tokenizer is before()
    del router
    gc.collect()
    shared = before()  # routers of other tests may have it, too
    # `type`, not `isinstance`: some libraries keep objects that warn when somebody asks for their `__class__`.
    assert shared is None or any(type(each) is Bundle and each.tokenizer is shared for each in gc.get_objects())


def test_the_same_graph_has_one_session_as_long_as_it_is_in_use(bundle):
    graph = (bundle / "router.onnx").read_bytes()
    first = session_of(graph, n_threads=3)  # which no other test takes
    assert session_of(graph, n_threads=3) is first
    assert session_of(graph, n_threads=1) is not first
    before = weakref.ref(first)
    del first
    gc.collect()
    assert before() is None


# ---- what is refused -------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("router.onnx", truncate, "SHA-256 .* the manifest says"),
        ("router.onnx", flip, "SHA-256 .* the manifest says"),
        ("tokenizer.json", flip, "SHA-256 .* the manifest says"),
        ("tiers.toml", Path.unlink, "tiers.toml cannot be read"),
        ("manifest.json", truncate, "not valid JSON"),
        ("manifest.json", edit('"format_version": 3', '"format_version": 99'), "found format_version 99, expected 3"),
        ("manifest.json", edit('"confidence": 0.95', '"confidence": 0.99'), "found digest .* its content has"),
        ("manifest.json", Path.unlink, "no readable manifest.json"),
    ],
)
def test_a_bundle_that_is_not_whole_is_refused_and_the_present_one_stays(bundles, name, damage, message):
    first, second = bundles
    router = Router.load(first)
    before = [router.route(prompt) for prompt in PROMPTS]
    damage(second / name)
    with pytest.raises(BundleError, match=message):
        router.reload(second)
    with pytest.raises(BundleError, match=message):
        Watcher(router, second).look()
    assert [router.route(prompt) for prompt in PROMPTS] == before


def golden_of_another_bundle(first, second):
    shutil.copy(first / "golden.jsonl", second / "golden.jsonl")
    rewrite(second, "golden.jsonl", (second / "golden.jsonl").read_text())


def test_a_bundle_that_answers_otherwise_than_it_says_is_refused_and_the_present_one_stays(bundles):
    """Every digest holds; only its golden prompts tell."""
    first, second = bundles
    router = Router.load(first)
    before = [router.route(prompt) for prompt in PROMPTS]
    golden_of_another_bundle(first, second)
    for take in (lambda: router.reload(second), lambda: Router.load(second), Watcher(router, second).look):
        with pytest.raises(BundleError, match="of 20 golden prompts.* expected .*; train or copy"):
            take()
    rewrite(second, "golden.jsonl", "")
    with pytest.raises(BundleError, match="of 0 golden prompts"):
        router.reload(second)
    assert [router.route(prompt) for prompt in PROMPTS] == before


def test_a_new_bundle_is_not_taken_with_a_broken_price_file(bundles, tmp_path):
    first, second = bundles
    prices = price_file(tmp_path, first)
    prices.write_text(prices.read_text().replace("usd_per_mtok_input", "usd_per_token", 1))
    router = Router.load(first)
    with pytest.raises(PriceError, match="usd_per_token"):
        router.reload(second, prices)
    assert router.bundle.path == first


# ---- the watcher -----------------------------------------------------------------------------------


def test_the_watcher_takes_a_new_bundle_once_and_a_link_that_points_elsewhere(bundles, tmp_path):
    first, second = bundles
    link = tmp_path / "champion"
    link.symlink_to(first, target_is_directory=True)
    router = Router.load(link)
    watcher = Watcher(router, link)
    watcher.look()
    assert not watcher.look()
    (tmp_path / "next").symlink_to(second, target_is_directory=True)
    os.replace(tmp_path / "next", link)
    assert watcher.look() and not watcher.look()
    assert router.bundle.manifest.bundle_id == Router.load(second).bundle.manifest.bundle_id


def test_watched_prices_hold_for_a_new_bundle_too(bundles, tmp_path):
    first, second = bundles
    prices = price_file(tmp_path, first)
    router = Router.load(first)
    folder = shutil.copytree(first, tmp_path / "champion")
    watcher = Watcher(router, folder, prices=prices)
    assert watcher.look()
    table = router.prices.id
    assert table != router.bundle.prices.id
    shutil.rmtree(folder)
    shutil.copytree(second, folder)
    assert watcher.look()
    assert (router.bundle.manifest.bundle_id, router.prices.id) == (
        Router.load(second).bundle.manifest.bundle_id,
        table,
    )


def test_a_refused_bundle_does_not_hold_up_new_prices(bundles, tmp_path):
    first, second = bundles
    prices = price_file(tmp_path, first)
    router = Router.load(first)
    watcher = Watcher(router, first, prices=prices)
    watcher.look()
    flip(first / "router.onnx")
    os.utime(first / "manifest.json", ns=(1, 1))
    prices.write_text(prices.read_text() + "\n# other prices\n")
    before = router.prices.id
    with pytest.raises(BundleError):
        watcher.look()
    assert router.prices.id != before
    shutil.copy(second / "router.onnx", first / "router.onnx")
    assert watcher.look()


def test_what_is_refused_is_logged_once_and_tried_again(bundles, tmp_path, caplog):
    first, _ = bundles
    prices = tmp_path / "prices.toml"
    router = Router.load(first)
    taken = threading.Event()
    update_prices = router.update_prices
    looks = []

    def counted(path):
        looks.append(path)
        update_prices(path)
        taken.set()

    router.update_prices = counted
    with caplog.at_level(logging.INFO, "router.watch"), Watcher(router, prices=prices, interval_s=0.01):
        while len(looks) < 3:
            assert threading.active_count() > 1
        price_file(tmp_path, first)
        assert taken.wait(10)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "prices.toml" in warnings[0]
    assert router.prices.id != router.bundle.prices.id
    assert not any(thread.name == "token-broker-watcher" for thread in threading.enumerate())


ABSURD = {
    "20,000 brackets": b"x = " + b"[" * 20_000,
    "5,000 digits": b"x = " + b"9" * 5_000,
    "400 digits": b"context_window = " + b"9" * 400,
    "no UTF-8": bytes(range(256)),
}


def until(holds):
    """Wait for something that another thread does."""
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("waited for 20 s")


@pytest.mark.parametrize("content", ABSURD.values(), ids=ABSURD)
def test_no_price_file_ends_the_watcher(bundle, tmp_path, caplog, content):
    """It says once what is wrong, goes on, and takes the next good file."""
    prices = price_file(tmp_path, bundle)
    good, router = prices.read_bytes(), Router.load(bundle)
    prices.write_bytes(content)
    with pytest.raises(PriceError):
        router.update_prices(prices)
    with caplog.at_level(logging.WARNING, "router.watch"), Watcher(router, prices=prices, interval_s=0.01) as watcher:
        time.sleep(0.1)
        assert watcher.alive and "prices.toml" in watcher.trouble
        (tmp_path / "next").write_bytes(good)
        os.replace(tmp_path / "next", prices)
        until(lambda: watcher.trouble == "")
    assert len(caplog.records) == 1 and not watcher.alive
    assert router.prices.id != router.bundle.prices.id


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), RuntimeError("unforeseen"), SystemError()])
def test_no_error_ends_the_watcher(bundle, tmp_path, caplog, error):
    router, prices = Router.load(bundle), price_file(tmp_path, bundle)
    faults = [error, error, error]
    update_prices, reload = router.update_prices, router.reload

    def failing(work):
        def wrapped(*arguments):
            if faults:
                raise faults.pop()
            work(*arguments)

        return wrapped

    router.update_prices, router.reload = failing(update_prices), failing(reload)
    with caplog.at_level(logging.WARNING, "router.watch"):
        watcher = Watcher(router, bundle, prices=prices, interval_s=0.01).start()
        until(lambda: not faults and watcher.trouble == "")
        assert watcher.start() is watcher and watcher.alive
        watcher.stop()
    assert 1 <= len(caplog.records) <= 2 and type(error).__name__ in caplog.text
    assert router.prices.id != router.bundle.prices.id


def test_the_trouble_of_bundle_and_prices_is_told_at_once(bundles, tmp_path):
    first, second = bundles
    router, prices = Router.load(first), tmp_path / "missing.toml"
    flip(second / "router.onnx")
    with Watcher(router, second, prices=prices) as watcher:
        assert "SHA-256" in watcher.trouble and "missing.toml" in watcher.trouble


def test_errors_share_one_base():
    assert issubclass(BundleError, RouterError) and issubclass(PriceError, RouterError)
