"""A bundle routes in a Node service as it does in Python: the same token ids, the same decisions, the same care."""

import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from http.client import HTTPConnection
from pathlib import Path
from unittest.mock import ANY

import pytest
from chat_shapes import MEDIA_MESSAGES, TEXT_MESSAGES
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from router import PriceError, Router
from router.bundle.manifest import read_manifest
from router.prompt import valid_unicode

EXAMPLES = Path(__file__).parent.parent / "examples"
N_REQUESTS = 300
DEADLINE_S = 60

PRICES = """
[[tiers]]
name = "frontier"
critical = true
[[tiers.offers]]
model = "sim/frontier-1"
provider = "sim-cloud"
region = "us"
context_window = 262144
usd_per_mtok_input = 0.9
usd_per_mtok_output = 4
usd_per_mtok_cached_input = 0.09
usd_per_mtok_cache_write = 1.125
capabilities = ["tools", "vision"]
[[tiers]]
name = "edge"
[[tiers.offers]]
model = "sim/edge-4b"
provider = "local"
region = "local"
context_window = 32768
capabilities = ["tools"]
[tiers.offers.self_hosted]
electricity_usd_per_hour = 0.03
bandwidth_usd_per_hour = 0.001
hardware_usd_per_hour = 0.07
utilization = 0.3
mtok_per_hour = 0.7
[[tiers]]
name = "distilled"
[[tiers.offers]]
model = "sim/distilled-14b"
provider = "sim-east"
region = "cn"
context_window = 131072
usd_per_mtok_input = 0.1
usd_per_mtok_output = 1.4
[[tiers.offers]]
model = "sim/distilled-14b-eu"
provider = "sim-west"
region = "eu"
context_window = 65536
usd_per_mtok_input = 0.36
usd_per_mtok_output = 1.2
capabilities = ["tools"]
"""
BROKEN_PRICES = {
    "no TOML": ("[[tiers", "[[tiers]"),
    "negative price": ("usd_per_mtok_input = 0.9", "usd_per_mtok_input = -0.9"),
    "price is nan": ("usd_per_mtok_input = 0.9", "usd_per_mtok_input = nan"),
    "price is inf": ("usd_per_mtok_input = 0.9", "usd_per_mtok_input = inf"),
    "price is a text": ("usd_per_mtok_input = 0.9", 'usd_per_mtok_input = "0.9"'),
    "price is true": ("usd_per_mtok_input = 0.9", "usd_per_mtok_input = true"),
    "no price": ("usd_per_mtok_input = 0.9", ""),
    "unknown key of an offer": ("usd_per_mtok_input = 0.9", "usd_per_mtok_input = 0.9\nusd_per_token = 1"),
    "unknown key of a tier": ("critical = true", "critcal = true"),
    "critical is a number": ("critical = true", "critical = 1"),
    "other tier": ('name = "edge"', 'name = "cloud"'),
    "tier twice": ('name = "edge"', 'name = "frontier"'),
    "model in two tiers": ("sim/edge-4b", "sim/frontier-1"),
    "both kinds of price": ('region = "local"', 'region = "local"\nusd_per_mtok_input = 1'),
    "utilization of 0": ("utilization = 0.3", "utilization = 0"),
    "utilization above 1": ("utilization = 0.3", "utilization = 1.5"),
    "no context window": ("context_window = 32768", "context_window = 0"),
    "region is empty": ('region = "eu"', 'region = ""'),
    "capabilities is a text": ('capabilities = ["tools"]', 'capabilities = "tools"'),
    "above is a number": ('region = "eu"', 'region = "eu"\nabove = 3'),
    "above lacks a price": ('region = "eu"', 'region = "eu"\nabove = [{ input_tokens = 10 }]'),
    "hours lack a factor": ('region = "eu"', 'region = "eu"\nhours = [{ utc_start = "01:00", utc_end = "02:00" }]'),
    "no time of day": (
        'region = "eu"',
        'region = "eu"\nhours = [{ utc_start = "1:00", utc_end = "02:00", factor = 0.5 }]',
    ),
    "max_share above 1": ('region = "eu"', 'region = "eu"\nmax_share = 2'),
}
PASSAGES = [
    "Prove that the square root of 2 is irrational.",
    "What's 17 * 23? I'll need it by 9:40; they've said it isn't hard.",
    "def fib(n):\n\tif n < 2:\n\t\treturn n\n\treturn fib(n - 1) + fib(n - 2)  # 2**n\r\n",
    'SELECT name, count(*) FROM users WHERE age >= 30 AND city != "Zürich" GROUP BY 1;',
    "用一句话解释什么是量子纠缠。然后给出三个例子：光子、电子和原子！",
    "اشرح نظرية النسبية بكلمات بسيطة، من فضلك؟ ١٢٣",
    "कृपया मुझे भारत की राजधानी के बारे में बताइए। १२३",
    "日本の首都はどこですか？ 대한민국의 수도는 어디입니까?",
    "🚀👩‍👩‍👧‍👦🏳️‍🌈 emoji 👍🏽 in 🇪🇺 a row 😀😀",
    "e\u0301 n\u0303 a\u0300\u0301\u0302 Z\u0351\u036b\u0343 \u1100\u1161\u11a8",
    "lone \ud800 high, \udfff low, \udc00\ud800 reversed",
    "\x00\x01\x1b[31m\x7f\x85 \u200b\u200d\u2028\u2029\ufeff\ufffe",
    "  \u0085a  \ufeffb \u00a0 \u3000 \t\x0b\x0c\x1c\x1f \u180e end",
    "<|endoftext|> [CLS] [SEP] <s></s> <unk> [MASK] <|im_start|>system",
    "∑∫√±×÷ x² + y³ ≤ ½ Ⅻ ① ٣",
    "   leading and trailing   \n\n\n",
]


