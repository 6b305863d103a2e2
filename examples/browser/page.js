/** The page: what stands in its controls goes through the router, the decision goes onto the page. */

import { loadRouter } from "./router.js";

const SAMPLES = {
  Proof: "Prove that the square root of 2 is irrational.",
  Greeting: "Hello! Can you suggest a name for my cat?",
  Arithmetic: "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive?",
  Code: "Write a Python function that returns the longest palindrome in a string.",
  Chinese: "用一句话解释什么是量子纠缠。",
};

const element = (id) => document.getElementById(id);
const percent = (share) => `${(share * 100).toFixed(1)} %`;
const usd = (amount) => `$${amount.toPrecision(3)}`;

/** Whatever calls it while it is at work is served by one more run at the end: the last state always shows. */
function latestOnly(work) {
  let running = false;
  let stale = false;
  return async () => {
    stale = true;
    if (running) return;
    running = true;
    element("answer").ariaBusy = "true";
    try {
      while (stale) {
        stale = false;
        await work();
      }
    } finally {
      running = false;
      element("answer").ariaBusy = "false";
    }
  };
}

function bundleUrl() {
  const url = new URL(new URLSearchParams(location.search).get("bundle") ?? "/bundle/", location.href);
  if (url.origin !== location.origin) throw new Error(`?bundle= is at ${url.origin}; expected a folder of this server`);
  return url;
}

/** A row per tier; returns {tier: its <li>}. */
function makeRows(tiers, onPrice) {
  const rows = {};
  for (const tier of tiers) {
    const row = element("row").content.cloneNode(true).querySelector("li");
    row.dataset.tier = tier;
    row.querySelector(".name").textContent = tier;
    row.querySelector(".price").setAttribute("aria-label", `Price of ${tier}, times today's, logarithmic`);
    row.querySelector(".price").addEventListener("input", onPrice);
    element("rows").append(row);
    rows[tier] = row;
  }
  return rows;
}

function priceFactors(rows) {
  return Object.fromEntries(
    Object.entries(rows).map(([tier, row]) => [tier, 10 ** Number(row.querySelector(".price").value)]),
  );
}

function show(decision, rows, factors, durationMs) {
  element("tier").textContent = decision.tier;
  const { offer } = decision;
  element("offer").textContent = offer ? `${offer.model} at ${offer.provider} (${offer.region})` : "no eligible offer";
  setData(element("cost"), decision.cost_usd[decision.tier], usd);
  setData(element("success"), decision.success[decision.tier], percent);
  element("duration").textContent = `${durationMs.toFixed(1)} ms`;
  element("reason").textContent = decision.reason;
  element("quality-shown").textContent = percent(decision.quality);
  element("price-table-id").textContent = decision.price_table_id;
  const bar = Math.max(...Object.values(decision.success)) - decision.slack;
  for (const [tier, row] of Object.entries(rows)) {
    row.classList.toggle("chosen", tier === decision.tier);
    row.classList.toggle("below", decision.success[tier] < bar && tier !== decision.tier);
    row.querySelector(".fill").style.width = `${decision.success[tier] * 100}%`;
    row.querySelector(".mark").style.left = `${Math.max(0, bar) * 100}%`;
    setData(row.querySelector(".success"), decision.success[tier], percent);
    setData(row.querySelector(".cost"), decision.cost_usd[tier], usd);
    row.querySelector(".tokens").textContent = `about ${decision.output_tokens[tier].toFixed(0)} tokens`;
    row.querySelector(".factor").textContent = `× ${factors[tier].toPrecision(3)}`;
  }
}

/** A figure as people read it, and in full for machines. */
function setData(data, value, shown) {
  data.value = String(value);
  data.textContent = shown(value);
}

function showGolden({ passed, nPrompts, largestDifference, otherTier }) {
  const cell = element("golden");
  cell.dataset.passed = String(passed);
  cell.classList.toggle("trouble", !passed);
  cell.textContent = passed
    ? `${nPrompts} of ${nPrompts} agree (largest difference ${largestDifference.toExponential(1)})`
    : `${otherTier.length} of ${nPrompts} go elsewhere (largest difference ${largestDifference.toExponential(1)})`;
}

function showTrouble(error) {
  element("status").hidden = false;
  element("status").className = "trouble";
  element("status").textContent = error.message;
}

async function main() {
  const router = await loadRouter(bundleUrl());
  showGolden(await router.checkGolden());

  const quality = element("quality");
  const { dial, default_quality: defaultQuality, tiers } = router.manifest;
  Object.assign(quality, { min: dial[0].quality, max: 1 });
  quality.value = defaultQuality;

  const decide = latestOnly(async () => {
    const factors = priceFactors(rows);
    router.prices = router.bundlePrices.scaled(factors);
    const start = performance.now();
    const decision = await router.route({ prompt: element("prompt").value, quality: Number(quality.value) });
    show(decision, rows, factors, performance.now() - start);
  });
  const update = () => decide().catch(showTrouble);
  const rows = makeRows(tiers, update);
  element("prompt").addEventListener("input", update);
  quality.addEventListener("input", update);
  element("reset").addEventListener("click", () => {
    for (const row of Object.values(rows)) row.querySelector(".price").value = 0;
    update();
  });
  for (const [name, prompt] of Object.entries(SAMPLES)) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    button.addEventListener("click", () => {
      element("prompt").value = prompt;
      update();
    });
    element("samples").append(button);
  }

  await decide();
  element("bundle-id").textContent = router.bundleId;
  element("status").hidden = true;
  for (const id of ["answer", "tiers", "identity"]) element(id).hidden = false;
}

main().catch(showTrouble);
