"""The smoke: a small engine is built, run and judged, and every inferred fact is probed."""
