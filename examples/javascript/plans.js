/** Plans from a bundle: whom to ask first, what to look at, when to stop, and whom to ask next. */

import { BundleError, CheckError, DialError, shown } from "./errors.js";
import { decodeUtf8 } from "./manifest.js";
import { expected, firstStep, returnAlone } from "./steps.js";

/** What the bundle's files for plans are called; calibration.npz is for Python's proofs only. */
export const PLAN_FILES = ["plan.onnx", "checks.json", "golden_plans.jsonl"];

const AGREEMENT = "agreement";
const MOST_CALLS = 3;
const MOST_WORTH_USD = 1e12;
const FORBIDDEN_USD = 1e30;  // stands for a call that may not be made
const OUTPUTS = [
  "first", "direct", "is_plan", "second", "is_checked", "third", "after_one", "after_two", "after_three",
];

/**
 * What makes plans, from the files of a bundle; null where the bundle makes none.
 *
 * bundleFiles: {name: bytes}; of these it reads PLAN_FILES, whose digests must have been checked.
 * tiers: names in the manifest's order. ort: onnxruntime. sessionOptions: of onnxruntime.
 * Rejects with BundleError where some of the files are missing or do not fit.
 */
export async function loadPlanner(bundleFiles, tiers, ort, sessionOptions = {}) {
  const missing = PLAN_FILES.filter((name) => !(name in bundleFiles));
  if (missing.length === PLAN_FILES.length) return null;
  if (missing.length > 0) throw new BundleError(`${missing.join(" and ")} missing; copy the bundle again`);
  const [graph, checks, golden] = PLAN_FILES.map((name) => bundleFiles[name]);
  const { agreement, verifiers } = JSON.parse(decodeUtf8(checks));
  for (const [name, { thresholds, verdicts, usd }] of Object.entries(verifiers)) {
    const perTier = [usd, ...verdicts];
    const isFitting = verdicts.length === 2 && perTier.every((values) => values.length === tiers.length);
    const hasClasses = verdicts.flat().every((classes) => classes.length === thresholds.length + 1);
    if (!isFitting || !hasClasses) throw new BundleError(`checks.json: ${name} does not fit; train the bundle again`);
  }
  return new Planner({
    tiers,
    ort,
    knowsAgreement: agreement !== null,
    verifiers,
    session: await ort.InferenceSession.create(graph, sessionOptions),
    golden: decodeUtf8(golden).split("\n").filter(Boolean).map((line) => JSON.parse(line)),
  });
}

/** Makes plans from decisions. Use loadPlanner. */
export class Planner {
  constructor({ tiers, ort, knowsAgreement, verifiers, session, golden }) {
    this.tiers = tiers;
    this.ort = ort;
    this.knowsAgreement = knowsAgreement;
    this.verifiers = verifiers;
    this.session = session;
    this.golden = golden;
  }

  /**
   * What a plan may look at: {names, verifiers, agreement, maxCalls}.
   *
   * checks: names of what may be looked at, "agreement" or checks that the bundle learned; null takes agreement where
   * the bundle knows it. maxCalls: 1 to 3. Throws CheckError where a check is not known, DialError on other values.
   */
  looks(checks = null, maxCalls = MOST_CALLS) {
    if (!Number.isInteger(maxCalls) || maxCalls < 1 || maxCalls > MOST_CALLS) {
      throw new DialError(`max_calls is ${shown(maxCalls)}; expected 1 to ${MOST_CALLS}`);
    }
    if (checks !== null && !(Array.isArray(checks) && checks.every((name) => typeof name === "string"))) {
      throw new CheckError(`checks is ${shown(checks)}; expected a list of names`);
    }
    const known = [...(this.knowsAgreement ? [AGREEMENT] : []), ...Object.keys(this.verifiers)];
    const asked = checks ?? known.filter((name) => name === AGREEMENT);
    const unknown = asked.filter((name) => !known.includes(name));
    if (unknown.length > 0) {
      const names = known.join(", ") || "none";
      throw new CheckError(`the bundle has not learned the check ${shown(unknown[0])}; expected some of: ${names}`);
    }
    const agreement = asked.includes(AGREEMENT);
    const names = [...new Set(asked.filter((name) => name !== AGREEMENT))].sort();
    return {
      names: [...(agreement ? [AGREEMENT] : []), ...names],
      verifiers: names.map((name) => ({ name, ...this.verifiers[name] })),
      agreement,
      maxCalls,
    };
  }

