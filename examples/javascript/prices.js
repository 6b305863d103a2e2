/** The price table: tiers, their offers, and what the cheapest eligible offer of each costs now. */

import { PriceError, shown } from "./errors.js";
import { decodeUtf8, sha256 } from "./manifest.js";

const TIER_KEYS = ["name", "offers", "critical"];
const OFFER_KEYS = [
  "model", "provider", "region", "context_window", "usd_per_mtok_input", "usd_per_mtok_output",
  "usd_per_mtok_cached_input", "usd_per_mtok_cache_write", "aliases", "capabilities", "max_share", "self_hosted",
  "above", "hours",
];
const PRICES = [
  "usd_per_mtok_input", "usd_per_mtok_output", "usd_per_mtok_cached_input", "usd_per_mtok_cache_write",
];
const SELF_HOSTED_KEYS = [
  "electricity_usd_per_hour", "bandwidth_usd_per_hour", "hardware_usd_per_hour", "utilization", "mtok_per_hour",
];

/**
 * Tiers in the order of a bundle, and the identity of the text that they come from.
 *
 * tiers: [{name, critical, offers: [{model, provider, region, context_window, usd_per_mtok_input, ...}]}].
 * id: the first 16 hexadecimal digits of the SHA-256 of the file.
 */
export class PriceTable {
  constructor(tiers, id) {
    this.tiers = tiers;
    this.id = id;
  }

  /**
   * From the bytes of a tiers.toml, its tiers in any order, but exactly `tierNames`.
   *
   * parseToml: a function from text to plain objects. Throws PriceError, so that a broken table never replaces a good
   * one.
   */
  static async parse(bytes, parseToml, tierNames) {
    let document;
    try {
      document = parseToml(decodeUtf8(bytes));
    } catch (error) {
      throw new PriceError(`price table refused: not valid TOML: ${error.message}`);
    }
    refuseUnknown(document, ["tiers", "caps", "budgets"], "the file"); // Limits are kept by the service, not here.
    const found = new Map(readTiers(document.tiers).map((tier) => [tier.name, tier]));
    if (found.size !== tierNames.length || !tierNames.every((name) => found.has(name))) {
      const names = [...found.keys()].join(", ");
      refuse(`found the tiers ${names}; expected exactly those of the bundle: ${tierNames.join(", ")}`);
    }
    return new PriceTable(tierNames.map((name) => found.get(name)), (await sha256(bytes)).slice(0, 16));
  }

  /** The same table, all prices of every offer times the factor of its tier, {tier: factor}; 1 where none is given. */
  scaled(factors) {
    const tiers = this.tiers.map((tier) => {
      const factor = factors[tier.name] ?? 1;
      const offers = tier.offers.map((offer) => ({
        ...timesFactor(offer, factor),
        above: offer.above.map((step) => timesFactor(step, factor)),
      }));
      return { ...tier, offers };
    });
    const changes = Object.entries(factors).filter(([, factor]) => factor !== 1);
    const note = changes.map(([name, factor]) => `${name} x ${factor.toPrecision(3)}`).join(", ");
    return new PriceTable(tiers, note ? `${this.id} (${note})` : this.id);
  }

  /**
   * The cheapest eligible offer of each tier for one request; null where a tier has none.
   *
   * contextTokens: tokens that the provider bills as input. outputTokens: typical answer of each tier; it must fit
   * into the context window too, and weighs an offer's two prices against each other.
   * accepts: further conditions on an offer (region, capability).
   * minute: since midnight UTC, for prices that depend on the hour. The offers have the prices of this request.
   */
  cheapestOffers(contextTokens, outputTokens, accepts, minute = minuteOfDay()) {
    return this.tiers.map((tier, index) => {
      let best = null;
      let bestUsd = Infinity;
      for (const offer of tier.offers) {
        if (contextTokens + outputTokens[index] > offer.context_window || !accepts(offer)) continue;
        const now = pricedFor(offer, contextTokens, minute);
        const usd = contextTokens * now.usd_per_mtok_input + outputTokens[index] * now.usd_per_mtok_output;
        if (usd < bestUsd) [best, bestUsd] = [now, usd];
      }
      return best;
    });
  }

  /** Which tiers may answer: those with an offer; for a critical request only those reserved for it, if any tier is. */
  eligible(offers, critical) {
    const reserved = critical && this.tiers.some((tier) => tier.critical);
    return this.tiers.map((tier, index) => offers[index] !== null && (tier.critical || !reserved));
  }
}

