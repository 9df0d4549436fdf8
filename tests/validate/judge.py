"""Validates many bundles against one reference, which is computed once."""

from collections.abc import Sequence
from pathlib import Path

from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.validate.cases import MAX_ROWS
from nemo_trt.validate.reference import Reference, compute_reference
from nemo_trt.validate.report import Report
from nemo_trt.validate.sequences import make_sequences
from nemo_trt.validate.texts import PROMPTS
from nemo_trt.validate.validator import validate

CAPACITY = 256


class Judge:
    """Judges bundles of one checkpoint.

    Args:
        checkpoint: what the reference is computed from.
        bundle: one of its bundles, for the shape.
        prompts: six are enough to see a fault.
    """

    def __init__(
        self,
        checkpoint: Path,
        bundle: Path,
        capacity: int = CAPACITY,
        prompts: Sequence[str] = PROMPTS,
    ) -> None:
        self.capacity = capacity
        self.checkpoint = open_checkpoint(checkpoint)
        tokenizer = open_tokenizer(checkpoint) if self.checkpoint.tokenizer_files else None
        with OrtSession.open(bundle, max_seq_len=capacity) as session:
            self.sequences = make_sequences(session, tokenizer, prompts)
        self.reference: Reference = compute_reference(self.checkpoint, self.sequences.every)

    def __call__(self, bundle: Path) -> Report:
        with OrtSession.open(bundle, max_batch=MAX_ROWS, max_seq_len=self.capacity) as session:
            return validate(
                session,
                self.checkpoint,
                self.sequences,
                bundle_id="",
                engine=session.describe(),
                reference=self.reference,
            )


def failed(report: Report) -> set[str]:
    """The cases that failed."""
    return {case.name for case in report.cases if case.failures}