  /**
   * The best plan for a request that was routed, with the keys of Python's Plan.to_json.
   *
   * decision: of Router.route, with the worth alone as its dial. worthUsd: what a correct answer is worth.
   * critical: whether the request is critical, which is not planned but routed.
   * models: per tier the model that would be asked. The other arguments are those of `looks`.
   */
  async plan(decision, { checks, maxCalls, worthUsd, critical = false, models = [] }) {
    checkWorth(worthUsd);
    const looks = this.looks(checks, maxCalls);
    const { names } = looks;
    if (critical || decision.fallback) {
      const why = critical ? "the request is critical" : "the router could not decide";
      return directPlan(decision, names, why, models, this.tiers);
    }
    const perTier = (values) => this.tiers.map((tier) => values[tier]);
    const [success, costUsd] = [perTier(decision.success), perTier(decision.cost_usd)];
    const check = combined(looks.verifiers, this.tiers.length);
    const tables = await this.#run(success, costUsd, decision.eligible, worthUsd, check, looks);
    const why = `a correct answer is worth USD ${shortNumber(worthUsd)}`;
    const isDirect = tables.is_plan.data[0] === 0;
    const place = Number((isDirect ? tables.direct : tables.first).data[0]);
    const tier = this.tiers[place];
    const shared = { checks: names, isDirect, quality: null, worthUsd, promised: false, decision };
    if (isDirect) {
      const reason = `direct: no plan of at most ${looks.maxCalls} calls is worth more than asking ${tier}; ${why}`;
      const steps = returnAlone(tier, models[place], success[place]);
      return planDocument({ ...shared, steps, success: success[place], costUsd: costUsd[place], reason });
    }
    const context = { tables, tiers: this.tiers, models, verifiers: looks.verifiers, agreement: looks.agreement };
    const { right, paid } = expected(tables, place, costUsd, check.usd);
    const reason = `ask ${tier}, look at ${names.join(" and ")}, go up where it pays; ${why}`;
    return planDocument({ ...shared, steps: firstStep(context, place), success: right, costUsd: paid, reason });
  }

  /** The outputs of the plan graph for one prompt at one worth; models/README.md says what they are. */
  async #run(success, costUsd, eligible, worthUsd, check, { agreement, maxCalls }) {
    const { Tensor } = this.ort;
    const nTiers = this.tiers.length;
    const number = (value) => new Tensor("float32", Float32Array.of(value), []);
    const row = (values) => new Tensor("float32", Float32Array.from(values), [1, nTiers]);
    const perClass = (values) => new Tensor("float32", values, [nTiers, check.nClasses, 2]);
    return this.session.run({
      success: row(success),
      cost_usd: row(costUsd),
      eligible: new Tensor("bool", Uint8Array.from(this.tiers, (tier) => eligible.includes(tier)), [1, nTiers]),
      worth_usd: new Tensor("float32", Float32Array.of(worthUsd), [1, 1]),
      verdicts: perClass(check.hardest),
      verdict_slopes: perClass(check.easiest.map((easy, index) => easy - check.hardest[index])),
      check_usd: new Tensor("float32", check.usd, [nTiers]),
      agreement: new Tensor("bool", Uint8Array.of(agreement), []),
      second_call_usd: number(maxCalls >= 2 ? 0 : FORBIDDEN_USD),
      third_call_usd: number(maxCalls >= 3 ? 0 : FORBIDDEN_USD),
    }, OUTPUTS);
  }
}

/** The plan that asks the tier of a decision and looks at nothing. models: per tier, in the order of `tiers`. */
export function directPlan(decision, checks, why, models, tiers) {
  const success = decision.success[decision.tier] ?? 0;
  return planDocument({
    steps: returnAlone(decision.tier, models[tiers.indexOf(decision.tier)], success),
    checks,
    success,
    costUsd: decision.cost_usd[decision.tier] ?? 0,
    reason: `direct: ${why}; ${decision.reason}`,
    isDirect: true,
    quality: decision.quality,
    worthUsd: decision.worth_usd,
    promised: decision.promised,
    decision,
  });
}

/** A plan with the keys of Python's Plan.to_json, in its order. */
function planDocument({ steps, checks, success, costUsd, reason, isDirect, quality, worthUsd, promised, decision }) {
  return {
    steps, checks, success, cost_usd: costUsd, reason, is_direct: isDirect, quality, worth_usd: worthUsd, promised,
    decision,
  };
}

/** Throws DialError where a worth is no worth. */
export function checkWorth(worthUsd) {
  if (typeof worthUsd !== "number" || !(worthUsd >= 0 && worthUsd <= MOST_WORTH_USD)) {
    throw new DialError(`worth_usd is ${shown(worthUsd)}; expected what a correct answer is worth, from 0 to 1e12 USD`);
  }
}

/**
 * Checks that look at every answer together, as one: {nClasses, hardest, easiest, usd}.
 *
 * hardest, easiest: P(class | wrong or right) for the hardest and for the easiest prompts, (n_tiers, nClasses, 2). The
 * verdicts are taken to be independent of each other, given whether the answer is right. Without a check: one class.
 */
function combined(verifiers, nTiers) {
  const ends = [0, 1].map((end) => {
    const byTier = Array.from({ length: nTiers }, (_, tier) =>
      verifiers
        .map(({ verdicts }) => verdicts[end][tier])
        .reduce((found, own) => found.flatMap((one) => own.map((other) => product(one, other))), [[1, 1]]),
    );
    return Float32Array.from(byTier.flat(2));
  });
  const usd = Array.from({ length: nTiers }, (_, tier) => verifiers.reduce((sum, each) => sum + each.usd[tier], 0));
  const nClasses = verifiers.reduce((n, { thresholds }) => n * (thresholds.length + 1), 1);
  return { nClasses, hardest: ends[0], easiest: ends[1], usd: Float32Array.from(usd) };
}

function product(one, other) {
  return one.map((chance, isRight) => chance * other[isRight]);
}

/** A number with three digits that count. */
function shortNumber(value) {
  return String(Number(value.toPrecision(3)));
}