/** Minutes since midnight UTC. */
export function minuteOfDay(date = new Date()) {
  return date.getUTCHours() * 60 + date.getUTCMinutes();
}

/** The same offer at one request's prices: those above the highest threshold it passes, times the hour's factor. */
function pricedFor(offer, contextTokens, minute) {
  const step = offer.above.filter((each) => contextTokens > each.input_tokens).at(-1);
  const isNow = ({ start, end }) => (start < end ? start <= minute && minute < end : minute >= start || minute < end);
  const factor = offer.hours.find(isNow)?.factor ?? 1;
  if (!step && factor === 1) return offer;
  const { input_tokens: threshold, ...prices } = step ?? {};
  return timesFactor({ ...offer, ...prices }, factor);
}

function timesFactor(priced, factor) {
  const scaled = PRICES.map((name) => [name, priced[name] === null ? null : priced[name] * factor]);
  return { ...priced, ...Object.fromEntries(scaled) };
}

function readTiers(entries) {
  if (!Array.isArray(entries) || entries.length === 0) refuse("found no [[tiers]]; expected at least one");
  const tiers = entries.map((entry, index) => readTier(entry, `tier ${index + 1}`));
  refuseRepeated(tiers.map((tier) => tier.name), "tier name");
  const namesOfTiers = tiers.map((tier) => new Set(tier.offers.flatMap((offer) => [offer.model, ...offer.aliases])));
  refuseRepeated(namesOfTiers.flatMap((names) => [...names]), "in more than one tier: model or alias");
  return tiers;
}

function readTier(entry, place) {
  refuseUnknown(entry, TIER_KEYS, place);
  const name = readText(entry, "name", place);
  const { offers, critical = false } = entry;
  if (!Array.isArray(offers) || offers.length === 0) {
    refuse(`${place} (${name}): found no [[tiers.offers]]; expected at least one offer`);
  }
  if (typeof critical !== "boolean") {
    refuse(`${place} (${name}): critical is ${shown(critical)}; expected true or false`);
  }
  const read = offers.map((offer, index) => readOffer(offer, `${place} (${name}), offer ${index + 1}`));
  return { name, critical, offers: read };
}

function readOffer(entry, place) {
  refuseUnknown(entry, OFFER_KEYS, place);
  const [usd_per_mtok_input, usd_per_mtok_output] = readPrices(entry, place);
  return {
    model: readText(entry, "model", place),
    provider: readText(entry, "provider", place),
    region: readText(entry, "region", place),
    context_window: Math.trunc(readNumber(entry, "context_window", place, { above: 0 })),
    usd_per_mtok_input,
    usd_per_mtok_output,
    usd_per_mtok_cached_input: readOptionalNumber(entry, "usd_per_mtok_cached_input", place),
    usd_per_mtok_cache_write: readOptionalNumber(entry, "usd_per_mtok_cache_write", place),
    aliases: readTexts(entry, "aliases", place),
    capabilities: readTexts(entry, "capabilities", place),
    max_share: "max_share" in entry ? readNumber(entry, "max_share", place, { above: 0, most: 1 }) : 1,
    above: readAbove(entry.above ?? [], place),
    hours: readHours(entry.hours ?? [], place),
  };
}

/** Prices of long requests, lowest threshold first. */
function readAbove(entries, place) {
  if (!Array.isArray(entries)) refuse(`${place}: above is ${shown(entries)}; expected a list of tables`);
  const steps = entries.map((entry, index) => {
    const at = `${place}, above ${index + 1}`;
    refuseUnknown(entry, ["input_tokens", ...PRICES], at);
    return {
      input_tokens: Math.trunc(readNumber(entry, "input_tokens", at, { above: 0 })),
      usd_per_mtok_input: readNumber(entry, "usd_per_mtok_input", at),
      usd_per_mtok_output: readNumber(entry, "usd_per_mtok_output", at),
      usd_per_mtok_cached_input: readOptionalNumber(entry, "usd_per_mtok_cached_input", at),
      usd_per_mtok_cache_write: readOptionalNumber(entry, "usd_per_mtok_cache_write", at),
    };
  });
  steps.sort((a, b) => a.input_tokens - b.input_tokens);
  refuseRepeated(steps.map((step) => String(step.input_tokens)), `${place}: above: input_tokens`);
  return steps;
}

