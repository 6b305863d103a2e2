/** From a request to the characters that the tokenizer reads. Characters are counted in code points. */

import { PromptError } from "./errors.js";

const CONTENT_KEYS = ["content", "parts", "output", "refusal"];  // a message holds its content under the first of them
const INNER_KEYS = ["content", "output", "source"];  // a tool's result and a document hold parts of their own
const DEEPEST = 8;
const MEDIA_TYPES = new Map([
  ...["image_url", "input_image", "image", "computer_screenshot", "video_url", "video", "file", "input_file", "document"]
    .map((type) => [type, "vision"]),
  ...["input_audio", "audio", "audio_url"].map((type) => [type, "audio"]),
]);
const GEMINI_MEDIA = ["inline_data", "inlineData", "file_data", "fileData"];

/**
 * The text that decides, from exactly one of a prompt and a chat.
 *
 * A chat's texts stand newest message first, a blank line between them: what is cut off is the oldest. The parts of
 * one message are joined by a line break; parts that are not text (images, files) are passed over.
 * Throws PromptError where neither or both are given, where they are not what they should be, or where no message has
 * a text.
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

/** What a model needs to read all parts of a chat: "vision" for images, video and files, "audio" for sound. */
export function mediaCapabilities(messages) {
  if (!Array.isArray(messages)) return [];
  const parts = messages.filter(isMapping).flatMap((message) => partsOf(contentOf(message)));
  return [...new Set(parts.map(mediaOf).filter((capability) => capability !== null))];
}

function chatText(messages) {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new PromptError(`messages is ${typeof messages}; expected a non-empty list of messages`);
  }
  const texts = messages.map(messageText).reverse();
  if (texts.every((text) => text === "")) {
    throw new PromptError("no text found in the messages; expected a message with a text");
  }
  return texts.join("\n\n");
}

function messageText(message) {
  if (!isMapping(message)) throw new PromptError(`a message is ${typeof message}; expected role and content`);
  const content = contentOf(message);
  if (!(content === null || typeof content === "string" || Array.isArray(content) || isMapping(content))) {
    throw new PromptError(`a message's content is ${typeof content}; expected a text or a list of parts`);
  }
  return partsOf(content).flatMap(textsOf).join("\n");  // an assistant's tool call has no content
}

function contentOf(message) {
  return CONTENT_KEYS.map((key) => message[key] ?? null).find((content) => content !== null) ?? null;
}

/** The parts of a content, each before the parts inside it; a text stands as a part with that text. */
function partsOf(content, depth = DEEPEST) {
  if (typeof content === "string") return [{ text: content }];
  if (depth === 0) return [];
  if (Array.isArray(content)) return content.flatMap((part) => partsOf(part, depth - 1));
  if (!isMapping(content)) return [];
  const inner = INNER_KEYS.filter((key) => key !== "source" || isMapping(content[key]));  // else it is an address
  return [content, ...inner.flatMap((key) => partsOf(content[key], depth - 1))];
}

/** What a part itself says; Anthropic's plain documents say it in `data`. */
function textsOf(part) {
  return [part.text, part.refusal, part.type === "text" ? part.data : null].filter((text) => typeof text === "string");
}

/** The capability that a model needs to read a part; null for a text. */
function mediaOf(part) {
  if (part.type === "document" && isMapping(part.source) && ["text", "content"].includes(part.source.type)) return null;
  if (MEDIA_TYPES.has(part.type)) return MEDIA_TYPES.get(part.type);
  const blob = GEMINI_MEDIA.map((key) => part[key]).find(isMapping);
  if (blob === undefined) return null;
  const kind = String(blob.mime_type || blob.mimeType).split("/")[0];
  if (kind === "text") return null;
  return kind === "audio" ? "audio" : "vision";
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
