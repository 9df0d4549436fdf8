// Reads Prometheus's text format, as far as this server writes it.

/** Values by name, labels included as they stand: 'nemo_trt_errors_total{code="429"}' -> 1. */
export function parse(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    if (line.startsWith("#")) continue;
    const found = /^([^\s{]+(?:\{.*\})?)\s+(\S+)/.exec(line);
    if (found) values.set(found[1], Number(found[2]));
  }
  return values;
}
