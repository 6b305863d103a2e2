/** The router with the libraries of this example. */

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";
import { parse as parseToml } from "smol-toml";

import { Router as NodeRouter } from "../javascript/node.js";

/** Sends each request to the cost-optimal tier. */
export class Router extends NodeRouter {
  /** From the folder of a bundle; rejects with BundleError where it is not complete and unaltered. */
  static async load(folder) {
    return super.load(folder, { ort, Tokenizer, parseToml });
  }
}
