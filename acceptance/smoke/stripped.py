"""The probe of an engine that takes its weights from the bundle, beside one that holds them."""

import numpy as np

from nemo_trt.engines.session import Session

from .fact import Outcome, confirmed, refuted, undecided
from .opened import Opened, decode, distance, prefill, tokens
from .pace import step_s

_PROMPT = 16
_SLOWER = 1.1  # times the step of an engine that holds its weights


def a_stripped_engine_does_the_same(subject: Opened) -> Outcome:
    """Its logits are those of an engine that holds its weights, and its steps take as long."""
    if subject.stripped is None:
        return undecided("engines of this precision hold their weights")
    with subject.open(True) as session:
        expected, held_s = _logits(session), step_s(subject, session, _PROMPT)
    with subject.stripped() as session:
        found, taken_s = _logits(session), step_s(subject, session, _PROMPT)
    worst = max(map(distance, found, expected))
    words = (
        f"logits are {worst:.1e} apart (limit {subject.limit}); a step takes "
        f"{taken_s * 1e6:.0f} us, {held_s * 1e6:.0f} with weights in the plan"
    )
    if worst > subject.limit:
        return refuted(words, wrong=True)
    return confirmed(words) if taken_s <= _SLOWER * held_s else refuted(words)


def _logits(session: Session) -> list[np.ndarray]:
    """Of a prefill, and of decode steps of one row and of all."""
    rows, ids = session.max_batch, tokens(session, session.max_batch, _PROMPT + 1)
    found = [prefill(session, ids[row, :-1], row) for row in range(rows)]
    starts = np.full(rows, _PROMPT)
    found.append(decode(session, ids[:1, -1], starts[:1])[0])
    return [*found, *decode(session, ids[:, -1], starts)]
