/**
 * Routing from a bundle, as models/README.md specifies it: what Node and the browser have in common.
 *
 * The libraries come as arguments, since each platform has its own: onnxruntime-node or onnxruntime-web, and how a
 * file is read.
 */

import { BundleError, DialError, PriceError, PromptError, shown } from "./errors.js";
import { explain } from "./explanation.js";
import { compareGolden } from "./golden.js";
import { bundleId, checkFile, decodeUtf8, hexadecimal, parseManifest, REQUIRED_FILES } from "./manifest.js";
import { checkWorth, directPlan, loadPlanner, PLAN_FILES } from "./plans.js";
import { PriceTable } from "./prices.js";
import { cutText, mediaCapabilities, promptText, validUnicode } from "./prompt.js";
import { textEncoder } from "./tokens.js";

const CLUSTERS_FILE = "clusters.json";
const GOLDEN_TOLERANCE = 1e-4;
const MOST = 1e12;  // tokens of a context, or USD of a worth
const OUTPUTS = ["success", "output_tokens", "cost_usd", "tier", "familiarity", "cluster"];

/** What a request may say. */
export const REQUEST_KEYS = [
  "prompt", "messages", "quality", "worth_usd", "critical", "context_tokens", "regions", "capabilities", "request_id",
];
/** What a request for a plan may say; `quality` to be told that it needs a worth. */
export const PLAN_REQUEST_KEYS = [...REQUEST_KEYS, "checks", "max_calls"];

/** Sends each request to the cost-optimal tier. */
export class Router {
  /** Use openRouter instead. prices: the table in use; assign another to route at other prices. */
  constructor({ manifest, encode, session, ort, parseToml, bundlePrices, golden, planner = null, clusters = null }) {
    this.manifest = manifest;
    this.bundleId = bundleId(manifest);
    this.bundlePrices = bundlePrices;
    this.prices = bundlePrices;
    this.encode = encode;
    this.session = session;
    this.ort = ort;
    this.parseToml = parseToml;
    this.golden = golden;
    this.planner = planner;
    this.clusters = clusters;
  }

  /**
   * Decide which tier answers one request.
   *
   * prompt or messages: the text, or the chat (oldest message first).
   * quality: in (0, 1], keep at least this share of the accuracy of always asking the best tier.
   * worth_usd: what a correct answer is worth; alone, it lets money decide freely.
   * critical: only the highest success among the tiers that may answer critical requests.
   * context_tokens: tokens of the whole conversation, where the caller has counted them.
   * regions, capabilities: which offers are eligible. request_id: carried into the decision.
   *
   * Never rejects because of a prompt: where the router cannot decide, the fallback tier answers and `reason` says
   * why. Rejects with DialError where another argument is out of range.
   */
  async route(request) {
    return this.#routeAt(request, this.prices);
  }

  /**
   * The best plan for one request: whom to ask first, what to look at, when to stop, and whom to ask next.
   *
   * worth_usd: what a correct answer is worth. checks: what may be looked at, "agreement" or names of checks that the
   * bundle learned; by default agreement, where the bundle knows it. max_calls: 1 to 3.
   * The other keys are those of `route`, without quality: which worth keeps a quality is proven in Python only.
   *
   * Never rejects because of a prompt; rejects with DialError or CheckError where another argument is not as expected.
   */
  async plan(request) {
    return this.#planAt(request, this.prices);
  }

  /**
   * What a decision of this router rests on and what would change it: {tier, reason, admissible, changes, similar}.
   * `similar` is null where clusters.json was not read. See explanation.js.
   */
  explain(decision) {
    return explain(decision, this.clusters);
  }

  /** The token ids that the graph reads for a text, and how many characters the text has. */
  tokenIds(text) {
    const { head, nChars } = cutText(text, this.manifest.encoder.max_chars);
    return { ids: this.encode(validUnicode(head)), nChars };
  }

