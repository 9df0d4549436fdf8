"""Faults of what drives the graph, in the ways that users drive it: sessions, rows, the Runner.

Each patches one class, whose methods work as before but for the fault.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.rows import Rows
from nemo_trt.engines.runner import Runner

from .faults import insert

Patch = Callable[[pytest.MonkeyPatch], None]
Step = Callable[..., Any]


def on_step(change: Callable[[Step, OrtSession, Any, Any, Any, int], Any]) -> Patch:
    """A patch of `OrtSession._step`: `change` gets the true one and its arguments."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        step = OrtSession._step

        def changed(self: OrtSession, ids: Any, where: Any, wanted: Any, first_row: int = 0) -> Any:
            return change(step, self, ids, where, wanted, first_row)

        monkeypatch.setattr(OrtSession, "_step", changed)

    return patch


def on(owner: type, name: str, change: Callable[..., Any]) -> Patch:
    """A patch of a method: `change` gets the true one, then its arguments."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        true = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **named: change(true, *args, **named))

    return patch


def _last_of_the_padding(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    if wanted.shape[1] == 1:
        wanted = np.full_like(wanted, ids.shape[1] - 1)
    return step(self, ids, where, wanted, row)


def _sorted(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    return step(self, ids, where, np.sort(wanted, axis=1), row)


def _each_once(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    once = [list(dict.fromkeys(line)) for line in wanted.tolist()]
    filled = [line + [0] * (wanted.shape[1] - len(line)) for line in once]
    return step(self, ids, where, np.array(filled), row)


def _four_rows(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    logits = step(self, ids, where, wanted, row)
    logits[4:] = logits[: max(0, len(logits) - 4)]
    return logits


def _equals_exchanged(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    logits = step(self, ids, where, wanted, row)
    for one in range(len(where)):
        for other in range(one + 1, len(where)):
            if where[one] == where[other] > 0 and ids.shape[1] == 1:
                logits[[one, other]] = logits[[other, one]]
    return logits


def _row_zero(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    return step(self, ids, where, wanted, row if len(ids) == 1 else 0)


def _long_step_cut(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    """Cut at 256, as an engine with chunks would, with the second piece a position early."""
    if ids.shape[1] <= 256:
        return step(self, ids, where, wanted, row)
    early = np.where(wanted < 256, wanted, 0)
    result = step(self, ids[:, :256], where, early, row).copy()
    late = np.where(wanted >= 256, wanted - 256, 0)
    rest = step(self, ids[:, 256:], where + 255, late, row)
    result[wanted >= 256] = rest[wanted >= 256]
    return result


def _edge_dropped(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    """What is wanted of the first token behind 256 is that of the token before."""
    wanted = np.where((wanted == 256) & (ids.shape[1] > 256), 255, wanted)
    return step(self, ids, where, wanted, row)


def _wide(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    """A kernel for long steps that rounds too much."""
    logits = step(self, ids, where, wanted, row)
    return (
        logits * (1 + 0.02 * np.sin(np.arange(logits.shape[-1]))) if ids.shape[1] > 128 else logits
    )


def _length_of_a_kernel(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    """Caches of 1,900 to 2,048 tokens go through a kernel of their own, which is wrong."""
    logits = step(self, ids, where, wanted, row)
    return logits[..., ::-1].copy() if 1900 <= where.max() < 2048 else logits


def _append_only(step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int) -> Any:
    """A row that was rewound to its middle reads on behind what was written before."""
    held = self.__dict__.setdefault("_fault", {})
    if len(ids) == 1:
        start = int(where[0])
        if 0 < start < held.get(row, 0) and start + 20 > held[row]:
            where = np.array([held[row]])
        held[row] = int(where[0]) + ids.shape[1]
    return step(self, ids, where, wanted, row)


def _first_row_alone_steps(
    step: Step, self: Any, ids: Any, where: Any, wanted: Any, row: int
) -> Any:
    """Logits of the rows from `first_row` on are read where those of row 0 on lie."""
    logits = step(self, ids, where, wanted, row)
    return np.roll(logits, row, axis=0) if len(ids) > 1 else logits


def _binding_by_rows_alone(true: Any, self: OrtSession, first_row: int, rows: int) -> Any:
    known = self.__dict__.setdefault("_fault_bindings", {})
    if (rows, self.capacity) not in known:
        known[rows, self.capacity] = true(self, first_row, rows)
    return known[rows, self.capacity]


def _growth(lost: slice) -> Callable[..., None]:
    def bind(true: Any, self: OrtSession, capacity: int) -> None:
        before = self.capacity
        true(self, capacity)
        if before and self.capacity > before:
            for cache in self._caches.values():
                cache[:, :, :before][:, :, lost] = 0

    return bind


def _rewound_too_little(true: Any, self: Rows, row: int, length: int = 0) -> None:
    true(self, row, min(length + 1, len(self.held(row))))


def _copied_too_little(true: Any, self: Rows, source: int, target: int, length: int) -> None:
    true(self, source, target, length - 1)
    self._held[target] = list(self._held[source][:length])


def _keys_alone(true: Any, self: OrtSession, layer: int, kind: str, *rest: int) -> None:
    if kind == "key":
        true(self, layer, kind, *rest)


def _copied_the_wrong_way(true: Any, self: Rows, source: int, target: int, length: int) -> None:
    held = list(self.held(source)[:length])
    self._held[target] += [0] * max(0, length - len(self._held[target]))
    kept = self._held[source]
    true(self, target, source, length)
    self._held[source], self._held[target] = kept, held


def _row_forgotten(
    true: Any, self: OrtSession, layer: int, kind: str, source: int, target: int, length: int
) -> None:
    true(self, layer, kind, source, 0, length)


def _in_order_of_slots(true: Any, self: Runner, rows: Any, **named: Any) -> Any:
    return true(self, dict(sorted(rows.items())), **named)


def _idle_rows_lose_their_end(true: Any, self: Rows, rows: Any, **named: Any) -> Any:
    """Idle rows' padding lands on their last token instead of behind it."""
    session = self._session
    step = session._step

    def early(ids: Any, where: Any, wanted: Any, first_row: int = 0) -> Any:
        where = where.copy()
        for index in range(len(where)):
            if first_row + index not in rows and where[index]:
                where[index] -= 1
        return step(ids, where, wanted, first_row)

    session._step = early  # type: ignore[method-assign]
    try:
        yield from true(self, rows, **named)
    finally:
        del session._step


