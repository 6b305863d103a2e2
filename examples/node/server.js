/**
 * Routing as an HTTP service.
 *
 *     node server.js --bundle DIR [--prices FILE] [--port N] [--host ADDRESS]
 *
 * POST /route    a JSON object with prompt or messages, and dials -> the decision as JSON
 * POST /explain  the same -> the decision, and what would change it
 * POST /plan     the same with worth_usd, checks and max_calls -> the plan as JSON
 * GET  /healthz  which bundle and which price table are in use
 *
 * The price file is read again whenever it changes; a broken one never replaces a good one. No prompt is logged.
 * A body of more than 4 MiB gets status 413, and a request that does not come within 10 seconds 408.
 */

import { watchFile } from "node:fs";
import { createServer } from "node:http";
import { parseArgs } from "node:util";

import { CheckError, DialError, RouterError } from "../javascript/errors.js";
import { PLAN_REQUEST_KEYS, REQUEST_KEYS } from "../javascript/router.js";
import { Router } from "./router.js";

const MAX_BODY_BYTES = 4 * 1024 * 1024;
const LIMITS = { headersTimeout: 5_000, requestTimeout: 10_000, connectionsCheckingInterval: 1_000 };  // ms
const LAST_WORDS_MS = 1_000;  // so long is a body that is too large read on, so that the caller hears the answer
const PRICE_CHECK_MS = 200;
const USAGE = "usage: node server.js --bundle DIR [--prices FILE] [--port N] [--host ADDRESS]";

/** A request that cannot be answered; the message goes to the caller. */
class HttpError extends Error {
  constructor(status, message, headers = {}) {
    super(message);
    this.status = status;
    this.headers = headers;
  }
}

/** The price file in use, and why the newest version of it was refused, if it was. */
class PriceFile {
  constructor(router, path) {
    this.router = router;
    this.path = path;
    this.refused = null;
  }

  /** Take the file as it is now; rejects with PriceError where it is broken. */
  async read() {
    try {
      await this.router.updatePrices(this.path);
      this.refused = null;
    } catch (error) {
      this.refused = error.message;
      throw error;
    }
  }

  /** Read the file again whenever it changes, and say what came of it. */
  watch() {
    watchFile(this.path, { interval: PRICE_CHECK_MS, persistent: false }, () =>
      this.read().then(
        () => log(`price table ${this.router.prices.id} in use`),
        (error) => log(`${error.message}; ${this.router.prices.id} stays in use`),
      ),
    );
  }
}

async function main() {
  const options = readOptions();
  const router = await Router.load(options.bundle);
  const golden = await router.checkGolden();
  if (!golden.passed) {
    const tiers = `${golden.otherTier.length} of ${golden.nPrompts} golden prompts went to another tier`;
    const plans = golden.nPlans === null ? "" : `, ${golden.otherPlan.length} of ${golden.nPlans} plans are others`;
    const difference = golden.largestDifference.toExponential(1);
    const found = `${tiers}${plans}, largest difference ${difference}`;
    throw new Error(`${options.bundle}: ${found}; this service routes otherwise`);
  }
  const priceFile = options.prices === undefined ? null : new PriceFile(router, options.prices);
  await priceFile?.read();
  priceFile?.watch();

  const server = createServer(LIMITS, (request, response) => void respond(router, priceFile, request, response));
  server.on("error", (error) => fail(error));
  server.listen(options.port, options.host, () => {
    const { address, port, family } = server.address();
    const host = family === "IPv6" ? `[${address}]` : address;
    log(`bundle ${router.bundleId}, ${golden.nPrompts} golden prompts agree, price table ${router.prices.id}`);
    process.stdout.write(`listening on http://${host}:${port}\n`);
  });
  for (const signal of ["SIGINT", "SIGTERM"]) {
    process.once(signal, () => {
      server.close(() => process.exit(0));
      server.closeIdleConnections();
    });
  }
}

