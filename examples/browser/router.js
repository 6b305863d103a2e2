/** The router in the browser: a bundle is fetched, the graph runs in onnxruntime-web. */

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";
import { parse as parseToml } from "smol-toml";

import { REQUIRED_FILES } from "../javascript/manifest.js";
import { openRouter } from "../javascript/router.js";

ort.env.wasm.numThreads = 1;  // more than one would need cross-origin isolation headers

/**
 * A router from the URL of a bundle's folder; rejects with BundleError.
 *
 * Only the files that routing needs are fetched and checked against their digests.
 */
export async function loadRouter(bundleUrl) {
  const folder = bundleUrl.href.endsWith("/") ? bundleUrl : new URL(`${bundleUrl.href}/`);
  return openRouter((name) => fetchBytes(new URL(name, folder)), { ort, Tokenizer, parseToml }, {
    files: REQUIRED_FILES,
    sessionOptions: { executionProviders: ["wasm"], logSeverityLevel: 3 },
  });
}

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname}: HTTP ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}