# ---- the service -----------------------------------------------------------------------------------


def install(folder: Path) -> None:
    """`npm ci` where the packages are not those of the lock file; skips where that cannot be done here."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is missing: the examples in JavaScript need Node 20 or newer")
    wanted = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    stamp = folder / "node_modules" / ".installed-from"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    command = ["npm", "ci", "--prefer-offline", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        trouble = f"npm ci failed in {folder.name}: {done.stderr[-500:]}"
        pytest.fail(trouble) if os.environ.get("CI") else pytest.skip(trouble)
    stamp.write_text(wanted)


class Service:
    """A running service: its address, and what it has logged so far."""

    def __init__(self, address: str, log: Path) -> None:
        self.connection = HTTPConnection(address.removeprefix("http://"), timeout=DEADLINE_S)
        self.log = log

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict]:
        self.connection.request(method, path, body)
        response = self.connection.getresponse()
        return response.status, json.loads(response.read())

    def route(self, request: dict) -> dict:
        status, decision = self.ask("POST", "/route", json.dumps(request).encode())
        assert status == 200, decision
        return decision

    def health_until(self, holds) -> dict:
        """/healthz once it is as wanted: the service looks at the price file now and then."""
        deadline = time.monotonic() + DEADLINE_S
        while not holds(health := self.ask("GET", "/healthz")[1]):
            assert time.monotonic() < deadline, health
            time.sleep(0.05)
        return health


@contextmanager
def serving(bundle: Path, log: Path, *options: str) -> Iterator[Service]:
    command = ["node", "server.js", "--bundle", str(bundle), "--port", "0", *options]
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, cwd=EXAMPLES / "node", stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:"), log.read_text()
            service = Service(line.split()[-1], log)
            yield service
            service.connection.close()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def prices(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prices") / "prices.toml"
    path.write_text(PRICES)
    return path


@pytest.fixture(scope="module")
def node() -> Path:
    """The folder of the example, its packages installed."""
    install(EXAMPLES / "node")
    return EXAMPLES / "node"


@pytest.fixture(scope="module")
def service(node, bundle, prices, tmp_path_factory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("log") / "stderr"
    with serving(bundle, log, "--prices", str(prices)) as running:
        yield running


@pytest.fixture(scope="module")
def python(bundle, prices) -> Router:
    """Python's router at the same prices."""
    router = Router.load(bundle)
    router.update_prices(prices)
    return router