  /** Whether the golden prompts and plans come out as the bundle says, at its own prices; see compareGolden. */
  async checkGolden() {
    return compareGolden({
      tiers: this.manifest.tiers,
      golden: this.golden,
      goldenPlans: this.planner?.golden ?? null,
      route: (request) => this.#routeAt(request, this.bundlePrices),
      plan: (request) => this.#planAt(request, this.bundlePrices),
      tolerance: GOLDEN_TOLERANCE,
    });
  }

  async #planAt({ checks, max_calls: maxCalls, ...request }, prices) {
    if ((request.quality ?? null) !== null) {
      const expected = "expected worth_usd: which worth keeps a quality is proven by the router in Python";
      throw new DialError(`quality is ${shown(request.quality)}; ${expected}`);
    }
    checkWorth(request.worth_usd);
    const { tiers, output_tokens: outputTokens } = this.manifest;
    const decision = await this.#routeAt(request, prices);
    const accepts = acceptedBy(offerFilter(request, prices));
    const offers = prices.cheapestOffers(decision.context_tokens, outputTokens, accepts);
    const models = offers.map((offer) => offer?.model ?? null);
    if (this.planner === null) {
      const isUnread = PLAN_FILES.some((name) => name in this.manifest.files);
      const why = isUnread ? "the files that make plans were not read" : "the bundle has learned no plans";
      return directPlan(decision, [], why, models, tiers);
    }
    const { worth_usd: worthUsd, critical = false } = request;
    return this.planner.plan(decision, { checks, maxCalls: maxCalls ?? undefined, worthUsd, critical, models });
  }

  async #routeAt(request, prices) {
    const dials = resolveDials(this.manifest, request);
    const filter = offerFilter(request, prices);
    const accepts = acceptedBy(filter);
    let text;
    try {
      text = promptText(request.prompt, request.messages);
    } catch (error) {
      if (!(error instanceof PromptError)) throw error;
      const offers = prices.cheapestOffers(0, this.manifest.output_tokens, accepts);
      const eligible = prices.eligible(offers, dials.critical);
      return this.#fallback(`the prompt cannot be read: ${error.message}`, { request, prices, dials, offers, eligible });
    }
    const { ids, nChars } = this.tokenIds(text);
    const contextTokens = request.context_tokens ?? billedTokens(this.manifest.encoder, nChars, ids.length);
    const offers = prices.cheapestOffers(contextTokens, this.manifest.output_tokens, accepts);
    const eligible = prices.eligible(offers, dials.critical);
    const answer = await this.#run(ids, contextTokens, offers, eligible, dials);
    const context = { request, prices, dials, offers, eligible, contextTokens, ...answer };
    if (answer.tier < 0) {
      return this.#fallback(whyNone(prices.tiers, filter, contextTokens, dials.critical), context);
    }
    const best = manifestBest(this.manifest);
    const bestTier = dials.unproven && eligible[best] ? best : null;
    const tier = bestTier === null ? answer.tier : orBestTier(answer, bestTier, dials.worthUsd);
    return this.#decision(tier, this.#reason(dials, { ...answer, tier }, eligible), { ...context, bestTier });
  }

  /** success, output_tokens, cost_usd (each n_tiers numbers), tier, familiarity and cluster from the graph. */
  async #run(ids, contextTokens, offers, eligible, dials) {
    const { Tensor } = this.ort;
    const nTiers = offers.length;
    const number = (value) => new Tensor("float32", Float32Array.of(value), [1]);
    const row = (values) => new Tensor("float32", Float32Array.from(values), [1, nTiers]);
    const feeds = {
      input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), [1, ids.length]),
      context_tokens: number(contextTokens),
      usd_per_mtok_input: row(offers.map((offer) => offer?.usd_per_mtok_input ?? 0)),
      usd_per_mtok_output: row(offers.map((offer) => offer?.usd_per_mtok_output ?? 0)),
      eligible: new Tensor("bool", Uint8Array.from(eligible, Number), [1, nTiers]),
      worth_usd: number(dials.worthUsd),
      slack: number(dials.slack),
    };
    const outputs = await this.session.run(feeds, OUTPUTS);
    return {
      success: Array.from(outputs.success.data),
      outputTokens: Array.from(outputs.output_tokens.data),
      costUsd: Array.from(outputs.cost_usd.data),
      tier: Number(outputs.tier.data[0]),
      familiarity: outputs.familiarity.data[0],
      cluster: Number(outputs.cluster.data[0]),
    };
  }

  /** The best tier answers or, where it may not but others may, the best on average of those. */
  #fallback(trouble, context) {
    const { tiers, best_tier, success } = this.manifest;
    const { eligible } = context;
    let tier = tiers.indexOf(best_tier);
    if (!eligible[tier] && eligible.includes(true)) {
      tier = success.indexOf(Math.max(...success.filter((_, index) => eligible[index])));
    }
    return this.#decision(tier, `fallback to ${tiers[tier]}: ${trouble}`, { ...context, fallback: true });
  }

  #decision(tier, reason, context) {
    const { request, prices, dials, offers, eligible = [], contextTokens = 0, fallback = false } = context;
    const { success = [], outputTokens = [], costUsd = [], familiarity = null, cluster = null } = context;
    const { bestTier = null } = context;
    const perTier = (values) => Object.fromEntries(values.map((value, index) => [this.manifest.tiers[index], value]));
    return {
      tier: this.manifest.tiers[tier],
      offer: offers[tier],
      success: perTier(success),
      output_tokens: perTier(outputTokens),
      cost_usd: perTier(costUsd),
      reason,
      context_tokens: contextTokens,
      quality: dials.quality,
      worth_usd: dials.worthUsd,
      slack: dials.slack,
      promised: dials.promised && !fallback && familiarity === 1,
      fallback,
      bundle_id: this.bundleId,
      price_table_id: prices.id,
      decision_id: hexadecimal(globalThis.crypto.getRandomValues(new Uint8Array(16))),
      request_id: request.request_id ?? null,
      propensity: 1,
      familiarity,
      eligible: fallback ? [] : this.manifest.tiers.filter((_, index) => eligible[index]),
      cluster,
      best_tier: bestTier === null ? null : this.manifest.tiers[bestTier],
      shadow_usd: {}, // Caps and budgets are kept by the service in Python.
      request_class: null, // So are the classes of a policy.
    };
  }

  /** Why the graph chose this tier, in a sentence. */
  #reason(dials, { success, tier, familiarity }, eligible) {
    const names = this.manifest.tiers;
    const candidates = success.filter((_, index) => eligible[index]);
    const bar = Math.max(...candidates) - dials.slack;
    const nAdmissible = candidates.filter((probability) => probability >= bar).length;
    const slack = dials.slack.toFixed(3);
    const notEligible = names.filter((_, index) => !eligible[index]);
    const best = manifestBest(this.manifest);
    let why;
    if (dials.unproven && tier === best) why = "the best tier of the log";
    else if (dials.critical) why = "critical request: highest success among the tiers that may answer it";
    else if (dials.slack === 0) why = "highest success";
    else if (nAdmissible === 1) why = `no other tier within ${slack} of the highest success`;
    else if (dials.worthUsd > 0) why = `largest worth x success - cost of ${nAdmissible} admissible tiers`;
    else why = `cheapest of ${nAdmissible} tiers within ${slack} of the highest success`;
    if (dials.unproven) {
      if (!eligible[best]) why += `; the best tier of the log, ${names[best]}, may not answer`;
      why += `; the training log carries no promise of quality ${dials.quality}`;
      if (dials.nNeeded) {
        const { n_prompts: nPrompts = 0, prompts = "prompts" } = this.manifest.promise;
        const number = (count) => count.toLocaleString("en-US");
        why += `, which takes about ${number(dials.nNeeded)} ${prompts}: there are ${number(nPrompts)}`;
      }
    }
    if (notEligible.length > 0) why += `; not eligible: ${notEligible.join(", ")}`;
    if (familiarity < 1) {
      why += `; unlike the training log (familiarity ${familiarity.toFixed(2)}): estimates drawn towards the means`;
    }
    return `${names[tier]}: ${why}`;
  }
}

