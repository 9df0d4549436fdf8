"""Which rows of a decode step run drafts behind their token."""

from collections.abc import Sequence

from nemo_trt.engines.rows import Rows
from nemo_trt.engines.session import Session

from .drafts import draft_length
from .live import Live


def drafted(decoding: Sequence[Live], rows: Rows, session: Session) -> dict[int, list[int]]:
    """By row the token to run, and what may follow it where that pays."""
    drafts = {live.row: _draft(live, rows, session) for live in decoding if live.lookup}
    if not any(drafts.values()):
        return {live.row: live.pending for live in decoding}
    rates = [live.lookup.rate if live.lookup and drafts[live.row] else 0 for live in decoding]
    length = draft_length(rates, lambda tokens: session.step_cost(len(rates), tokens))
    return {live.row: live.pending + drafts.get(live.row, [])[:length] for live in decoding}


def _draft(live: Live, rows: Rows, session: Session) -> list[int]:
    room = session.max_seq_len - len(rows.held(live.row)) - 2
    left = live.request.params.max_tokens - live.generation.count - 1
    return live.lookup.draft(min(room, left)) if live.lookup and min(room, left) > 0 else []