def start_and_fail(bundle: Path) -> str:
    command = ["node", "server.js", "--bundle", str(bundle), "--port", "0"]
    done = subprocess.run(command, cwd=EXAMPLES / "node", capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert done.stdout == ""
    return done.stderr


# ---- requests --------------------------------------------------------------------------------------


def varied_text(rng: random.Random) -> str:
    """Passages, single passages repeated, random characters of one script, and what breaks tokenizers."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(["", " ", "\n", "\n\n", "\t"]).join(rng.choices(PASSAGES, k=rng.randint(1, 6)))
    if kind == 4:
        return rng.choice(PASSAGES) * rng.randint(2, 200)
    if kind == 5:
        return rng.choice(["", " ", "\n", " " * 3000, "\t \n" * 50, "\u3000", "\u0085", "\ufeff", "a" * 3000])
    if kind == 6:
        passage = rng.choice(PASSAGES)
        return (passage * (100_000 // len(passage) + 1))[:100_000]
    first, last = rng.choice([(0, 0xFF), (0x300, 0x5FF), (0x900, 0x97F), (0x2000, 0x2FFF), (0x4E00, 0x9FFF),
                              (0xD700, 0xE100), (0xFE00, 0xFFFF), (0x1F300, 0x1FAFF), (0, 0x10FFFF)])  # fmt: skip
    text = "".join(chr(rng.randint(first, last)) + rng.choice(["", "", " ", "x"]) for _ in range(rng.randint(1, 400)))
    return json.loads(json.dumps(text))  # a pair of surrogates is one character on both sides


def varied_request(rng: random.Random) -> dict:
    def chat() -> list[dict]:
        contents = [varied_text(rng), None, [{"type": "text", "text": varied_text(rng)}, {"type": "image_url"},
                                            {"type": "text", "text": "more"}, {"type": "text", "text": 3}]]  # fmt: skip
        messages = [{"role": "user", "content": content} for content in contents]
        messages += [*TEXT_MESSAGES.values(), *MEDIA_MESSAGES.values()]
        return [rng.choice(messages) for _ in range(rng.randint(1, 4))]

    request: dict = {"messages": chat()} if rng.random() < 0.2 else {"prompt": varied_text(rng)}
    request["quality"] = rng.choice([None, None, 0.01, 0.8, 0.905, 0.95, 0.98, 0.99, 0.999, 1])
    request["worth_usd"] = rng.choice([None, None, 0, 0.0001, 0.003, 0.05, 10])
    if rng.random() < 0.15:
        request["critical"] = True
    if rng.random() < 0.3:
        request["context_tokens"] = rng.choice([0, 1, 250, 32_500, 32_768, 65_000, 100_000, 200_000, 10**9])
    if rng.random() < 0.2:
        request["regions"] = rng.choice([["EU"], ["us", "local"], ["cn", "eu"], [], ["mars"]])
    if rng.random() < 0.2:
        request["capabilities"] = rng.choice([["tools"], ["vision"], ["tools", "vision"], [], ["smell"]])
    return request


@pytest.fixture(scope="module")
def requests() -> list[dict]:
    rng = random.Random(20260105)
    return [varied_request(rng) for _ in range(N_REQUESTS)]


# ---- laws ------------------------------------------------------------------------------------------


def test_every_text_has_the_same_token_ids(node, bundle, python, requests):
    """The texts of the requests, and characters of every script beside letters, spaces and punctuation."""
    codes = [*range(0x3400), *range(0x3400, 0x110000, 24)]  # few of the many ideographs and syllables
    assigned = [chr(code) for code in codes if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
    texts = [request["prompt"] for request in requests if "prompt" in request]
    for start in range(0, len(assigned), 60):
        texts.append("".join(f"a {char}b  {char}{char}!" for char in assigned[start : start + 60]))
    lines = "\n".join(json.dumps(text) for text in texts)
    command = ["node", "ids.js", "--bundle", str(bundle)]
    done = subprocess.run(command, cwd=node, input=lines, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    cut = [valid_unicode(text[: python.bundle.manifest.encoder.max_chars]) for text in texts]
    expected = [encoding.ids for encoding in python.bundle.tokenizer.encode_batch_fast(cut)]
    differing = [text[:80] for text, ids, other in zip(texts, found, expected, strict=True) if ids != other]
    assert differing == []


def test_special_tokens_stay_where_a_text_is_truncated(node):
    """As for the tokenizers of transformer encoders, which the sample log's bundle does not have."""
    tokenizer = Tokenizer(WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "##b": 5}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.enable_truncation(6)
    texts = ["", "a", "a b c", "a b a b", "b a b a b", "a abb " * 9, "[CLS] a [SEP] [SEP] a b"]
    script = """
        import { Tokenizer } from "@huggingface/tokenizers";
        import { textEncoder } from "../javascript/tokens.js";
        const [definition, texts] = process.argv.slice(1).map((argument) => JSON.parse(argument));
        console.log(JSON.stringify(texts.map(textEncoder(Tokenizer, definition))));
    """
    command = ["node", "--input-type=module", "--eval", script, tokenizer.to_str(), json.dumps(texts)]
    done = subprocess.run(command, cwd=node, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [tokenizer.encode(text).ids for text in texts]


def test_every_decision_is_pythons(service, python, requests):
    seen, ids = set(), set()
    for request in requests:
        found, expected = service.route(request), json.loads(python.route(**request).to_json())
        assert list(found) == list(expected)
        del expected["decision_id"]
        ids.add(found.pop("decision_id"))
        for name in ("success", "output_tokens", "cost_usd", "reason"):
            values, others = found.pop(name), expected.pop(name)
            if name == "success":
                assert values == pytest.approx(others, abs=1e-5), request
            elif name == "reason":
                assert values == others if "no tier is eligible" in others else values, request
            else:
                assert values == pytest.approx(others, rel=1e-5), request
        assert found == expected, request
        seen.add((found["tier"], found["offer"] and found["offer"]["model"], found["fallback"]))
    assert len(ids) == len(requests)
    assert all(re.fullmatch("[0-9a-f]{32}", decision_id) for decision_id in ids)
    assert {("frontier", "sim/frontier-1", False), ("frontier", None, True), ("edge", "sim/edge-4b", False)} <= seen
    assert {("distilled", "sim/distilled-14b", False), ("distilled", "sim/distilled-14b-eu", False)} <= seen


@pytest.mark.parametrize("regions", [None, ["CN"], ["local"]])
def test_chats_of_every_shape_are_read_as_in_python(service, python, regions):
    """At a price table of which some offers state vision."""
    reached = set()
    for message in [*TEXT_MESSAGES.values(), *MEDIA_MESSAGES.values()]:
        for messages in ([message], [message, {"role": "user", "content": "What is this?"}]):
            request = {"messages": messages, "regions": regions, "worth_usd": 0}
            found, expected = service.route(request), python.route(**request)
            assert (found["tier"], found["offer"]) == (expected.tier, json.loads(expected.to_json())["offer"]), messages
            assert found["fallback"] == expected.fallback
            assert not expected.fallback or found["reason"] == expected.reason
            reached.add((expected.tier, expected.fallback))
    assert len(reached) > 1


@pytest.mark.parametrize(
    "request_", [{}, {"prompt": 3}, {"prompt": "a", "messages": []}, {"messages": []}, {"messages": [{"content": 1}]},
                 {"messages": "hello"}, {"messages": ["hello"]}],
    ids=str,
)  # fmt: skip
def test_what_is_no_prompt_gets_the_fallback_with_a_reason(service, python, request_):
    found = service.route(request_)
    assert "cannot be read" in found["reason"]
    decision = replace(python.route(**request_), reason=found["reason"], decision_id=found["decision_id"])
    expected = json.loads(decision.to_json())
    assert found == expected


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"prompt": "secret", "qualty": 1}',
             b'{"prompt": NaN}', b'{"prompt": "secret"', b"[" * 100_000],
    ids=range(10),
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused_and_the_service_goes_on(service, body):
    status, answer = service.ask("POST", "/route", body)
    assert status == 400
    assert "expected" in answer["error"]
    assert service.route({"prompt": "Hello!"})["tier"]