/**
 * A router from a bundle.
 *
 * readFile: async function from a file's name in the bundle to its bytes (Uint8Array).
 * libraries: {ort: onnxruntime, Tokenizer: of @huggingface/tokenizers, parseToml: from text to plain objects}.
 * options.files: names to read and check; by default every file that the manifest lists.
 * options.sessionOptions: of onnxruntime.
 * options.RouterClass: the class of the result, Router or one that extends it.
 * Rejects with BundleError where the bundle is not complete and unaltered.
 */
export async function openRouter(readFile, libraries, options = {}) {
  const { ort, Tokenizer, parseToml } = libraries;
  const { files = null, sessionOptions = {}, RouterClass = Router } = options;
  const manifest = await parseManifest(await readBundleFile(readFile, "manifest.json"));
  const contents = {};
  for (const name of files ?? Object.keys(manifest.files)) {
    contents[name] = await readBundleFile(readFile, name);
    await checkFile(manifest, name, contents[name]);
  }
  const [graph, tokenizer, tiers, golden] = REQUIRED_FILES.map((name) => contents[name]);
  try {
    return new RouterClass({
      manifest,
      ort,
      parseToml,
      encode: textEncoder(Tokenizer, JSON.parse(decodeUtf8(tokenizer))),
      session: await ort.InferenceSession.create(graph, sessionOptions),
      bundlePrices: await PriceTable.parse(tiers, parseToml, manifest.tiers),
      golden: decodeUtf8(golden).trim().split("\n").map((line) => JSON.parse(line)),
      planner: await loadPlanner(contents, manifest.tiers, ort, sessionOptions),
      clusters: CLUSTERS_FILE in contents ? JSON.parse(decodeUtf8(contents[CLUSTERS_FILE])) : null,
    });
  } catch (error) {
    const trouble = error instanceof PriceError ? `tiers.toml: ${error.message}` : error.message;
    throw new BundleError(`the digests hold, but a file cannot be loaded: ${trouble}`);
  }
}