def _chunk_loses_a_token(true: Any, self: Runner, rows: Any, *, chunk: Any = None) -> Any:
    """The last token of a whole chunk is computed again by the next."""
    if chunk and any(len(tokens) > chunk for tokens in rows.values()):
        rows = {
            row: (*tokens[:chunk], tokens[chunk - 1], *tokens[chunk:])
            if len(tokens) > chunk
            else tokens
            for row, tokens in rows.items()
        }
    return true(self, rows, chunk=chunk)


def middle_positions_shifted(graph: onnx.GraphProto) -> None:
    """Positions 200 to 2,500 stand one too far: neither the first nor the last show it, as keys
    and queries move together but for those that are written beside them."""
    multiply = next(n for n in graph.node if n.op_type == "Cos").input[0]
    node = next(n for n in graph.node if n.output[0] == multiply)
    source = node.input[0]
    for name, value in (("low", 200.0), ("high", 2500.0)):
        graph.initializer.append(
            numpy_helper.from_array(np.array(value, np.float32), f"fault.{name}")
        )
    insert(
        graph,
        node,
        helper.make_node("Greater", [source, "fault.low"], ["fault.above"]),
        helper.make_node("Less", [source, "fault.high"], ["fault.below"]),
        helper.make_node("And", ["fault.above", "fault.below"], ["fault.inside"]),
        helper.make_node("Cast", ["fault.inside"], ["fault.one"], to=TensorProto.FLOAT),
        helper.make_node("Add", [source, "fault.one"], ["fault.moved"]),
    )
    node.input[0] = "fault.moved"


LONG = {"long prefill"}
FAULTS: dict[str, tuple[Patch, set[str]]] = {
    "one logit a row: that of the padding's end": (on_step(_last_of_the_padding), {"runner"}),
    "logit_indices are sorted": (on_step(_sorted), {"long prefill", "ragged batch"}),
    "a repeated logit index is given once": (on_step(_each_once), {"long prefill", "ragged batch"}),
    "the fifth row and on get others' logits": (on_step(_four_rows), {"ragged batch"}),
    "two equally long rows are exchanged": (on_step(_equals_exchanged), {"ragged batch"}),
    "first_row is ignored": (on_step(_row_zero), {"ragged batch"}),
    "logits are read from row 0 on": (on_step(_first_row_alone_steps), {"ragged batch"}),
    "a binding is kept by its rows, not its first": (
        on(OrtSession, "_binding", _binding_by_rows_alone),
        {"ragged batch", "rewound rows"},
    ),
    "a step of more than 256 tokens is cut wrongly": (on_step(_long_step_cut), LONG),
    "the first token behind the chunk's edge": (on_step(_edge_dropped), LONG),
    "the kernel of wide steps rounds too much": (on_step(_wide), LONG),
    "the kernel of caches near 2,000 tokens": (on_step(_length_of_a_kernel), {"long position"}),
    "a row rewound to its middle reads on at its end": (on_step(_append_only), {"rewound rows"}),
    "growth loses the last two tokens": (
        on(OrtSession, "bind", _growth(slice(254, 256))),
        {"growing cache"},
    ),
    "growth loses all": (on(OrtSession, "bind", _growth(slice(None))), {"growing cache"}),
    "a rewind keeps a token too many": (on(Rows, "rewind", _rewound_too_little), {"rewound rows"}),
    "a copy lacks its last token": (on(Rows, "copy", _copied_too_little), {"rewound rows"}),
    "a copy lacks the values": (on(OrtSession, "_copy", _keys_alone), {"rewound rows"}),
    "a copy goes the wrong way": (on(Rows, "copy", _copied_the_wrong_way), {"rewound rows"}),
    "a copy goes to row 0": (on(OrtSession, "_copy", _row_forgotten), {"rewound rows"}),
    "the Runner's logits come in the order of the cache": (
        on(Runner, "prefill", _in_order_of_slots),
        {"runner"},
    ),
    "idle rows lose their last token": (on(Rows, "append", _idle_rows_lose_their_end), {"runner"}),
    "a chunk's last token is computed twice": (
        on(Runner, "prefill", _chunk_loses_a_token),
        {"runner"},
    ),
}
"""Name -> patch, and the cases that must fail."""
