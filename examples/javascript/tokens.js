/** From text to token ids: the package @huggingface/tokenizers, and the two things in which it differs. */

/** The words of the pre-tokenizer ByteLevel, as the tokenizers library splits them. */
const BYTE_LEVEL_WORDS = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/**
 * A function from a text to its token ids, at most as many as tokenizer.json allows.
 *
 * Tokenizer: the class of @huggingface/tokenizers. definition: the content of tokenizer.json.
 */
export function textEncoder(Tokenizer, definition) {
  const tokenizer = new Tokenizer({ ...definition, pre_tokenizer: withUnicodeSpace(definition.pre_tokenizer) }, {});
  const maxTokens = definition.truncation?.max_length ?? Infinity;
  return (text) => {
    const ids = tokenizer.encode(text).ids;
    if (ids.length <= maxTokens) return ids;
    return truncated(ids, tokenizer.encode(text, { add_special_tokens: false }).ids, maxTokens);
  };
}

/**
 * In JavaScript, `\s` has U+FEFF and lacks U+0085; in Unicode, and so in the tokenizers library, it is the other way
 * round. The pre-tokenizer ByteLevel of the package writes `\s`, its pre-tokenizer Split means Unicode's.
 */
function withUnicodeSpace(preTokenizer) {
  if (preTokenizer?.type === "Sequence") {
    return { ...preTokenizer, pretokenizers: preTokenizer.pretokenizers.map(withUnicodeSpace) };
  }
  if (preTokenizer?.type !== "ByteLevel" || preTokenizer.use_regex === false || preTokenizer.add_prefix_space) {
    return preTokenizer;
  }
  const split = { type: "Split", pattern: { Regex: BYTE_LEVEL_WORDS }, behavior: "Isolated", invert: false };
  return { type: "Sequence", pretokenizers: [split, { ...preTokenizer, use_regex: false }] };
}

/** The package does not truncate. What is cut is the end of the text; special tokens around it stay. */
function truncated(ids, textIds, maxTokens) {
  const before = ids.findIndex((_, start) => textIds.every((id, index) => ids[start + index] === id));
  const after = ids.length - before - textIds.length;
  return [
    ...ids.slice(0, before),
    ...textIds.slice(0, Math.max(0, maxTokens - before - after)),
    ...ids.slice(ids.length - after),
  ];
}
