/**
 * Token ids, to compare this tokenizer with another.
 *
 *     node ids.js --bundle DIR < PROMPTS
 *
 * PROMPTS: a JSON string a line. Prints a JSON list of token ids a line.
 */

import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

import { Router } from "./router.js";

const { values } = parseArgs({ options: { bundle: { type: "string" } } });
if (values.bundle === undefined) throw new Error("usage: node ids.js --bundle DIR < PROMPTS");
const router = await Router.load(values.bundle);
for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
  process.stdout.write(`${JSON.stringify(router.tokenIds(JSON.parse(line)).ids)}\n`);
}