function readOptions() {
  const text = { type: "string" };
  let values;
  try {
    ({ values } = parseArgs({
      options: {
        bundle: text,
        prices: text,
        port: { ...text, default: "8080" },
        host: { ...text, default: "127.0.0.1" },
      },
    }));
  } catch (error) {
    throw new Error(`${error.message}\n${USAGE}`);
  }
  const port = Number(values.port);
  if (values.bundle === undefined) throw new Error(`--bundle is missing\n${USAGE}`);
  if (!Number.isInteger(port) || port < 0 || port > 65535) {
    throw new Error(`--port is ${values.port}; expected 0 to 65535, where 0 takes any free one\n${USAGE}`);
  }
  return { ...values, port };
}

async function respond(router, priceFile, request, response) {
  try {
    send(response, 200, await answer(router, priceFile, request));
  } catch (error) {
    if (error instanceof HttpError) return send(response, error.status, { error: error.message }, error.headers);
    if (error instanceof DialError || error instanceof CheckError) return send(response, 400, { error: error.message });
    if (error.code === "ECONNRESET") return;  // the caller has gone
    log(`internal error: ${error.name} ${error.stack?.split("\n").find((line) => line.includes(" at ")) ?? ""}`);
    send(response, 500, { error: "internal error" });
  }
}

async function answer(router, priceFile, request) {
  const route = `${request.method} ${request.url.split("?")[0]}`;
  if (route === "POST /route") return router.route(await readRequest(request, REQUEST_KEYS));
  if (route === "POST /explain") {
    const decision = await router.route(await readRequest(request, REQUEST_KEYS));
    return { decision, explanation: router.explain(decision) };
  }
  if (route === "POST /plan") return router.plan(await readRequest(request, PLAN_REQUEST_KEYS));
  if (route === "GET /healthz") {
    return {
      status: "ok",
      bundle_id: router.bundleId,
      price_table_id: router.prices.id,
      prices_refused: priceFile?.refused ?? null,
    };
  }
  const allowed = { "/route": "POST", "/explain": "POST", "/plan": "POST", "/healthz": "GET" }[route.split(" ")[1]];
  if (allowed !== undefined) throw new HttpError(405, `expected ${allowed}`, { allow: allowed });
  throw new HttpError(404, "no such path; expected POST /route, /explain or /plan, or GET /healthz");
}

/** The request of a body: a JSON object with nothing but these keys. */
async function readRequest(request, keys) {
  const body = await readBody(request);
  let document;
  try {
    document = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch {
    throw new HttpError(400, "the body is not valid JSON in UTF-8; expected an object with prompt or messages");
  }
  if (typeof document !== "object" || document === null || Array.isArray(document)) {
    throw new HttpError(400, `the body is no JSON object; expected one with keys of ${keys.join(", ")}`);
  }
  const unknown = Object.keys(document).filter((key) => !keys.includes(key));
  if (unknown.length > 0) {
    throw new HttpError(400, `unknown ${unknown.join(", ")}; expected only ${keys.join(", ")}`);
  }
  return document;
}

async function readBody(request) {
  const chunks = [];
  let nBytes = Number(request.headers["content-length"] ?? 0);
  if (nBytes > MAX_BODY_BYTES) throw tooLarge(request);
  nBytes = 0;
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    nBytes += chunk.length;
    if (nBytes > MAX_BODY_BYTES) throw tooLarge(request);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** The error for a body that is too large. The rest of it is thrown away, and what does not come soon ends it. */
function tooLarge(request) {
  request.resume();
  setTimeout(() => request.complete || request.destroy(), LAST_WORDS_MS).unref();
  return new HttpError(413, `the body is too large; expected at most ${MAX_BODY_BYTES} bytes`);
}

function send(response, status, document, headers = {}) {
  if (response.destroyed) return;
  response.writeHead(status, { "content-type": "application/json; charset=utf-8", ...headers });
  response.end(`${JSON.stringify(document)}\n`);
}

function log(message) {
  process.stderr.write(`${new Date().toISOString()} ${message}\n`);
}

function fail(error) {
  process.stderr.write(`server: ${error instanceof RouterError ? `${error.name}: ` : ""}${error.message}\n`);
  process.exit(1);
}

main().catch(fail);
