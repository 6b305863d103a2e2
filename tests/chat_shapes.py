"""Messages as the interfaces of OpenAI, Anthropic and Gemini write them: with the text "Hi", and without a text."""

TEXT_MESSAGES = {
    "openai chat": {"role": "user", "content": "Hi"},
    "openai chat, parts": {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    "openai chat, refusal": {"role": "user", "content": None, "refusal": "Hi"},
    "openai chat, part of a refusal": {"role": "user", "content": [{"type": "refusal", "refusal": "Hi"}]},
    "openai responses, input": {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    "openai responses, output": {"role": "user", "type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
    "openai responses, function": {"role": "user", "type": "function_call_output", "call_id": "c", "output": "Hi"},
    "anthropic tool result": {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "t", "content": "Hi"}],
    },
    "anthropic tool result, parts": {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "Hi"}]}],
    },
    "anthropic document": {"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "Hi"}}]},
    "anthropic search result": {
        "role": "user",
        "content": [{"type": "search_result", "source": "https://a", "content": [{"type": "text", "text": "Hi"}]}],
    },
    "gemini": {"role": "user", "parts": [{"text": "Hi"}]},
    "gemini, one part": {"role": "user", "parts": {"text": "Hi"}},
}
MEDIA_MESSAGES = {
    "openai chat": {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}],
    },
    "openai file": {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]},
    "openai audio": {
        "role": "user",
        "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}],
    },
    "openai responses": {"role": "user", "content": [{"type": "input_image", "image_url": "https://a/b.png"}]},
    "anthropic": {
        "role": "user",
        "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A"}}],
    },
    "anthropic document": {
        "role": "user",
        "content": [{"type": "document", "source": {"type": "url", "url": "https://a/b.pdf"}}],
    },
    "anthropic tool result": {
        "role": "user",
        "content": [{"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]}],
    },
    "gemini": {"role": "user", "parts": [{"inline_data": {"mime_type": "image/png", "data": "AA"}}]},
    "gemini, javascript": {
        "role": "user",
        "parts": [{"fileData": {"mimeType": "application/pdf", "fileUri": "gs://a"}}],
    },
}