@pytest.mark.parametrize(
    "dials", [{"quality": 0}, {"quality": 1.1}, {"quality": "high"}, {"worth_usd": -1}, {"worth_usd": []},
              {"context_tokens": -1}, {"context_tokens": "9"}, {"critical": "yes"}, {"regions": "eu"},
              {"capabilities": [1]}],
    ids=str,
)  # fmt: skip
def test_a_dial_out_of_range_is_refused_with_what_was_found_and_expected(service, dials):
    status, answer = service.ask("POST", "/route", json.dumps({"prompt": "Hello!", **dials}).encode())
    assert status == 400
    (name, value), = dials.items()  # fmt: skip
    assert answer["error"].startswith(f"{name} is {json.dumps(value, separators=(',', ':'))}; expected")


def test_other_paths_methods_and_sizes_are_refused(service):
    assert service.ask("GET", "/")[0] == 404
    assert service.ask("GET", "/route")[0] == 405
    assert service.ask("POST", "/healthz", b"{}")[0] == 405
    assert service.ask("POST", "/route", b" " * (5 * 1024 * 1024))[0] == 413
    assert service.ask("GET", "/healthz")[0] == 200


def test_numbers_that_no_price_or_prompt_can_have_are_refused_as_in_python(service):
    for dials in ({"worth_usd": 1e300}, {"context_tokens": 1e300}):
        status, answer = service.ask("POST", "/route", json.dumps({"prompt": "Hello!", **dials}).encode())
        assert status == 400 and "from 0 to 1e12" in answer["error"]


