// Server-sent events of a fetch's body, as OpenAI's API sends them.

/**
 * The JSON of each event, in order. Pieces may end anywhere, in the middle of a character too.
 * Returns true when the stream ended as it should, with [DONE].
 */
export async function* events(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return false;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return true;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may be cancelled already
  }
}
