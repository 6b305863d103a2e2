/** The router on Node: bundles and price tables are read from disk, the graph runs in onnxruntime-node. */

import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";
import { parse as parseToml } from "smol-toml";

import { PriceError } from "../javascript/errors.js";
import { PriceTable } from "../javascript/prices.js";
import { openRouter, Router as BundleRouter } from "../javascript/router.js";

/** One thread a call: several small calls side by side, not one large one. */
const SESSION_OPTIONS = { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 3 };

/**
 * Sends each request to the cost-optimal tier.
 *
 *     const router = await Router.load("models/demo");
 *     const decision = await router.route({ prompt: "Prove that sqrt(2) is irrational.", quality: 0.98 });
 */
export class Router extends BundleRouter {
  /** From the folder of a bundle; rejects with BundleError where it is not complete and unaltered. */
  static async load(folder) {
    const libraries = { ort, Tokenizer, parseToml };
    return openRouter((name) => readFile(join(folder, name)), libraries, {
      RouterClass: Router,
      sessionOptions: SESSION_OPTIONS,
    });
  }

  /** Take the prices of a file in the format of tiers.toml; rejects with PriceError and keeps the present ones. */
  async updatePrices(path) {
    let bytes;
    try {
      bytes = await readFile(path);
    } catch (error) {
      throw new PriceError(`price table refused: ${path} cannot be read (${error.code}); expected a tiers.toml`);
    }
    this.prices = await PriceTable.parse(bytes, parseToml, this.manifest.tiers);
  }
}