/** Times of the day with a factor of their own, as minutes since midnight UTC; no two may overlap. */
function readHours(entries, place) {
  if (!Array.isArray(entries)) refuse(`${place}: hours is ${shown(entries)}; expected a list of tables`);
  const minutes = new Set();
  return entries.map((entry, index) => {
    const at = `${place}, hours ${index + 1}`;
    refuseUnknown(entry, ["utc_start", "utc_end", "factor"], at);
    const [start, end] = [readMinute(entry, "utc_start", at), readMinute(entry, "utc_end", at)];
    if (start === end) refuse(`${at}: utc_start and utc_end are the same; state other prices instead`);
    for (let minute = start; minute !== end; minute = (minute + 1) % 1440) {
      if (minutes.has(minute)) refuse(`${place}: two entries of hours overlap; expected at most one at any time`);
      minutes.add(minute);
    }
    return { start, end, factor: readNumber(entry, "factor", at) };
  });
}

function readMinute(entry, key, place) {
  const found = /^([01]\d|2[0-3]):([0-5]\d)$/.exec(readText(entry, key, place));
  if (!found) refuse(`${place}: ${key} is ${shown(entry[key])}; expected a time from 00:00 to 23:59, such as 16:30`);
  return Number(found[1]) * 60 + Number(found[2]);
}

/** Input and output price in USD per million tokens; of own hardware both are (E + B + H) / (utilization x Mtok/h). */
function readPrices(entry, place) {
  const prices = ["usd_per_mtok_input", "usd_per_mtok_output"];
  if (!("self_hosted" in entry)) return prices.map((key) => readNumber(entry, key, place));
  const listed = prices.filter((key) => key in entry);
  if (listed.length > 0) refuse(`${place}: both self_hosted and ${listed.join(", ")}; expected one of the two`);
  const hourly = entry.self_hosted;
  refuseUnknown(hourly, SELF_HOSTED_KEYS, `${place}, self_hosted`);
  const usdPerHour =
    readNumber(hourly, "electricity_usd_per_hour", place) +
    readNumber(hourly, "bandwidth_usd_per_hour", place) +
    readNumber(hourly, "hardware_usd_per_hour", place);
  const utilization = readNumber(hourly, "utilization", place, { above: 0, most: 1 });
  const usdPerMtok = usdPerHour / (utilization * readNumber(hourly, "mtok_per_hour", place, { above: 0 }));
  if (!Number.isFinite(usdPerMtok)) {
    refuse(`${place}, self_hosted: comes to ${usdPerMtok} USD per million tokens; expected a finite price`);
  }
  return [usdPerMtok, usdPerMtok];
}

/** A finite number, at least 0 or else strictly above `above`, and no larger than `most`. */
function readNumber(entry, key, place, { above = null, most = Infinity } = {}) {
  const value = entry[key];
  const isLarge = above === null ? value >= 0 : value > above;
  if (typeof value !== "number" || !Number.isFinite(value) || !isLarge || value > most) {
    const least = above === null ? "of at least 0" : `above ${above}`;
    const limit = most === Infinity ? "" : ` and at most ${most}`;
    refuse(`${place}: ${key} is ${shown(value)}; expected a number ${least}${limit}`);
  }
  return value;
}

function readOptionalNumber(entry, key, place) {
  return key in entry ? readNumber(entry, key, place) : null;
}

function readText(entry, key, place) {
  if (typeof entry[key] !== "string" || entry[key] === "") {
    refuse(`${place}: ${key} is ${shown(entry[key])}; expected a text`);
  }
  return entry[key];
}

function readTexts(entry, key, place) {
  const value = entry[key] ?? [];
  if (!Array.isArray(value) || !value.every((item) => typeof item === "string")) {
    refuse(`${place}: ${key} is ${shown(value)}; expected a list of texts`);
  }
  return value;
}

function refuseUnknown(entry, known, place) {
  if (typeof entry !== "object" || entry === null || Array.isArray(entry)) {
    refuse(`${place}: found ${shown(entry)}; expected a table`);
  }
  const unknown = Object.keys(entry).filter((key) => !known.includes(key));
  if (unknown.length > 0) refuse(`${place}: unknown ${unknown.join(", ")}; expected only ${known.join(", ")}`);
}

function refuseRepeated(names, what) {
  const repeated = [...new Set(names.filter((name, index) => names.indexOf(name) < index))];
  if (repeated.length > 0) refuse(`${what} ${repeated.join(", ")} appears more than once; each may stand once`);
}

function refuse(trouble) {
  throw new PriceError(`price table refused: ${trouble}`);
}
