// What can go wrong, and how the user is told.

const TITLES = {
  400: "The server did not take this request",
  401: "This server asks for an API key",
  404: "The server does not have this model",
  413: "The message is too large",
  429: "The server is busy",
  500: "The server failed",
  503: "The server is not ready",
  504: "The answer took too long",
};

/** A request that failed: `status` is 0 where no answer came at all. */
export class Failure extends Error {
  constructor(status, message, { code = null, retryAfterS = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfterS });
  }

  /** As plain data, in words. */
  get words() {
    let title = TITLES[this.status] ?? "The server answered with an error";
    if (this.status === 0) title = "The connection to the server was lost";
    if (this.code === "context_length_exceeded") title = "This is too long for the model";
    return { title, detail: this.message, retryAfterS: this.retryAfterS, status: this.status };
  }
}

/** The failure that an answer with an error status is. */
export async function failureOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Something between the server and us answered in its own way.
  }
  return new Failure(response.status, error.message ?? `HTTP status ${response.status}.`, {
    code: error.code,
    retryAfterS: Number.parseInt(response.headers.get("Retry-After") ?? "0", 10) || 0,
  });
}
