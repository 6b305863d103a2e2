"""A bundle routes in the browser as it does in Python, and the page shows it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_node_example import EXAMPLES, install

DEADLINE_S = 120
PROMPTS = [
    "",
    "Hello!",
    "Prove that the square root of 2 is irrational.",
    "What is 17 * 23?",
    "Write a Python function that returns the longest palindrome in a string.",
    "用一句话解释什么是量子纠缠。",
    "اشرح نظرية النسبية بكلمات بسيطة، من فضلك؟",
    "कृपया मुझे भारत की राजधानी के बारे में बताइए।",
    "🚀👩‍👩‍👧‍👦 e\u0301 👍🏽 \u0085 \ufeff x",
    "<|endoftext|> [CLS] [SEP]",
    "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive?\n" * 3,
    "Summarise the following text in one sentence. " + "The river rose all night, and by morning. " * 900,
]
QUALITIES = [0.8, 0.9, 0.98, 1]
VIEWPORTS = {"desktop": (1280, 860), "phone": (390, 844)}

# Reads a plan {url, steps: [{prompt, quality, prices: {tier: slider}}]} from stdin, prints what the page then shows.
DRIVER = """
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const plan = JSON.parse(readFileSync(0, "utf-8"));
const { chromium } = createRequire(plan.package)("playwright-core");
const context = await chromium.launchPersistentContext(plan.profile, {
  executablePath: plan.chromium,
  viewport: { width: plan.viewport[0], height: plan.viewport[1] },
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const complaints = [];
const seen = { steps: [], complaints, urls: [] };
try {
  const page = await context.newPage();
  page.setDefaultTimeout(plan.timeoutMs);
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  page.on("request", (request) => seen.urls.push(request.url()));
  await page.goto(plan.url);
  await page.waitForFunction(() => !identity.hidden || document.querySelector(".trouble"));
  seen.status = await page.evaluate(() => document.getElementById("status").textContent);
  for (const step of plan.steps) {
    seen.steps.push(await page.evaluate(async (step) => {
      const element = (id) => document.getElementById(id);
      const set = (control, value) => {
        control.value = value;
        control.dispatchEvent(new Event("input", { bubbles: true }));
      };
      set(element("prompt"), step.prompt);
      set(element("quality"), step.quality);
      for (const [tier, value] of Object.entries(step.prices)) {
        set(document.querySelector(`[data-tier="${tier}"] .price`), value);
      }
      while (element("answer").ariaBusy === "true") await new Promise((resolve) => setTimeout(resolve, 5));
      const numbers = (name) => Object.fromEntries(Array.from(document.querySelectorAll("[data-tier]"),
        (row) => [row.dataset.tier, Number(row.querySelector(name).value)]));
      return {
        tier: element("tier").textContent,
        chosen: Array.from(document.querySelectorAll(".chosen"), (row) => row.dataset.tier),
        offer: element("offer").textContent,
        reason: element("reason").textContent,
        cost: Number(element("cost").value),
        success: numbers(".success"),
        costs: numbers(".cost"),
      };
    }, step));
  }
  seen.golden = await page.evaluate(() => document.getElementById("golden").dataset.passed);
  seen.bundleId = await page.evaluate(() => document.getElementById("bundle-id").textContent);
  seen.widest = await page.evaluate(() => document.documentElement.scrollWidth);
} finally {
  await context.close();
}
console.log(JSON.stringify(seen));
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("chromium is missing: the page is tested in a browser")
    install(EXAMPLES / "browser")
    return found


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """The address of the page, from its own small server."""
    command = ["node", "serve.js", "--bundle", str(bundle), "--port", "0"]
    with subprocess.Popen(command, cwd=EXAMPLES / "browser", stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def visit(chromium: str, url: str, profile: Path, steps: list[dict], viewport: str = "desktop") -> dict:
    """What the page shows after each step, a fresh browser for each visit."""
    plan = {
        "url": url,
        "steps": steps,
        "chromium": chromium,
        "profile": str(profile),
        "viewport": VIEWPORTS[viewport],
        "timeoutMs": 1000 * DEADLINE_S,
        "package": str(EXAMPLES / "browser" / "package.json"),
    }
    command = ["node", "--input-type=module", "--eval", DRIVER]
    done = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def step(prompt: str, quality: float = 0.98, **prices: float) -> dict:
    return {"prompt": prompt, "quality": quality, "prices": prices}


# ---- laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("viewport", VIEWPORTS)
def test_the_page_decides_as_python_does(chromium, bundle, router, tmp_path, viewport):
    cases = [(prompt, QUALITIES[index % len(QUALITIES)]) for index, prompt in enumerate(PROMPTS)]
    with served(bundle) as url:
        page = visit(chromium, url, tmp_path, [step(prompt, quality) for prompt, quality in cases], viewport)
    assert page["complaints"] == []
    assert page["golden"] == "true"
    assert page["bundleId"] == router.bundle.manifest.bundle_id
    assert page["widest"] == VIEWPORTS[viewport][0]  # nothing stands beyond the edge
    assert all(request.startswith(url.split("/browser")[0]) for request in page["urls"] if request.startswith("http"))
    for (prompt, quality), shown in zip(cases, page["steps"], strict=True):
        decision = router.route(prompt, quality=quality)
        assert shown["tier"] == decision.tier, prompt
        assert shown["chosen"] == [decision.tier]
        assert shown["offer"].startswith(f"{decision.offer.model} at {decision.offer.provider}")
        assert shown["reason"].startswith(f"{decision.tier}: ")
        assert shown["success"] == pytest.approx(dict(decision.success), abs=1e-5)
        assert shown["costs"] == pytest.approx(dict(decision.cost_usd), rel=1e-5)
        assert shown["cost"] == shown["costs"][decision.tier]


def test_a_dearer_tier_loses_the_prompt_as_in_python(chromium, bundle, router, tmp_path):
    """Each prompt at today's prices, with its tier ten times dearer, and with its tier a hundredth."""
    tiers = [router.route(prompt, quality=0.9).tier for prompt in PROMPTS]
    steps, expected = [], []
    for prompt, tier in zip(PROMPTS, tiers, strict=True):
        for slider in (0, 1, -2):
            steps.append(step(prompt, 0.9, **{**dict.fromkeys(router.bundle.manifest.tiers, 0), tier: slider}))
            router.update_prices(scaled_prices(bundle, tmp_path / "prices.toml", tier, 10.0**slider))
            expected.append(router.route(prompt, quality=0.9))
    assert any(dear.tier != now.tier for now, dear in zip(expected[::3], expected[1::3], strict=True))
    with served(bundle) as url:
        page = visit(chromium, url, tmp_path / "profile", steps)
    assert page["complaints"] == []
    for shown, decision in zip(page["steps"], expected, strict=True):
        assert shown["tier"] == decision.tier
        assert shown["costs"] == pytest.approx(dict(decision.cost_usd), rel=1e-5)
        assert shown["reason"].startswith(f"{decision.tier}: ")


def scaled_prices(bundle: Path, path: Path, tier: str, factor: float) -> Path:
    """The bundle's tiers.toml with every price of one tier times a factor; an hour of own hardware costs it too."""
    tables = re.split(r"^(?=\[\[tiers\]\])", (bundle / "tiers.toml").read_text(), flags=re.MULTILINE)
    price = re.compile(r"(usd_per_(?:mtok_input|mtok_output|hour) = )([0-9.]+)")
    assert sum(f'name = "{tier}"' in table for table in tables) == 1
    path.write_text("".join(
        price.sub(lambda found: f"{found[1]}{float(found[2]) * factor!r}", table)
        if f'name = "{tier}"' in table else table
        for table in tables
    ))  # fmt: skip
    return path


def test_a_broken_bundle_is_said_on_the_page(chromium, bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    graph = bytearray((copy / "router.onnx").read_bytes())
    graph[-1] ^= 1
    (copy / "router.onnx").write_bytes(graph)
    with served(copy) as url:
        altered = visit(chromium, url, tmp_path / "altered", [])
        elsewhere = visit(chromium, f"{url}?bundle=/nowhere/", tmp_path / "elsewhere", [])
    assert "router.onnx has SHA-256" in altered["status"]
    assert "manifest.json cannot be read" in elsewhere["status"]
