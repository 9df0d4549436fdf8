// Requests to the server that served this page, wherever it is mounted.

import { Failure, failureOf } from "./failure.js";
import * as key from "./key.js";
import { events } from "./stream.js";

const ROOT = new URL("../", import.meta.url);

async function call(path, options = {}) {
  try {
    return await fetch(new URL(path, ROOT), { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "No answer came. Check that the server runs and can be reached.");
  }
}

/** What is served; its status may say that it is not ready. */
export async function identity() {
  return (await call("health/ready")).json();
}

/** Prometheus's text. */
export async function metrics() {
  const response = await call("metrics");
  if (!response.ok) throw await failureOf(response);
  return response.text();
}

/**
 * Ask for an answer; yields {text}, {finish} and {usage} as they come.
 * A missing key is asked for, as often as it is wrong.
 */
export async function* chat(request, signal) {
  const body = JSON.stringify({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
  });
  let response;
  for (;;) {
    const headers = { "Content-Type": "application/json", ...key.header() };
    response = await call("v1/chat/completions", { method: "POST", headers, body, signal });
    if (response.status !== 401 || !(await key.ask(signal))) break;
  }
  if (!response.ok) throw await failureOf(response);
  yield* pieces(response.body);
}

async function* pieces(body) {
  const stream = events(body);
  try {
    for (;;) {
      const { done, value } = await stream.next();
      if (done && !value) throw new TypeError("The stream ended early.");
      if (done) return;
      if (value.error) throw new Failure(statusOf(value.error), value.error.message, value.error);
      const [choice] = value.choices ?? [];
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) yield { finish: choice.finish_reason };
      if (value.usage) yield { usage: value.usage };
    }
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw new Failure(0, "The answer broke off before its end.");
  } finally {
    await stream.return();
  }
}

function statusOf(error) {
  return { timeout: 504, service_unavailable: 503, rate_limit_error: 429 }[error.type] ?? 500;
}
