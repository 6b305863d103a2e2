/** The manifest of a bundle, and the digests that hold the bundle together. */

import { BundleError, shown } from "./errors.js";

export const FORMAT_VERSION = 3;
export const REQUIRED_FILES = ["router.onnx", "tokenizer.json", "tiers.toml", "golden.jsonl"];

/** SHA-256 of bytes (Uint8Array), in hexadecimal digits. */
export async function sha256(bytes) {
  return hexadecimal(new Uint8Array(await globalThis.crypto.subtle.digest("SHA-256", bytes)));
}

/** Bytes as hexadecimal digits, two for each. */
export function hexadecimal(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Text from UTF-8; throws TypeError where the bytes are not. A byte order mark stays, and no parser takes it. */
export function decodeUtf8(bytes) {
  return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
}

/** The manifest, its own digest checked; throws BundleError. */
export async function parseManifest(bytes) {
  let text, manifest;
  try {
    text = decodeUtf8(bytes);
    manifest = JSON.parse(text);
  } catch (error) {
    throw new BundleError(`manifest.json: not valid JSON (${error.message}); train or copy the bundle again`);
  }
  if (manifest?.format_version !== FORMAT_VERSION) {
    const found = shown(manifest?.format_version);
    throw new BundleError(`manifest.json: found format_version ${found}, expected ${FORMAT_VERSION}`);
  }
  const digest = await sha256(new TextEncoder().encode(canonicalContent(text)));
  if (manifest.digest !== digest) {
    throw new BundleError(`manifest.json: found digest ${manifest.digest}, its content has ${digest}; it was altered`);
  }
  const missing = REQUIRED_FILES.filter((name) => !(name in manifest.files));
  if (missing.length > 0) throw new BundleError(`manifest.json: it does not list ${missing.join(", ")}`);
  return manifest;
}

/** The bundle's short name: the first 16 hexadecimal digits of the manifest's digest. */
export function bundleId(manifest) {
  return manifest.digest.slice(0, 16);
}

/** Throws BundleError where the bytes are not those that the manifest lists under a name. */
export async function checkFile(manifest, name, bytes) {
  const found = await sha256(bytes);
  if (found !== manifest.files[name]) {
    throw new BundleError(`${name} has SHA-256 ${found}, the manifest says ${manifest.files[name]}; copy it again`);
  }
}

const STRING_OR_NUMBER = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const NUMBER_MARK = "\u0000";

/**
 * The JSON of which the manifest's digest is made: without the key "digest", keys sorted, no white space.
 *
 * Numbers keep the digits with which they are written: as numbers of JavaScript, 1.0 and 1e-05 would become 1 and
 * 0.00001. So they travel as marked strings.
 */
function canonicalContent(text) {
  const marked = text.replace(STRING_OR_NUMBER, (token) =>
    token.startsWith('"') ? token : JSON.stringify(NUMBER_MARK + token),
  );
  const { digest: _, ...content } = JSON.parse(marked);
  return canonical(content);
}

function canonical(value) {
  if (typeof value === "string") return value.startsWith(NUMBER_MARK) ? value.slice(1) : JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return String(value);
  const entries = Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`);
  return `{${entries.join(",")}}`;
}