async function readBundleFile(readFile, name) {
  try {
    return await readFile(name);
  } catch (error) {
    throw new BundleError(`${name} cannot be read (${error.message}); a bundle is complete only with all of its files`);
  }
}

/** Estimated tokens that a provider bills for a text of nChars, of which nTokens reach the graph. */
function billedTokens(encoder, nChars, nTokens) {
  const isCut = nTokens >= encoder.max_tokens || nChars > encoder.max_chars;
  return (isCut ? Math.max(nTokens, nChars * encoder.tokens_per_char) : nTokens) * encoder.billed_tokens_per_token;
}

/**
 * What a request's dials come to: {quality, slack, worthUsd, critical, promised, unproven}; throws DialError.
 *
 * unproven: a quality is asked for that the bundle does not promise, so the best tier answers (orBestTier).
 */
function resolveDials(manifest, request) {
  const { quality = null, worth_usd = null, context_tokens = null } = request;
  const critical = request.critical ?? false;
  if (context_tokens !== null && !(isNumber(context_tokens) && context_tokens >= 0 && context_tokens <= MOST)) {
    throw new DialError(`context_tokens is ${shown(context_tokens)}; expected a number from 0 to 1e12`);
  }
  if (quality !== null && !(isNumber(quality) && quality > 0 && quality <= 1)) {
    throw new DialError(`quality is ${shown(quality)}; expected a share above 0 and at most 1`);
  }
  if (worth_usd !== null && !(isNumber(worth_usd) && worth_usd >= 0 && worth_usd <= MOST)) {
    throw new DialError(`worth_usd is ${shown(worth_usd)}; expected what a correct answer is worth, from 0 to 1e12 USD`);
  }
  if (typeof critical !== "boolean") throw new DialError(`critical is ${shown(critical)}; expected true or false`);
  const free = { quality: null, critical, promised: false, unproven: false };
  if (critical) return { ...free, slack: 0, worthUsd: 0 };
  if (quality === null && worth_usd !== null) return { ...free, slack: 1, worthUsd: worth_usd };
  const inForce = quality ?? manifest.default_quality;
  const point = manifest.dial.find((row) => row.quality >= inForce) ?? manifest.dial.at(-1);
  const { slack, promised, n_needed: nNeeded } = point;
  return { quality: inForce, slack, worthUsd: worth_usd ?? 0, critical, promised, unproven: !promised, nNeeded };
}

