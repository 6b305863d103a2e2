/** The router on Node: bundles and price tables are read from disk. */

import { Libraries, Router as BundleRouter } from "./index.js";

/** Sends each request to the cost-optimal tier. */
export class Router extends BundleRouter {
  /** From the folder of a bundle; rejects with BundleError where it is not complete and unaltered. */
  static load(folder: string, libraries: Libraries): Promise<Router>;
  /** Take the prices of a file in the format of tiers.toml; rejects with PriceError and keeps the present ones. */
  updatePrices(path: string): Promise<void>;
}
