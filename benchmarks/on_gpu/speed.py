"""Decode and prefill: transformers eager, transformers compiled, our CUDA session, in one run.

A decode step is timed with its logits where each contender's caller gets them: on the device for
transformers, in host memory for ours.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nemo_trt.engines.session import Session
from nemo_trt.precision import DType
from on_gpu.clock import seconds
from on_gpu.scale import Scale, Work
from on_gpu.session import opened

DecodeOf = Callable[[int, int, int], Callable[[], object]]
PrefillOf = Callable[[int], Callable[[], object]]


def run_eager(work: Work) -> dict[str, Any]:
    """transformers as it is."""
    return _run_peer(work, compiled=False)


def run_compiled(work: Work) -> dict[str, Any]:
    """transformers with a static cache, compiled."""
    return _run_peer(work, compiled=True)


def run_ours(work: Work) -> dict[str, Any]:
    """Our session, decode steps as CUDA graphs."""
    scale = work.scale
    steps = _calls(scale)
    longest = max(scale.context + steps, *scale.prefill_lengths)
    session = opened(work, max_batch=1, max_seq_len=longest)
    try:
        found = {"prefill": _prefills(scale, lambda length: _prefill_of(session, length))}
        found["decode"] = {}
    finally:
        session.close()
    for rows in scale.batches:  # each with a cache of its own size
        session = opened(work, max_batch=rows, max_seq_len=scale.context + steps)
        try:
            step = _decode_of(session, rows, scale.context)
            found["decode"][str(rows)] = seconds(step, scale, inner=scale.timed_steps)
        finally:
            session.close()
    return found


def _run_peer(work: Work, *, compiled: bool) -> dict[str, Any]:
    from on_gpu.peer import Peer, load_model

    scale = work.scale
    with torch.inference_mode():
        peer = Peer(load_model(work), work, compiled=compiled)
        decode = {}
        for rows in scale.batches:
            step = peer.decode(rows, scale.context, _calls(scale))
            if compiled:
                step()  # a second warm-up: the first call compiles, the second captures
            decode[str(rows)] = seconds(step, scale, inner=scale.timed_steps)
        return {"decode": decode, "prefill": _prefills(scale, peer.prefill)}


def _calls(scale: Scale) -> int:
    """Tokens that a timed decode appends, warm-ups included."""
    return scale.rounds * scale.timed_steps + 2


def _prefills(scale: Scale, prefill_of: PrefillOf) -> dict[str, float]:
    return {str(length): seconds(prefill_of(length), scale) for length in scale.prefill_lengths}


def _prefill_of(session: Session, length: int) -> Callable[[], object]:
    ids = np.random.default_rng(0).integers(3, session.config.vocab_size, (1, length))
    session.bind(length)
    return lambda: session.step(ids, np.zeros(1, np.int64), np.array([[length - 1]]))


def _decode_of(session: Session, rows: int, context: int) -> Callable[[], object]:
    ids = np.random.default_rng(0).integers(3, session.config.vocab_size, (rows, context))
    zeros = np.zeros((rows, 1), np.int64)
    session.bind(session.max_seq_len)
    session.step(ids, zeros[:, 0], np.full((rows, 1), context - 1))
    held = np.full(rows, context)

    def step() -> object:
        logits = session.step(ids[:, :1], held, zeros)
        held[:] += 1
        return logits

    return step


def table(results: dict[str, dict[str, Any]], machine: dict[str, Any], scale: Scale) -> str:
    """Decode and prefill; `results` are of the contenders that ran."""
    names = {"speed-eager": "transformers eager", "speed-compiled": "transformers compiled",
             "speed-ours": "nemo-trt CUDA"}  # fmt: skip
    ran = {names[key]: value for key, value in results.items() if key in names}
    lines = [
        f"Decode behind {scale.context} tokens a row: tokens/s, and the share of the copy rate "
        "that reading weights and cache takes.\n",
        "| rows | " + " | ".join(f"{name} | share" for name in ran) + " |",
        "|---:|" + "---:|" * (2 * len(ran)),
    ]
    for rows in scale.batches:
        cells = []
        for found in ran.values():
            took = found["decode"][str(rows)]
            share = step_bytes(scale, rows) / took / machine["copy_bytes_per_s"]
            cells.append(f"{rows / took:,.1f} | {share:.0%}")
        lines.append(f"| {rows} | " + " | ".join(cells) + " |")
    lines += [
        "\nPrefill of one row: tokens/s, and the share of the BF16 product's rate.\n",
        "| tokens | " + " | ".join(f"{name} | share" for name in ran) + " |",
        "|---:|" + "---:|" * (2 * len(ran)),
    ]
    for length in scale.prefill_lengths:
        cells = []
        for found in ran.values():
            took = found["prefill"][str(length)]
            share = prefill_flops(scale, length) / took / machine["matmul_flops"]
            cells.append(f"{length / took:,.0f} | {share:.0%}")
        lines.append(f"| {length} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def step_bytes(scale: Scale, rows: int) -> int:
    """Bytes that a decode step must read: the weights once, every row's keys and values."""
    config = scale.config
    cached = scale.context + _calls(scale) // 2
    return (
        config.num_parameters_per_step * DType.BF16.itemsize
        + rows * cached * config.kv_bytes_per_token(DType.BF16)
    )


def prefill_flops(scale: Scale, tokens: int) -> float:
    """Operations of a prefill: every layer's products, causal attention, the head once."""
    config = scale.config
    head = config.vocab_size * config.hidden_size
    layers = config.num_parameters_per_step - head
    attention = 4 * config.num_layers * config.query_size * tokens * (tokens + 1) / 2
    return 2 * layers * tokens + attention + 2 * head
