/** The router on Node: bundles and price tables are read from disk. */

import { readFile } from "node:fs/promises";
import { join } from "node:path";

import { PriceError } from "./errors.js";
import { PriceTable } from "./prices.js";
import { openRouter, Router as BundleRouter } from "./router.js";

/** One thread a call: several small calls side by side, not one large one. */
const SESSION_OPTIONS = { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 3 };

/**
 * Sends each request to the cost-optimal tier.
 *
 *     const router = await Router.load("models/demo", { ort, Tokenizer, parseToml });
 *     const decision = await router.route({ prompt: "Prove that sqrt(2) is irrational.", quality: 0.98 });
 */
export class Router extends BundleRouter {
  /**
   * From the folder of a bundle; rejects with BundleError where it is not complete and unaltered.
   *
   * libraries: {ort: onnxruntime-node, Tokenizer: of @huggingface/tokenizers, parseToml: from text to plain objects}.
   */
  static async load(folder, libraries) {
    return openRouter((name) => readFile(join(folder, name)), libraries, {
      RouterClass: this,
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
    this.prices = await PriceTable.parse(bytes, this.parseToml, this.manifest.tiers);
  }
}