def raw_answer(service, head: str, pieces: Iterator[bytes], limit_s: float) -> tuple[bytes, float]:
    """What the service answers while a body still comes, and how many seconds until it closes the connection."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", service.connection.port), timeout=limit_s) as connection:
        connection.sendall(f"POST /route HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        connection.settimeout(0.05)
        answer = b""
        while time.monotonic() - start < limit_s:
            with suppress(TimeoutError):
                connection.sendall(next(pieces))
            with suppress(TimeoutError):
                try:
                    received = connection.recv(65536)
                except ConnectionError:
                    received = b""
                answer += received
                if not received:
                    break
        return answer, time.monotonic() - start


def endless(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


@pytest.mark.parametrize("head", [f"Content-Length: {10**9}", "Transfer-Encoding: chunked"])
def test_a_body_that_is_too_large_is_not_read_to_its_end(service, head):
    piece = b" " * 100_000
    chunk = f"{len(piece):x}\r\n".encode() + piece + b"\r\n" if "chunked" in head else piece
    try:
        answer, seconds = raw_answer(service, head, endless(chunk), 20)
    except ConnectionError:
        pytest.fail("the connection was closed before the answer could be read")
    assert answer.startswith(b"HTTP/1.1 413 ") and seconds < 15


def test_a_body_that_comes_too_slowly_is_not_waited_for(service):
    answer, seconds = raw_answer(service, "Content-Length: 1000", endless(b" "), 20)
    assert answer.startswith(b"HTTP/1.1 408 ") and 9 < seconds < 15
    service.connection.close()  # The service has closed it, since nothing came meanwhile.
    assert service.route({"prompt": "Hello!"})["tier"]


def test_no_prompt_is_logged(service):
    for body in (
        b'{"prompt": "my secret"}',
        b'{"prompt": "my secret"',
        b'{"my secret": 1}',
        b'{"messages": "my secret"}',
    ):
        service.ask("POST", "/route", body)
    service.ask("POST", "/route?prompt=my%20secret", b'{"prompt": "my secret", "quality": 7}')
    log = service.log.read_text()
    assert "golden prompts agree" in log
    assert "secret" not in log


@pytest.mark.parametrize("name", BROKEN_PRICES)
def test_a_broken_price_table_never_replaces_a_good_one(service, python, prices, name):
    good = service.health_until(lambda health: health["prices_refused"] is None)
    before = service.route({"prompt": "Hello!"})
    old, new = BROKEN_PRICES[name]
    assert PRICES.count(old) >= 1
    try:
        replace_file(prices, PRICES.replace(old, new, 1))
        with pytest.raises(PriceError):
            python.update_prices(prices)
        refused = service.health_until(lambda health: health["prices_refused"] is not None)
        assert refused["prices_refused"].startswith("price table refused: ")
        assert refused["price_table_id"] == good["price_table_id"]
        assert service.route({"prompt": "Hello!"}) == {**before, "decision_id": ANY}
    finally:
        replace_file(prices, PRICES)


ALWAYS = (
    'hours = [{ utc_start = "00:00", utc_end = "12:00", factor = 100 }, '
    '{ utc_start = "12:00", utc_end = "00:00", factor = 100 }]'
)
NEW_PRICES = {
    "dearer answers": "usd_per_mtok_output = 400",
    "dearer hours": f"usd_per_mtok_output = 4\n{ALWAYS}",
    "dearer above": "usd_per_mtok_output = 4\n"
    "above = [{ input_tokens = 1, usd_per_mtok_input = 90, usd_per_mtok_output = 400 }]",
}


@pytest.mark.parametrize("name", NEW_PRICES)
def test_a_new_price_table_is_taken_without_a_restart(service, python, prices, name):
    text = PRICES.replace("usd_per_mtok_output = 4", NEW_PRICES[name])
    before = service.route({"prompt": "Hello!"})
    try:
        replace_file(prices, text)
        service.health_until(lambda health: health["price_table_id"] != before["price_table_id"])
        python.update_prices(prices)
        after, expected = service.route({"prompt": "Hello!"}), python.route("Hello!")
        assert after["price_table_id"] == expected.price_table_id
        assert after["cost_usd"] == pytest.approx(dict(expected.cost_usd), rel=1e-5)
        assert after["cost_usd"]["frontier"] > 50 * before["cost_usd"]["frontier"]
        assert after["offer"] == json.loads(json.dumps(asdict(expected.offer)))
    finally:
        replace_file(prices, PRICES)
        python.update_prices(prices)
        service.health_until(lambda health: health["price_table_id"] == before["price_table_id"])


def replace_file(path: Path, text: str) -> None:
    """As careful writers do: never a half-written file in its place."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def test_a_bundle_that_routes_otherwise_does_not_start(node, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    lines = [json.loads(line) for line in (copy / "golden.jsonl").read_text().splitlines()]
    lines[3]["success"][0] += 0.01
    (copy / "golden.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = read_manifest(copy)
    digest = hashlib.sha256((copy / "golden.jsonl").read_bytes()).hexdigest()
    manifest = replace(manifest, files={**manifest.files, "golden.jsonl": digest})
    (copy / "manifest.json").write_text(manifest.to_json())
    assert "golden prompts" in start_and_fail(copy)


def test_an_altered_or_incomplete_bundle_does_not_start(node, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = (copy / "manifest.json").read_text()

    (copy / "report.json").write_text("{}")
    assert "report.json has SHA-256" in start_and_fail(copy)
    (copy / "report.json").unlink()
    assert "report.json cannot be read" in start_and_fail(copy)
    (copy / "manifest.json").write_text(manifest.replace('"default_quality": 0.98', '"default_quality": 0.9'))
    assert "it was altered" in start_and_fail(copy)
    (copy / "manifest.json").write_text(manifest.replace('"format_version": 3', '"format_version": 2'))
    assert "format_version 2, expected 3" in start_and_fail(copy)
    (copy / "manifest.json").unlink()
    assert "manifest.json cannot be read" in start_and_fail(copy)


@pytest.mark.parametrize("example", ["node", "browser"])
def test_the_lock_file_names_no_registry(example):
    lock = json.loads((EXAMPLES / example / "package-lock.json").read_text())
    packages = [package for name, package in lock["packages"].items() if name]
    assert packages
    assert all("resolved" not in package and "integrity" in package for package in packages)
