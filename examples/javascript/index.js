/** Routing from a bundle. Node finds bundles on disk with "token-broker-router/node"; elsewhere use openRouter. */

export { BundleError, CheckError, DialError, PriceError, PromptError, RouterError } from "./errors.js";
export { explain } from "./explanation.js";
export { REQUIRED_FILES } from "./manifest.js";
export { PLAN_FILES } from "./plans.js";
export { PriceTable } from "./prices.js";
export { openRouter, PLAN_REQUEST_KEYS, REQUEST_KEYS, Router } from "./router.js";
