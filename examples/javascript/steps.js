/** The steps of a plan, read from the tables that the plan graph answers; models/README.md says what they hold. */

const LEAST = 1e-12;

/**
 * P(the answer returned is right), and what is paid on average: {right, paid}.
 *
 * tables: of one prompt at one worth. first: the place of the tier asked first. costUsd, checkUsd: per tier.
 */
export function expected(tables, first, costUsd, checkUsd) {
  let right = 0;
  let paid = costUsd[first] + checkUsd[first];
  for (const [score, second] of at(tables.second, 0, 0, first).entries()) {
    const [reached, rightAlone] = at(tables.after_one, 0, first, score);
    if (second < 0) {
      right += rightAlone;
      continue;
    }
    paid += costUsd[second] * reached;
    const afterTwo = seenOfTwo(tables, first, second, score);
    if (!at(tables.is_checked, 0, 0, first, second, score)) {
      for (const [, ...rights] of summed(afterTwo)) right += Math.max(...rights);
      continue;
    }
    paid += checkUsd[second] * reached;
    for (const [other, byAgreement] of afterTwo.entries()) {
      for (const [agree, [seen, ...rights]] of byAgreement.entries()) {
        const third = at(tables.third, 0, 0, first, second, score, other, agree);
        if (third < 0) {
          right += Math.max(...rights);
          continue;
        }
        paid += costUsd[third] * seen;
        for (const pattern of agree === 0 ? [0, 1] : [2, 3, 4]) {
          const [, ...ofThree] = at(tables.after_three, 0, first, second, third, score, other, pattern);
          right += Math.max(...ofThree);
        }
      }
    }
  }
  return { right, paid };
}

/** The only step of a plan that asks one tier and looks at nothing. */
export function returnAlone(tier, model, success) {
  const branch = { seen: "any answer", probability: 1, step: null, returned: tier, success };
  return { tier, model: model ?? null, is_checked: false, compared: false, branches: [branch] };
}

/**
 * The first step of a plan; the others hang on its branches.
 *
 * context: {tables: of one prompt at one worth, tiers: names, models: per tier, verifiers: checks that look at the
 * answers, agreement: whether answers are compared}. first: the place of the tier asked first.
 */
export function firstStep(context, first) {
  const { tables, tiers, verifiers } = context;
  const branches = at(tables.second, 0, 0, first).map((second, score) => {
    const [seen, right] = at(tables.after_one, 0, first, score);
    const words = scoreWords(verifiers, score) || "any answer";
    if (second >= 0) return goOn(words, seen, secondStep(context, [first, second], score, seen));
    return stop(words, seen, tiers[first], right / Math.max(seen, LEAST));
  });
  return step(context, first, verifiers.length > 0, false, branches);
}

function secondStep(context, asked, score, reached) {
  const { tables, tiers, verifiers, agreement } = context;
  const goesOn = at(tables.is_checked, 0, 0, ...asked, score) === 1;
  const isChecked = goesOn && verifiers.length > 0;
  const afterTwo = seenOfTwo(tables, ...asked, score);
  const branches = [];
  for (const [other, byAgreement] of (isChecked ? afterTwo : [summed(afterTwo)]).entries()) {
    for (const [agree, [seen, ...rights]] of (agreement ? byAgreement : [sum(byAgreement)]).entries()) {
      const third = goesOn ? at(tables.third, 0, 0, ...asked, score, other, agree) : -1;
      const words = isChecked ? [scoreWords(verifiers, other)] : [];
      if (agreement) words.push(agree === 0 ? "they agree" : "they differ");
      const looked = words.join(", ") || "any answer";
      const probability = seen / Math.max(reached, LEAST);
      const best = rights[1] > rights[0] ? 1 : 0;
      const branch =
        third < 0
          ? stop(looked, probability, tiers[asked[best]], rights[best] / Math.max(seen, LEAST))
          : goOn(looked, probability, thirdStep(context, [...asked, third], score, other, agree));
      branches.push(branch);
    }
  }
  return step(context, asked[1], isChecked, agreement, branches);
}

function thirdStep(context, asked, score, other, agree) {
  const { tables, tiers, agreement } = context;
  const [first, second, third] = asked.map((tier) => tiers[tier]);
  const words = [
    "all agree", `${first} and ${second} agree`, `${first} and ${third} agree`, `${second} and ${third} agree`,
    "no two agree",
  ];
  const [reached] = at(tables.after_two, 0, asked[0], asked[1], score, other, agree);
  const patterns = agree === 0 ? [0, 1] : [2, 3, 4];
  const branches = (agreement ? patterns : [0]).map((pattern) => {
    const [seen, ...rights] = at(tables.after_three, 0, ...asked, score, other, pattern);
    const best = rights.indexOf(Math.max(...rights));
    const success = rights[best] / Math.max(seen, LEAST);
    const looked = agreement ? words[pattern] : "any answer";
    return stop(looked, seen / Math.max(reached, LEAST), tiers[asked[best]], success);
  });
  return step(context, asked[2], false, agreement, branches);
}

function step({ tiers, models }, place, isChecked, compared, branches) {
  return { tier: tiers[place], model: models[place] ?? null, is_checked: isChecked, compared, branches };
}

function goOn(seen, probability, next) {
  return { seen, probability, step: next, returned: null, success: null };
}

function stop(seen, probability, returned, success) {
  return { seen, probability, step: null, returned, success };
}

/** What a class of scores means, such as "rubric passes"; several checks joined by a comma. */
function scoreWords(verifiers, score) {
  const words = [];
  let rest = score;
  for (const { name, thresholds } of verifiers.toReversed()) {
    const nClasses = thresholds.length + 1;
    const own = rest % nClasses;
    rest = Math.floor(rest / nClasses);
    if (nClasses === 2) words.unshift(`${name} ${own === 1 ? "passes" : "fails"}`);
    else if (own > 0) words.unshift(`${name} at least ${short(thresholds[own - 1])}`);
    else words.unshift(`${name} below ${short(thresholds[0])}`);
  }
  return words.join(", ");
}

function short(threshold) {
  return String(Number(threshold.toPrecision(6)));
}

/** After two answers, by the class of the second score and by agreement: [P(seen), and the first is right, second]. */
function seenOfTwo(tables, first, second, score) {
  const nClasses = tables.second.dims.at(-1);
  return Array.from({ length: nClasses }, (_, other) =>
    [0, 1].map((agree) => at(tables.after_two, 0, first, second, score, other, agree)),
  );
}

/** What `seenOfTwo` gives, where the second score is not looked at: by agreement only. */
function summed(afterTwo) {
  return [0, 1].map((agree) => sum(afterTwo.map((byAgreement) => byAgreement[agree])));
}

function sum(rows) {
  return rows.reduce((total, row) => total.map((value, index) => value + row[index]));
}

/** The number at a place of a tensor, or where the last index is left out, the numbers. */
function at({ data, dims }, ...place) {
  const start = dims.reduce((offset, size, axis) => offset * size + (place[axis] ?? 0), 0);
  if (place.length === dims.length) return Number(data[start]);
  return Array.from(data.subarray(start, start + dims.at(-1)), Number);
}
