"""Numbers that are taken where none is named; commands show them, stages use them."""

MAX_KL = 0.0025
"""Divergence, in nats, that FP8 may cause; groups stay in BF16 until the rest causes less."""
MAX_CACHE_KL = 0.0025
"""Divergence, in nats, that an FP8 cache may cause; layers keep a BF16 one as for `MAX_KL`."""
ENGINE_SEQ_LEN = 4096
"""Tokens a row of an engine, where they fit."""
SLOTS = 8
"""Requests that a server runs at once."""
MAX_ROWS = 8
"""Rows that a validation runs at once, at most."""
PREFILL_LENGTHS = (128, 1024)
"""Prompt lengths that are measured, in tokens."""
DECODE_LENGTHS = (128, 1920)
"""Tokens in the cache when decoding is measured."""
DECODE_STEPS = 32
"""Decode steps that are timed at each length."""
DRAIN_TIMEOUT_S = 60.0
"""What a server that stops gives the requests that run."""
