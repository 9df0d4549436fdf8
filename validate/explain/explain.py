"""Finds the first place of a bundle's graph that leaves the reference by more than rounding."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nemo_trt import contract
from nemo_trt.bundle import Bundle
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.passes.gather_logit_rows import LOGIT_ROWS
from nemo_trt.passes.take_lengths import LENGTHS
from nemo_trt.passes.take_positions import POSITIONS
from nemo_trt.progress import Progress, Silent
from nemo_trt.validate.reference import compute_reference
from nemo_trt.validate.report import Report
from nemo_trt.validate.sequences import Sequences, TokenSequence

from .explanation import Explanation
from .findings import PlaceError, limit_of, place_error
from .graph import Pieces, with_shapes
from .places import Array, Part
from .repro import Place
from .runners import OnCpu, Runner

_SPARE_TOKENS = 16
"""Capacity behind the last token: reads and writes that go too far meet it."""


def worst_sequence(report: Report, sequences: Sequences) -> TokenSequence:
    """The sequence at one of whose positions a case's logits are furthest off."""
    errors = {
        (name, float(error))
        for case in report.cases
        for (name, _), error in zip(
            case.positions, case.per_position.get("relative_l2", ()), strict=False
        )
    }
    if not errors:  # every case ended in an error
        return sequences.texts[0]
    name, _ = max(errors, key=lambda pair: (pair[1], pair[0]))
    return next(one for one in sequences.every if one.name == name)


def explain(
    bundle: Bundle,
    checkpoint: Checkpoint,
    first: TokenSequence,
    sequence: TokenSequence,
    progress: Progress | None = None,
    runner: Runner | None = None,
) -> Explanation:
    """Run a sequence through the graph's pieces, each fed with the reference's values.

    Memory: one layer, in the precision of the reference and of what runs it.

    Args:
        bundle: whose graph is explained.
        checkpoint: what the reference is computed from.
        first: a sequence from position 0; what stands before `sequence` is made of it.
        sequence: what is run.
        runner: what runs the pieces; by default ONNX Runtime's CPU provider. The caller closes it.

    Raises:
        BundleError: the graph has not the places that this version's exporter names.
        BuildError: TensorRT does not compile a piece.
        MachineError: a piece cannot be run.
    """
    work = _Explaining(bundle, sequence, runner or OnCpu(bundle))
    sequences = [first, sequence] if sequence.start else [sequence]
    progress = progress or Silent()
    compute_reference(checkpoint, sequences, progress, watch=work)
    return Explanation(
        sequence=sequence.name,
        start=sequence.start,
        tokens=len(sequence.tokens),
        runner=str(work.runner),
        places=tuple(work.errors),
        free=tuple(work.free),
        worst=work.worst,
    )


class _Explaining:
    """Compares part by part, as the reference computes them."""

    def __init__(self, bundle: Bundle, sequence: TokenSequence, runner: Runner) -> None:
        self.bundle, self.sequence, self.runner = bundle, sequence, runner
        self.pieces = Pieces(bundle)
        self.errors: list[PlaceError] = []
        self.free: list[float] = []
        self._worst: Place | None = None
        self._hidden: Array = np.empty(0, np.float32)
        count, start = len(sequence.tokens), sequence.start
        wanted = np.array([sequence.wanted or range(count)], np.int64)
        self._inputs = {
            contract.INPUT_IDS: np.array([sequence.tokens], np.int64),
            contract.WRITE_INDICES: np.array([start], np.int64),
            contract.LOGIT_INDICES: wanted,
            # What lowered graphs have in place of what they would compute; of one row.
            POSITIONS: np.arange(start, start + count)[None],
            LENGTHS: np.array([start + count], np.int64),
            LOGIT_ROWS: wanted,
        }

    def __call__(self, part: Part, seen: dict[str, Array]) -> None:
        given, compared = self._given(part, seen)
        outputs = self.runner.run(self.pieces.fed(part), given)
        for place, value in self.pieces.places(part).items():
            got = compared(place, outputs[value])
            expected = compared(place, seen[place])
            limit = limit_of(place, self.runner.rounding, self.runner.products)
            error = place_error(part, place, got, expected, self.bundle.config, limit)
            self.errors.append(error)
            if self._is_worst(error):
                self._keep(error, value, given, seen[place], outputs[value])
        if part == "embedding":
            self._hidden = outputs[self.pieces.hidden(0)]
        elif isinstance(part, int):
            self._run_free(part, given, seen["output"])

    @property
    def worst(self) -> Place:
        """The place that is kept; there is one as soon as a part was compared."""
        assert self._worst is not None
        return self._worst

    def _is_worst(self, error: PlaceError) -> bool:
        if self._worst is None:
            return True
        kept = self._worst.error
        further = error.position_error / error.limit > kept.position_error / kept.limit
        return not kept.words and bool(error.words or further)

    def _keep(
        self, error: PlaceError, value: str, given: dict[str, Any], expected: Array, got: Array
    ) -> None:
        model = self.pieces.place(value)
        feeds = {one.name: given[one.name] for one in model.graph.input}
        if error.place.endswith("_cache"):  # the whole tensor, as the graph gives it
            expected = given[next(iter(self.pieces.named({value: expected})))]
        whole = with_shapes(model, feeds)
        self._worst = Place(error, whole, feeds, value, expected, got, self.runner.name)

    def _given(
        self, part: Part, seen: dict[str, Array]
    ) -> tuple[dict[str, Any], Callable[[str, Array], Array]]:
        """What a piece is fed, and what is compared of a place's values."""
        given: dict[str, Any] = {**self._inputs, **self.pieces.feeds(part, seen)}
        start, end = self.sequence.start, self.sequence.start + len(self.sequence.tokens)
        if isinstance(part, int):
            config = self.bundle.config
            shape = (1, config.num_kv_heads, end + _SPARE_TOKENS, config.head_dim)
            for kind in ("key", "value"):
                past, present = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
                present[:, :, :end] = seen[f"self_attn.{kind}_cache"]
                past[:, :, :start] = present[:, :, :start]
                given[contract.past_name(part, kind)] = past
                given |= self.pieces.named({contract.present_name(part, kind): present})

        def compared(place: str, values: Array) -> Array:
            return values[:, :, start:end] if place.endswith("_cache") else values

        return given, compared

    def _run_free(self, layer: int, given: dict[str, Any], expected: Array) -> None:
        """Feed a layer with the output of the one before, and compare its own."""
        hidden = self.pieces.hidden(layer)
        outputs = self.runner.run(self.pieces.free(layer), {**given, hidden: self._hidden})
        self._hidden = outputs[self.pieces.hidden(layer + 1)]
        error = np.linalg.norm((self._hidden - expected).astype(np.float64), axis=-1)
        relative = error / np.linalg.norm(expected.astype(np.float64), axis=-1)
        self.free.append(float(np.nan_to_num(relative, nan=np.inf).max()))
