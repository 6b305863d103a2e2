/** Routing from a bundle of Token Broker. The keys of decisions and plans are those of Python's to_json. */

/** Base of every error raised on purpose; the message says what was found, what was expected and what to do. */
export class RouterError extends Error {}
/** A bundle is missing, incomplete, altered or of another format. */
export class BundleError extends RouterError {}
/** A price table cannot replace the one in use. */
export class PriceError extends RouterError {}
/** A prompt that is no text, or messages that are not a chat. */
export class PromptError extends RouterError {}
/** A check that the bundle has not learned. */
export class CheckError extends RouterError {}
/** quality, worth_usd or another argument of a request is out of range. */
export class DialError extends RouterError {}

/** A message of a chat, as OpenAI, Anthropic or Gemini write it; only its text decides. */
export type Message = Record<string, unknown>;

/** What a request may say; exactly one of prompt and messages. */
export interface RouteRequest {
  prompt?: string | null;
  /** The chat, oldest message first. */
  messages?: readonly Message[] | null;
  /** In (0, 1]: keep at least this share of the accuracy of always asking the best tier. */
  quality?: number | null;
  /** What a correct answer is worth, in USD; alone, it lets money decide freely. */
  worth_usd?: number | null;
  /** Only the highest success among the tiers that may answer critical requests. */
  critical?: boolean;
  /** Tokens of the whole conversation, where the caller has counted them. */
  context_tokens?: number | null;
  regions?: readonly string[] | null;
  capabilities?: readonly string[] | null;
  /** Carried into the decision. */
  request_id?: string | null;
}

/** A request for a plan. `quality` is left out: which worth keeps a quality is proven in Python only. */
export interface PlanRequest extends Omit<RouteRequest, "quality"> {
  worth_usd: number;
  /** "agreement" or names of checks that the bundle learned; null takes agreement, where the bundle knows it. */
  checks?: readonly string[] | null;
  /** 1 to 3. */
  max_calls?: number;
}

/** Prices in USD per million tokens. */
export interface Prices {
  usd_per_mtok_input: number;
  usd_per_mtok_output: number;
  usd_per_mtok_cached_input: number | null;
  usd_per_mtok_cache_write: number | null;
}

/** A model at a provider at a price. */
export interface Offer extends Prices {
  model: string;
  provider: string;
  region: string;
  context_window: number;
  aliases: string[];
  capabilities: string[];
  max_share: number;
  /** Prices of longer requests. */
  above: (Prices & { input_tokens: number })[];
  /** Times of the day with a factor of their own, in minutes since midnight UTC. */
  hours: { start: number; end: number; factor: number }[];
}

/** The tier chosen for a request, with all that it was chosen from. */
export interface Decision {
  tier: string;
  /** null where a fallback has no offer. */
  offer: Offer | null;
  /** P(the tier answers correctly), per tier; empty where the prompt could not be read. */
  success: Record<string, number>;
  output_tokens: Record<string, number>;
  cost_usd: Record<string, number>;
  reason: string;
  context_tokens: number;
  /** null where worth_usd alone or `critical` decided. */
  quality: number | null;
  worth_usd: number;
  slack: number;
  promised: boolean;
  fallback: boolean;
  bundle_id: string;
  price_table_id: string;
  decision_id: string;
  request_id: string | null;
  propensity: number;
  /** 1 where the prompt is like those trained on; null where it could not be read. */
  familiarity: number | null;
  eligible: string[];
  cluster: number | null;
  best_tier: string | null;
  shadow_usd: Record<string, number>;
  /** Always null: classes are those of a policy, which the Python router keeps. */
  request_class: string | null;
}

/** What would make another tier win, all else being equal; see explanation.js. */
export interface Change {
  tier: string;
  price_factor: number | null;
  worth_usd: number | null;
  slack: number | null;
}

/** Logged prompts that are alike, and how often each tier answered them correctly. */
export interface Cluster {
  number: number;
  n_prompts: number;
  success: Record<string, number>;
  n_outcomes: Record<string, number>;
  segments: Record<string, number>;
  examples: string[];
}

/** What a decision rests on, and what would change it. */
export interface Explanation {
  tier: string;
  reason: string;
  admissible: string[];
  changes: Change[];
  similar: Cluster | null;
}

