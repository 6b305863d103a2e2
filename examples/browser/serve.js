/**
 * A small static server for this page: the folder of the examples, and a bundle under /bundle/.
 *
 *     node serve.js --bundle DIR [--port N] [--host ADDRESS]
 */

import { createReadStream } from "node:fs";
import { realpath, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const EXAMPLES = fileURLToPath(new URL("..", import.meta.url));
const PAGE = "/browser/";
const TYPES = {
  ".css": "text/css; charset=utf-8",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".mjs": "text/javascript; charset=utf-8",
  ".wasm": "application/wasm",
};

const text = { type: "string" };
const { values } = parseArgs({
  options: { bundle: text, port: { ...text, default: "8000" }, host: { ...text, default: "127.0.0.1" } },
});
if (values.bundle === undefined) {
  process.stderr.write("usage: node serve.js --bundle DIR [--port N] [--host ADDRESS]\n");
  process.exit(2);
}

/** The file that a URL's path names, inside one of the two folders; null where there is none. */
async function findFile(path) {
  const isBundle = path.startsWith("/bundle/");
  const folder = await realpath(isBundle ? values.bundle : EXAMPLES);
  const name = isBundle ? path.slice("/bundle".length) : path;
  try {
    const file = await realpath(join(folder, name.endsWith("/") ? `${name}index.html` : name));
    return file.startsWith(folder + sep) && (await stat(file)).isFile() ? file : null;
  } catch {
    return null;
  }
}

async function respond(request, response) {
  const { pathname } = new URL(request.url, "http://localhost");
  if (pathname === "/") return response.writeHead(302, { location: PAGE }).end();
  const file = await findFile(decodeURIComponent(pathname));
  if (file === null) return response.writeHead(404, { "content-type": "text/plain" }).end("no such file\n");
  const type = TYPES[extname(file)] ?? "application/octet-stream";
  response.writeHead(200, { "content-type": type, "cache-control": "no-cache" });
  createReadStream(file).on("error", () => response.destroy()).pipe(response);
}

const server = createServer((request, response) => {
  respond(request, response).catch(() => response.writeHead(400).end());
});
server.on("error", (error) => {
  process.stderr.write(`serve: ${error.message}\n`);
  process.exit(1);
});
server.listen(Number(values.port), values.host, () => {
  process.stdout.write(`open http://${values.host}:${server.address().port}${PAGE}\n`);
});
