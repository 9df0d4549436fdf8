"""Validates a bundle or one of its engines on this machine, and writes the verdict beside it."""

from collections.abc import Sequence
from pathlib import Path

from nemo_trt import atomic
from nemo_trt.bundle import Bundle
from nemo_trt.engines import ort_session
from nemo_trt.engines.open import open_session
from nemo_trt.engines.session import Session
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.errors import BundleError
from nemo_trt.export.checkpoints import Checkpoint, open_reference
from nemo_trt.export.checkpoints.lora import Adapter, merge_adapters
from nemo_trt.manifest import Manifest
from nemo_trt.progress import Progress
from nemo_trt.verdict import verdict_file
from nemo_trt.where import CPU, Where

from .cases import MAX_ROWS
from .report import Report
from .sequences import make_sequences
from .validator import validate

_CACHE_SHARE = 0.25  # of memory: the cache of the far case is the largest thing


def validate_bundle(
    bundle: Bundle | Path,
    reference: Path | None = None,
    prompts: Sequence[str] | None = None,
    *,
    max_seq_len: int | None = None,
    where: Where | str = CPU,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compare a bundle on ONNX Runtime, or an engine, with transformers, and write the verdict.

    On the CPU, and of an engine, it is validation.json; on CUDA validation-cuda.json.

    Args:
        bundle: an open bundle, or its folder.
        reference: checkpoint to compare with; by default the one the bundle was exported from.
        prompts: texts in place of the built-in ones.
        max_seq_len: context to test up to, by default the model's as far as memory allows.
        where: what runs the bundle: "cpu", "cuda", or the name of one of its engines.
        threads: compute threads, on the CPU alone.

    Raises:
        BundleError: the bundle is damaged, or its checkpoint is not where it was.
        BuildError: there is no such engine.
        MachineError: this machine cannot run what is to be judged.
        RequestError: a prompt is too short, or the reference is another model.
    """
    bundle, where = Bundle.open(bundle), Where.of(where)
    checkpoint = _reference(bundle.manifest, reference)
    folder = bundle.tokenizer_folder
    tokenizer = open_tokenizer(folder) if folder else None
    session = _open(bundle, where, max_seq_len, threads)
    try:
        report = validate(
            session,
            checkpoint,
            make_sequences(session, tokenizer, prompts),
            bundle_id=bundle.bundle_id,
            engine=session.describe(),
            progress=progress,
        )
    finally:
        session.close()
    atomic.write_text(verdict_path(bundle, where), report.to_json())
    return report


def _reference(manifest: Manifest, named: Path | None) -> Checkpoint:
    """The checkpoint that is named, or the bundle's own with its adapters merged."""
    source = named or Path(manifest.source["path"])
    if not source.exists():
        raise BundleError(
            f"The checkpoint that the bundle was made from must be at {source}, got nothing there. "
            "Name it with --reference."
        )
    checkpoint = open_reference(source, None if named else manifest.source["format"])
    if manifest.adapters and not named:
        adapters = [Adapter(Path(str(a["path"])), float(a["weight"])) for a in manifest.adapters]
        checkpoint = merge_adapters(checkpoint, adapters)
        if checkpoint.adapters != manifest.adapters:
            raise BundleError(
                "A LoRA adapter was altered after the export. Export again, or name a merged "
                "checkpoint with --reference."
            )
    return checkpoint


def _open(bundle: Bundle, where: Where, max_seq_len: int | None, threads: int | None) -> Session:
    if where.kind == "engine":
        return open_session(bundle, where, max_seq_len=max_seq_len, threads=threads)
    limit = max_seq_len
    if where.kind == "cpu":
        limit = limit or ort_session.affordable_seq_len(bundle.config, MAX_ROWS, share=_CACHE_SHARE)
    return open_session(bundle, where, max_batch=MAX_ROWS, max_seq_len=limit, threads=threads)


def verdict_path(bundle: Bundle, where: Where) -> Path:
    """The file that holds the verdict of a bundle where it runs."""
    if where.kind == "engine":
        return bundle.engine_folder(where.engine) / verdict_file()
    return bundle.path / verdict_file(where.kind)