/** The place of the manifest's best tier. */
function manifestBest({ tiers, best_tier: name }) {
  return tiers.indexOf(name);
}

/**
 * Who answers where the bundle does not promise the quality: the best tier of the log, unless another is worth more.
 *
 * Without a worth (0) the best tier answers. With one, the tier that the graph chose does where its worth x success -
 * cost is larger; of equals the one with the higher success, then the best tier.
 */
function orBestTier({ tier, success, costUsd }, bestTier, worthUsd) {
  if (worthUsd <= 0) return bestTier;
  const value = (index) => worthUsd * success[index] - costUsd[index];
  const more = value(tier) - value(bestTier);
  return more > 0 || (more === 0 && success[tier] > success[bestTier]) ? tier : bestTier;
}

/**
 * What an offer must have for a request, in lower case: {regions, capabilities}; regions null admits all.
 *
 * Images and files in the messages need "vision" and audio needs "audio", or else "vision", where any offer of the
 * price table states that.
 */
function offerFilter({ regions = null, capabilities = null, messages }, prices) {
  for (const [key, value] of Object.entries({ regions, capabilities })) {
    if (value !== null && !(Array.isArray(value) && value.every((item) => typeof item === "string"))) {
      throw new DialError(`${key} is ${shown(value)}; expected a list of texts`);
    }
  }
  const media = mediaCapabilities(messages);
  const stated = statedCapabilities(prices.tiers.flatMap((tier) => tier.offers));
  if (media.includes("audio") && !stated.includes("audio")) media.push("vision");
  const needed = media.filter((capability) => stated.includes(capability));
  return { regions: regions && names(regions), capabilities: names([...(capabilities ?? []), ...needed]) };
}

/** A function that says whether an offer passes the filter. */
function acceptedBy(filter) {
  return (offer) => isNear(filter, offer) && isAble(filter, offer);
}

function isNear({ regions }, offer) {
  return regions === null || regions.includes(offer.region.toLowerCase());
}

function isAble({ capabilities }, offer) {
  return capabilities.every((capability) => names(offer.capabilities).includes(capability));
}

function statedCapabilities(offers) {
  return names(offers.flatMap((offer) => offer.capabilities));
}

/** In lower case, each once, in order. */
function names(texts) {
  return [...new Set(texts.map((text) => text.toLowerCase()))].sort();
}

/** Why no tier may answer: what no offer has, or a prompt that is too long. */
function whyNone(tiers, filter, contextTokens, critical) {
  const reserved = critical && tiers.some((tier) => tier.critical);
  const offers = tiers.filter((tier) => tier.critical || !reserved).flatMap((tier) => tier.offers);
  const near = offers.filter((offer) => isNear(filter, offer));
  const accepted = near.filter((offer) => isAble(filter, offer));
  if (accepted.length > 0) {
    const widest = Math.max(...accepted.map((offer) => offer.context_window));
    const tokens = `${contextTokens.toFixed(0)} input tokens and an answer`;
    return `no tier is eligible for ${tokens}: the largest context window is ${widest} tokens`;
  }
  if (filter.regions?.length === 0) return "no tier is eligible: the request admits no region";
  const where = filter.regions === null ? "" : `is in region ${filter.regions.join(" or ")}`;
  if (near.length === 0) return `no tier is eligible: no offer ${where}`;
  const stated = statedCapabilities(offers);
  const missing = filter.capabilities.filter((capability) => !stated.includes(capability));
  const able = `has ${(missing.length > 0 ? missing : filter.capabilities).join(" and ")}`;
  return `no tier is eligible: no offer ${missing.length > 0 || !where ? able : `${where} and ${able}`}`;
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}
