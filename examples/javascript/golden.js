/** The golden prompts and plans of a bundle: whether this code answers them as the bundle says. */

/**
 * Route and plan the golden prompts.
 *
 * tiers: names. golden, goldenPlans: entries of golden.jsonl and golden_plans.jsonl; goldenPlans is null where the
 * bundle makes no plans. route, plan: from a request to a decision or plan, at the bundle's own prices.
 * tolerance: the largest difference that passes.
 *
 * Returns {passed, nPrompts, nPlans, largestDifference, otherTier, otherPlan}: the largest difference of any success,
 * or relative of any other estimate, the prompts that went to another tier, and those with another plan.
 */
export async function compareGolden({ tiers, golden, goldenPlans, route, plan, tolerance }) {
  const differences = [0];
  const [otherTier, otherPlan] = [[], []];
  for (const entry of golden) {
    const decision = await route({ prompt: entry.prompt });
    differences.push(relative(decision.context_tokens, entry.context_tokens));
    differences.push(Math.abs(decision.familiarity - entry.familiarity));
    for (const [index, tier] of tiers.entries()) {
      differences.push(Math.abs(decision.success[tier] - entry.success[index]));
      differences.push(relative(decision.output_tokens[tier], entry.output_tokens[index]));
      differences.push(relative(decision.cost_usd[tier], entry.cost_usd[index]));
    }
    if (decision.tier !== entry.tier) otherTier.push(entry.prompt);
  }
  for (const { prompt, checks, max_calls, worth_usd, ...entry } of goldenPlans ?? []) {
    const found = await plan({ prompt, checks, max_calls, worth_usd });
    differences.push(Math.abs(found.success - entry.success), relative(found.cost_usd, entry.cost_usd));
    if (found.steps.tier !== entry.tier || found.is_direct !== entry.is_direct) otherPlan.push(prompt);
  }
  const largestDifference = Math.max(...differences);  // NaN where any is
  const areAny = golden.length > 0 && goldenPlans?.length !== 0;
  const areSame = otherTier.length === 0 && otherPlan.length === 0 && largestDifference <= tolerance;
  const [nPrompts, nPlans] = [golden.length, goldenPlans?.length ?? null];
  return { passed: areAny && areSame, nPrompts, nPlans, largestDifference, otherTier, otherPlan };
}

function relative(found, expected) {
  return Math.abs(found - expected) / Math.max(Math.abs(expected), 1e-12);
}
