/** Base of every error raised on purpose; the message says what was found, what was expected and what to do. */
export class RouterError extends Error {
  get name() {
    return this.constructor.name;
  }
}

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

/** How a value found is shown in a message: as JSON, or "nothing" where there is none. */
export function shown(value) {
  if (value === undefined || value === null) return "nothing";
  return typeof value === "number" ? String(value) : JSON.stringify(value);
}
