// Times one answer: to its first token, and how fast the others follow.

export class Meter {
  #start = performance.now();
  #first = null;
  #last = null;
  #pieces = 0;
  #usage = null;

  /** Text came. */
  piece() {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#pieces += 1;
  }

  /** The server's own count came. */
  count(usage) {
    this.#usage = usage;
  }

  /** What is known now. Without the server's count, each piece is taken for a token. */
  get stats() {
    const tokens = this.#usage?.completion_tokens ?? this.#pieces;
    const seconds = (this.#last - this.#first) / 1000;
    return {
      tokens,
      exact: this.#usage !== null,
      firstS: this.#first === null ? null : (this.#first - this.#start) / 1000,
      perS: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null,
      promptTokens: this.#usage?.prompt_tokens ?? null,
      cachedTokens: this.#usage?.prompt_tokens_details?.cached_tokens ?? null,
    };
  }
}
