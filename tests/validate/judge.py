"""Validates many bundles against one reference, which is computed once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemo_trt.defaults import MAX_ROWS
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.export.checkpoints import Checkpoint, open_checkpoint
from nemo_trt.export.checkpoints.lora import Adapter, merge_adapters
from nemo_trt.validate.reference import Reference, compute_reference
from nemo_trt.validate.report import Report
from nemo_trt.validate.sequences import Origin, make_sequences
from nemo_trt.validate.texts import PROMPTS
from nemo_trt.validate.validator import validate

CAPACITY = 256


class Judge:
    """Judges bundles of one checkpoint.

    Args:
        checkpoint: what the reference is computed from.
        bundle: one of its bundles, for the shape.
        prompts: a few are enough to see a fault.
        adapters: merged into the checkpoint.
    """

    def __init__(
        self,
        checkpoint: Path | Checkpoint,
        bundle: Path,
        capacity: int = CAPACITY,
        prompts: Sequence[str] = PROMPTS,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self.capacity = capacity
        opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
        self.checkpoint = merge_adapters(opened, adapters)
        tokenizer = open_tokenizer(opened.path) if opened.tokenizer_files else None
        with OrtSession.open(bundle, max_seq_len=capacity) as session:
            sequences = make_sequences(session, tokenizer, prompts)
        origin: Origin = "built-in" if tokenizer else "random"  # the prompts are some of them
        self.sequences = replace(sequences, origin=origin)
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
