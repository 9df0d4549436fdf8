// Says what answers here: the model, its engine, and what the validator said of it.

import * as api from "./api.js";
import { at, make } from "./dom.js";

const BACKENDS = { onnxruntime: "ONNX Runtime", tensorrt: "TensorRT", tensorrt_rtx: "TensorRT-RTX" };
const AGAIN_MS = 2000;

/** Ask until the server is ready. */
export async function showIdentity() {
  for (;;) {
    let found = null;
    try {
      found = await api.identity();
      show(found);
    } catch {
      warn("The server cannot be reached.");
    }
    if (found?.status === "ready" || found?.status === "failed") return;
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

function show(found) {
  document.title = `${found.model} · nemo-trt`;
  at("model").textContent = found.model;
  at("asked").textContent = found.model;
  const facts = [
    engineName(found.engine),
    found.compute_precision ?? found.precision,
    found.max_seq_len && `${found.max_seq_len.toLocaleString("en")} tokens`,
    found.slots && `${found.slots} ${found.slots === 1 ? "slot" : "slots"}`,
  ];
  at("facts").textContent = facts.filter(Boolean).join(" · ");
  const badge = at("verdict");
  badge.hidden = false;
  badge.textContent = found.validated ? "Validated: PASS" : "Not validated";
  badge.className = found.validated ? "badge pass" : "badge fail";
  details(found);
  warn(warning(found));
}

function warning(found) {
  if (found.status === "failed") return `The engine has failed: ${found.failure ?? "see the server’s log"}`;
  if (found.status === "starting") return "The server is starting.";
  if (found.status === "draining") return "The server is shutting down.";
  if (found.validated) return "";
  return `Not validated (${found.validation}). Answers may be wrong in ways that nobody has checked.`;
}

function warn(words) {
  at("warning").hidden = !words;
  at("warning").textContent = words;
}

function engineName(engine) {
  if (!engine) return null;
  const backend = BACKENDS[engine.backend] ?? engine.backend;
  return engine.engine ? `${backend} ${engine.engine}` : `${backend} ${providerName(engine)}`;
}

function providerName({ provider = "" }) {
  return provider.replace("ExecutionProvider", "");
}

function details(found) {
  const { engine } = found;
  const rows = {
    Model: found.model,
    Validation: found.validation,
    Engine: engine && `${engineName(engine)}, version ${engine.version}`,
    Target: engine?.target,
    "Engine id": engine?.engine_id?.slice(0, 12),
    "Bundle id": found.bundle_id?.slice(0, 12),
    Precision:
      found.compute_precision && found.compute_precision !== found.precision
        ? `${found.precision} weights, computed in ${found.compute_precision}`
        : found.precision,
    Context: found.max_seq_len && `${found.max_seq_len.toLocaleString("en")} tokens`,
    Slots: found.slots,
    "Ready after": found.startup_s && `${found.startup_s.toFixed(1)} s`,
  };
  const known = Object.entries(rows).filter(([, value]) => value);
  at("details").replaceChildren(
    ...known.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]),
  );
}
