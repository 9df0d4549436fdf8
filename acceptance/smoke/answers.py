"""Probes of what an engine answers: the same whatever lies beside, and however it is run."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nemo_trt.engines.candidates import top_candidates

from .fact import Outcome, confirmed, refuted, undecided
from .opened import LAST, Opened, decode, distance, held, prefill, tokens

_PROMPT, _STEPS, _REPEATS = 16, 8, 8
_MASS_ERROR = 1e-3


def a_step_repeats_itself(subject: Opened) -> Outcome:
    """The same prefill and decode step give the same logits each time."""
    with subject.open(True) as session:
        ids = tokens(session, 1, _PROMPT + 1)[0]
        found = []
        for _ in range(_REPEATS):
            first = prefill(session, ids[:-1], 0)
            found.append(np.stack([first, decode(session, ids[-1:], np.array([_PROMPT]))[0]]))
    return _alike(subject, "repeated steps", found[1:], [found[0]] * (_REPEATS - 1))


def a_graph_equals_a_plain_run(subject: Opened) -> Outcome:
    """Replayed decode steps give the logits of plain ones."""
    results = []
    for use_graphs in (True, False):
        with subject.open(use_graphs) as session:
            if use_graphs and (why := session.describe().get("without_graph")):
                return undecided(f"there is no graph: {why}")
            rows = session.max_batch
            ids = tokens(session, rows, _STEPS)
            results.append(
                [decode(session, ids[:, at], np.full(rows, at)) for at in range(_STEPS)]
                + [decode(session, ids[:1, at], np.array([at])) for at in range(_STEPS)]
            )
    return _alike(subject, "replayed steps", *results)


def a_decode_step_keeps_the_cache(subject: Opened) -> Outcome:
    """A step leaves earlier keys and values as they were, and its logits are those of one pass."""
    with subject.open(True) as session:
        ids = tokens(session, 1, _PROMPT + _STEPS)[0]
        prefill(session, ids[:_PROMPT], 0)
        before = held(session, 0, 0, _PROMPT)
        steps = range(_PROMPT, _PROMPT + _STEPS)
        found = [decode(session, ids[[at]], np.array([at]))[0] for at in steps]
        changed = int((held(session, 0, 0, _PROMPT) != before).sum())
        blank = int((~held(session, 0, _PROMPT, _PROMPT + _STEPS).any(axis=(1, 3))).sum())
        expected = [prefill(session, ids[: at + 1], 0) for at in steps]
    worst = max(map(distance, found, expected))
    words = (
        f"{changed} of {before.size} earlier numbers changed in {_STEPS} steps, {blank} new tokens "
        f"were not written; logits are {worst:.1e} from those of one pass (limit {subject.limit})"
    )
    sound = not changed and not blank and worst <= subject.limit
    return confirmed(words) if sound else refuted(words, wrong=True)


def rows_do_not_see_each_other(subject: Opened) -> Outcome:
    """A row's logits are the same whatever the rows beside it hold."""
    found = []
    with subject.open(True) as session:
        rows = session.max_batch
        if rows == 1:
            return undecided("the engine has one row")
        ids = tokens(session, 1, _PROMPT)[0]
        for seed in (1, 2, 3):
            beside = tokens(session, rows, _STEPS, seed)
            for row in range(1, rows):
                prefill(session, beside[row], row)
            prefill(session, ids[:-1], 0)
            starts = np.array([_PROMPT - 1] + [_STEPS] * (rows - 1))
            found.append(decode(session, np.array([ids[-1], *beside[1:, 0]]), starts)[0])
    return _alike(subject, f"steps beside {rows - 1} other rows", found[1:], found[:1] * 2)


def what_lies_behind_a_row_is_not_read(subject: Opened) -> Outcome:
    """A row's logits do not depend on the cache behind its length."""
    found = []
    with subject.open(True) as session:
        config, ids = session.config, tokens(session, 1, _PROMPT)[0]
        for value in (1.0, 1e4):
            prefill(session, ids[:-1], 0)
            tail = session.capacity - _PROMPT + 1
            block = np.full((config.num_kv_heads, tail, config.head_dim), value, np.float32)
            for layer in range(config.num_layers):
                for kind in ("key", "value"):
                    session.write_cache(layer, kind, 0, _PROMPT - 1, block)
            found.append(decode(session, ids[-1:], np.array([_PROMPT - 1]))[0])
    return _alike(subject, "steps in front of another tail", found[1:], found[:1])


def candidates_are_the_largest(subject: Opened) -> Outcome:
    """What the device picks are the largest logits of the row, with the sums over all."""
    with subject.open(True) as session:
        ids = tokens(session, 1, _PROMPT)
        degree = np.array([0.7], np.float32)
        session.launch(ids, np.zeros(1, np.int64), LAST + _PROMPT - 1, 0, degree)
        result = session.collect()
        picked, logits = result.candidates([(0, 0)]), result.logits(0, 0, 1)
    if picked is None:
        return refuted("the session picked none", wrong=True)
    best = top_candidates(logits, degree)
    equals = len(best.logits[0]) - len(np.unique(best.logits[0]))
    values = np.array_equal(picked.logits, best.logits)
    own = np.array_equal(np.take_along_axis(logits, picked.ids, axis=1), picked.logits)
    once = len(np.unique(picked.ids)) == picked.ids.size
    error = max(
        float(np.abs(have / want - 1).max())
        for have, want in ((picked.mass, best.mass), (picked.mass_tempered, best.mass_tempered))
    )
    words = (
        f"{picked.ids.size} candidates, {equals} with an equal; largest values "
        f"{'agree' if values else 'differ'}, tokens {'agree' if own and once else 'differ'}, sums "
        f"within {error:.1e}"
    )
    sound = values and own and once and error <= _MASS_ERROR
    return confirmed(words) if sound else refuted(words, wrong=True)


def _alike(
    subject: Opened,
    what: str,
    found: Sequence[NDArray[np.float32]],
    expected: Sequence[NDArray[np.float32]],
) -> Outcome:
    """Bit for bit, or how far off; past what rounding explains it is wrong."""
    differ = sum(not np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    if not differ:
        return confirmed(f"{len(found)} {what} give the same logits, bit for bit")
    worst = max(map(distance, found, expected))
    words = (
        f"{differ} of {len(found)} {what} give other logits, by {worst:.1e} (limit {subject.limit})"
    )
    return refuted(words, wrong=not worst <= subject.limit)
