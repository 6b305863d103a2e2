/** From a request to the characters that the tokenizer reads. Characters are counted in code points. */

import { PromptError } from "./errors.js";

/**
 * The text that decides, from exactly one of a prompt and a chat.
 *
 * A chat's texts stand newest message first, a blank line between them: what is cut off is the oldest. The parts of
 * one message are joined by a line break; parts that are not text (images, files) are passed over.
 * Throws PromptError where neither or both are given, or where they are not what they should be.
 */
export function promptText(prompt, messages) {
  if ((prompt ?? null) === null && (messages ?? null) === null) {
    throw new PromptError("found neither prompt nor messages; expected one of the two");
  }
  if ((prompt ?? null) !== null && (messages ?? null) !== null) {
    throw new PromptError("found both prompt and messages; expected one of the two");
  }
  if ((messages ?? null) !== null) return chatText(messages);
  if (typeof prompt !== "string") throw new PromptError(`prompt is ${typeof prompt}; expected a text`);
  return prompt;
}

function chatText(messages) {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new PromptError(`messages is ${typeof messages}; expected a non-empty list of messages`);
  }
  return messages.map(messageText).reverse().join("\n\n");
}

function messageText(message) {
  if (!isMapping(message)) throw new PromptError(`a message is ${typeof message}; expected role and content`);
  const content = message.content ?? "";  // an assistant's tool call has no content
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) {
    throw new PromptError(`a message's content is ${typeof content}; expected a text or a list of parts`);
  }
  const texts = content.filter((part) => isMapping(part) && part.type === "text").map((part) => part.text ?? "");
  return texts.filter((text) => typeof text === "string").join("\n");
}

function isMapping(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The first `maxChars` code points of a text, and how many the whole text has; a lone surrogate counts as one. */
export function cutText(text, maxChars) {
  let nChars = 0;
  let end = text.length;
  for (let index = 0; index < text.length; nChars += 1) {
    if (nChars === maxChars) end = index;
    index += text.codePointAt(index) > 0xffff ? 2 : 1;
  }
  return { head: text.slice(0, end), nChars };
}

/** The text with "?" for every lone surrogate, which no tokenizer can encode. */
export function validUnicode(text) {
  return text.replace(/\p{Surrogate}/gu, "?");
}
