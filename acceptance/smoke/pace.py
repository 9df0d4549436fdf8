"""Probes of what decode steps cost. Their times are of one small engine: they decide no more."""

import statistics

import numpy as np

from nemo_trt.engines.session import Session

from .fact import Outcome, confirmed, refuted, undecided
from .opened import Opened, decode, tokens

_ROUNDS, _STEPS = 20, 20
_LEAST_WAIT_S = 5e-3
_IDLE = 0.5  # share of the wait that is computed, at most
_ALIKE = 0.8
_DOMINATES = 0.2  # share of a step that reading the cache must take for its time to say anything


def waiting_computes_nothing(subject: Opened) -> Outcome:
    """`collect` waits for the device without using the processor."""
    waited = computed = 0.0
    with subject.open(True) as session:
        chunk = min(subject.record.options.prefill_chunk, session.capacity)
        ids = tokens(session, 1, chunk)
        start, last = np.array([session.capacity - chunk]), np.array([[chunk - 1]])
        for _ in range(_ROUNDS):
            session.launch(ids, start, last, 0, np.ones(1, np.float32))
            wall, cpu = subject.wall(), subject.cpu()
            session.collect()
            waited, computed = waited + subject.wall() - wall, computed + subject.cpu() - cpu
    words = f"in {waited * 1e3:.1f} ms of waiting, {computed * 1e3:.1f} ms were computed"
    if waited < _LEAST_WAIT_S:
        return undecided(f"{words}: too short to tell")
    return confirmed(words) if computed <= _IDLE * waited else refuted(words)


def a_step_costs_the_capacity(subject: Opened) -> Outcome:
    """A decode step takes as long with short rows as with full ones."""
    if subject.record.options.attention == "paged":
        return undecided("an engine with pages reads what its rows hold")
    with subject.open(True) as session:
        cache = session.memory.cache
        full = session.capacity - _STEPS - 1
        short_s, long_s = (step_s(subject, session, length) for length in (_STEPS, full))
    words = (
        f"{short_s * 1e6:.0f} us a step with rows of {_STEPS} tokens, {long_s * 1e6:.0f} us with "
        f"rows of {full}"
    )
    bandwidth = subject.bandwidth_bytes_per_s
    if bandwidth is None or cache / bandwidth < _DOMINATES * long_s:
        return undecided(f"{words}; the cache is too small, or the bandwidth not known")
    return confirmed(words) if short_s >= _ALIKE * long_s else refuted(words)


def shared_keys_come_from_the_l2_cache(subject: Opened) -> Outcome:
    """A step is faster than reading keys and values from memory for each query head would be."""
    with subject.open(True) as session:
        config, cache = session.config, session.memory.cache
        group = config.num_heads // config.num_kv_heads
        taken_s = step_s(subject, session, session.capacity - _STEPS - 1)
    bandwidth = subject.bandwidth_bytes_per_s
    if group == 1 or bandwidth is None:
        return undecided("no query heads share a key, or the bandwidth is not known")
    once_s = cache / bandwidth
    words = (
        f"{taken_s * 1e6:.0f} us a step; {cache / 1e6:.0f} MB of keys and values take "
        f"{once_s * 1e6:.0f} us at the data sheet's bandwidth, {group} times as long if each query "
        "head read them"
    )
    if taken_s > 2 * group * once_s:
        return undecided(f"{words}: something else takes longer")
    return confirmed(words) if taken_s < group * once_s else refuted(words)


def step_s(subject: Opened, session: Session, length: int) -> float:
    """Median seconds of a decode step of all rows, each of about so many tokens."""
    rows, times = session.max_batch, []
    ids = tokens(session, rows, _STEPS)
    for step in range(_STEPS):
        start = subject.wall()
        decode(session, ids[:, step], np.full(rows, length + step))
        times.append(subject.wall() - start)
    return statistics.median(times[2:])