/** What is seen of the answers so far, and what then happens: another step, or an answer is returned. */
export type Branch = { seen: string; probability: number } & (
  | { step: Step; returned: null; success: null }
  | { step: null; returned: string; success: number }
);

/** A call of a plan. */
export interface Step {
  tier: string;
  model: string | null;
  is_checked: boolean;
  compared: boolean;
  branches: Branch[];
}

/** Whom to ask first, what to look at, when to stop, and whom to ask next. */
export interface Plan {
  steps: Step;
  checks: string[];
  success: number;
  cost_usd: number;
  reason: string;
  is_direct: boolean;
  quality: number | null;
  worth_usd: number;
  promised: boolean;
  decision: Decision;
}

/** Whether the golden prompts and plans came out as the bundle says. */
export interface GoldenCheck {
  passed: boolean;
  nPrompts: number;
  /** null where the bundle makes no plans, or their files were not read. */
  nPlans: number | null;
  largestDifference: number;
  otherTier: string[];
  otherPlan: string[];
}

/** The parts of a bundle's manifest that users read. */
export interface Manifest {
  format_version: number;
  digest: string;
  tiers: string[];
  best_tier: string;
  default_quality: number;
  dial: { quality: number; slack: number; promised: boolean; n_needed: number | null }[];
  files: Record<string, string>;
  [key: string]: unknown;
}

/** Tiers and what their offers cost now. */
export class PriceTable {
  /** From the bytes of a tiers.toml; rejects with PriceError. */
  static parse(bytes: Uint8Array, parseToml: ParseToml, tierNames: readonly string[]): Promise<PriceTable>;
  readonly tiers: { name: string; critical: boolean; offers: Offer[] }[];
  readonly id: string;
  /** The same table, all prices of a tier times its factor. */
  scaled(factors: Record<string, number>): PriceTable;
}

export type ParseToml = (text: string) => unknown;

/** What a platform brings. */
export interface Libraries {
  /** onnxruntime-node or onnxruntime-web. */
  ort: { InferenceSession: { create(...args: any[]): Promise<any> }; Tensor: new (...args: any[]) => any };
  /** Of @huggingface/tokenizers. */
  Tokenizer: new (...args: any[]) => any;
  /** From TOML to plain objects, as `parse` of smol-toml. */
  parseToml: ParseToml;
}

export interface OpenOptions {
  /** Names of files to read and check; by default every file that the manifest lists. */
  files?: readonly string[] | null;
  /** Of onnxruntime. */
  sessionOptions?: object;
  /** The class of the result. */
  RouterClass?: typeof Router;
}

/** Sends each request to the cost-optimal tier. Use openRouter, or `Router.load` of "token-broker-router/node". */
export class Router {
  protected constructor(parts: object);
  readonly manifest: Manifest;
  readonly bundleId: string;
  readonly bundlePrices: PriceTable;
  /** The table in use; assign another one to route at other prices. */
  prices: PriceTable;
  /** Never rejects because of a prompt; rejects with DialError where another argument is out of range. */
  route(request: RouteRequest): Promise<Decision>;
  /** Rejects with DialError or CheckError where an argument other than the prompt is not as expected. */
  plan(request: PlanRequest): Promise<Plan>;
  /** `similar` is null where clusters.json was not read. */
  explain(decision: Decision): Explanation;
  /** The token ids that the graph reads for a text, and how many characters the text has. */
  tokenIds(text: string): { ids: number[]; nChars: number };
  /** At the bundle's own prices. */
  checkGolden(): Promise<GoldenCheck>;
}

/**
 * A router from a bundle; rejects with BundleError where it is not complete and unaltered.
 *
 * readFile: from the name of a file in the bundle to its bytes.
 */
export function openRouter(
  readFile: (name: string) => Promise<Uint8Array>,
  libraries: Libraries,
  options?: OpenOptions,
): Promise<Router>;

/** As `Router.explain`; clusters is the content of clusters.json. */
export function explain(decision: Decision, clusters?: Omit<Cluster, "number">[] | null): Explanation;

/** The files that routing needs. */
export const REQUIRED_FILES: readonly string[];
/** The files that plans need, too. */
export const PLAN_FILES: readonly string[];
/** What a request may say. */
export const REQUEST_KEYS: readonly string[];
/** What a request for a plan may say. */
export const PLAN_REQUEST_KEYS: readonly string[];
