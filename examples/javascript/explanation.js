/** What a decision rests on, and what would change it: the figures of Python's Decision.explain, without its words. */

/**
 * {tier, reason, admissible, changes, similar}, with the keys of Python's Explanation.
 *
 * decision: of Router.route. clusters: the content of clusters.json; null where it was not read.
 * admissible: the tiers it was chosen from. changes: for each other eligible tier what would make it win, all else
 * being equal, the nearest worth first:
 *     price_factor: its price multiplied by this; null where it is not admissible, or no price would do.
 *     worth_usd: a worth of at least this (where it costs more than the tier chosen) or of at most this (where it costs
 *     less); 0 where any worth would do, if only one were given; null where it is not admissible, or none would do.
 *     slack: the least slack of a promised quality that admits it; null where it is admissible already.
 * similar: the logged prompts that this one is most like, and how the tiers answered them; null where nothing is known.
 */
export function explain(decision, clusters = null) {
  const { tier, reason, eligible, cluster: number } = decision;
  const similar = clusters === null || number === null ? null : { number, ...clusters[number] };
  if (eligible.length === 0) return { tier, reason, admissible: [], changes: [], similar };
  const { success, slack, worth_usd: worth, best_tier: bestTier } = decision;
  const highest = Math.max(...eligible.map((name) => success[name]));
  let admissible = eligible.filter((name) => success[name] >= highest - slack);
  let winner = bestOf(admissible, decision);
  if (bestTier !== null) {
    winner = worth > 0 ? bestOf([bestTier, winner], decision) : bestTier;
    admissible = eligible.filter((name) => admissible.includes(name) || name === bestTier);
  }
  const changes = eligible
    .filter((name) => name !== winner)
    .map((name) => changeTo(name, winner, decision, admissible, highest))
    .sort((one, other) => distance(one, worth) - distance(other, worth));
  return { tier, reason, admissible, changes, similar };
}

/** The tier with the largest worth x success - cost; of equals the highest success, then the first. */
function bestOf(tiers, { success, cost_usd: cost, worth_usd: worth }) {
  const value = (name) => worth * success[name] - cost[name];
  return tiers.reduce((best, name) => {
    const more = value(name) - value(best);
    return more > 0 || (more === 0 && success[name] > success[best]) ? name : best;
  });
}

function changeTo(name, winner, decision, admissible, highest) {
  const { success, cost_usd: cost, worth_usd: worth, best_tier: bestTier } = decision;
  const change = { tier: name, price_factor: null, worth_usd: null, slack: null };
  if (!admissible.includes(name)) return { ...change, slack: highest - success[name] };
  const gain = success[name] - success[winner];
  const extra = cost[name] - cost[winner];
  const isNever = gain === 0 || extra / gain < 0;  // better and cheaper, or worse and dearer, at any worth
  const needed = isNever ? null : extra / gain;
  if (bestTier !== null && worth === 0) {  // the best tier answers at any price
    const isAlways = gain >= 0 && extra <= 0 && gain !== extra;
    return { ...change, worth_usd: isAlways ? 0 : needed };
  }
  const factor = cost[name] > 0 ? (worth * gain + cost[winner]) / cost[name] : null;
  return { ...change, price_factor: factor === null || factor <= 0 ? null : factor, worth_usd: needed };
}

/** How far the worth that a change takes is from the one in force; changes that no worth brings stand last. */
function distance({ worth_usd: needed }, worth) {
  return needed === null ? Number.MAX_VALUE : Math.abs(needed - worth);
}
