"""Validates a bundle or one of its engines on this machine, and writes the verdict beside it."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from nemo_trt import atomic, signature
from nemo_trt.bundle import Bundle
from nemo_trt.coverage import Coverage, digests_of
from nemo_trt.defaults import MAX_ROWS
from nemo_trt.digest import sha256_file
from nemo_trt.engines import ort_session
from nemo_trt.engines.open import open_session
from nemo_trt.engines.session import Session
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.errors import BundleError, NemoTrtError, RequestError
from nemo_trt.export.checkpoints import Checkpoint, open_reference
from nemo_trt.export.checkpoints.lora import Adapter, merge_adapters
from nemo_trt.manifest import Manifest
from nemo_trt.precision import DType
from nemo_trt.progress import Progress
from nemo_trt.verdict import verdict_path
from nemo_trt.where import CPU, Where

from .explain.explain import explain, worst_sequence
from .explain.runners import open_runner
from .report import Report
from .sequences import make_sequences
from .tokens import judge_tokenizer
from .validator import validate

_CACHE_SHARE = 0.25  # of memory: the cache of the far case is the largest thing
_VERDICT_BYTES = 64 * 2**20  # a generous bound


def validate_bundle(
    bundle: Bundle | Path,
    reference: Path | None = None,
    prompts: Sequence[str] | None = None,
    *,
    max_batch: int | None = None,
    max_seq_len: int | None = None,
    where: Where | str = CPU,
    threads: int | None = None,
    private_key: bytes | None = None,
    random_weights: bool = False,
    rounding: DType | None = None,
    explained: bool = False,
    must_write: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Compare a bundle on ONNX Runtime, or an engine, with transformers, and write the verdict.

    The verdict is written to validation.json in the bundle (CPU) or the engine's folder, or to
    validation-cuda.json (CUDA). It records the digest of every validated file, and the number of
    rows and the context length that were tested. Free disk and a writable folder are required
    before the work. If the file cannot be written after it, `Report.unwritten` says why; the report
    is still complete.

    Args:
        bundle: an open bundle, or its folder.
        reference: checkpoint to compare with; by default the one the bundle was exported from.
        prompts: texts to use instead of the built-in ones.
        max_batch: number of rows to test, 8 by default; an engine has its own.
        max_seq_len: longest context to test, by default the model's if memory allows.
        where: what runs the bundle: "cpu", "cuda", or the name of one of its engines.
        threads: compute threads; CPU only.
        private_key: PEM of the Ed25519 private key to sign the verdict with.
        random_weights: the weights are random; do not check perplexity.
        rounding: simulate a BF16 or FP8 engine whose attention and cache are in this dtype, FP16 or
            BF16: round wherever it rounds, and apply its limits. Writes no verdict. CPU only.
        explained: fill `Report.explanation`, which names where the graph differs from the
            reference: on the same backend, for the sequence with the largest error.
        must_write: refuse, before the work, a folder in which the verdict cannot be written.

    Returns:
        The report. `Report.verdict` is "pass" or "fail".

    Raises:
        BundleError: the bundle is damaged, or its checkpoint has been moved.
        BuildError: there is no such engine.
        ExportError: the verdict could not be written.
        MachineError: this machine cannot run the bundle on that backend.
        RequestError: a prompt is too short, or the reference is another model.
    """
    bundle, where = Bundle.open(bundle), Where.of(where)
    if rounding and where.kind != "cpu":
        raise RequestError(f"Rounding is rehearsed on the CPU alone, got {where}.")
    if private_key is not None:
        signature.require_private_key(private_key)
    if must_write and not rounding:
        _require_place(verdict_path(bundle, where))
    digests = _digests(bundle, where)
    checkpoint = _reference(bundle.manifest, reference)
    if random_weights:
        checkpoint = replace(checkpoint, random_weights=True)
    folder = bundle.tokenizer_folder
    tokenizer = open_tokenizer(folder) if folder else None
    tokens = judge_tokenizer(tokenizer, checkpoint)
    session = _open(bundle, where, max_batch, max_seq_len, threads, rounding=rounding)
    try:
        sequences = make_sequences(session, tokenizer, prompts)
        report = validate(
            session,
            checkpoint,
            sequences,
            bundle_id=bundle.bundle_id,
            engine=session.describe(),
            progress=progress,
        )
        coverage = Coverage(
            where=where,
            max_seq_len=min(session.max_seq_len, bundle.config.max_position_embeddings),
            max_batch=session.max_batch,
            compute_precision=session.compute_precision,
            digests=digests,
        )
    finally:
        session.close()
    report = replace(
        report,
        coverage=coverage,
        failures=(*report.failures, *tokens.failures),
        settings={**report.settings, "tokenizer": asdict(tokens)},
    )
    report = replace(
        report, unwritten=_write(report, bundle, where, private_key, rounding=bool(rounding))
    )
    if explained:
        chosen = worst_sequence(report, sequences)
        first = sequences.texts[0]
        try:
            with closing(open_runner(bundle, where, rounding=rounding)) as runner:
                explanation = explain(bundle, checkpoint, first, chosen, progress, runner)
            report = replace(report, explanation=explanation)
        except NemoTrtError as error:  # the verdict stands all the same
            report = replace(report, unexplained=str(error))
    return report


def _require_place(file: Path) -> None:
    """Refuse, before the work, a verdict that could not be written after it."""
    atomic.require_writable(file)
    atomic.require_free_disk(file, _VERDICT_BYTES)


def _write(
    report: Report, bundle: Bundle, where: Where, private_key: bytes | None, *, rounding: bool
) -> str | None:
    """Write the verdict's file; return why it was not written, None when it was."""
    if rounding:
        return "This is a rehearsal of rounding: no verdict is written."
    assert report.coverage is not None
    if _digests(bundle, where) != report.coverage.digests:
        return f"{bundle} was altered while it was judged. Validate again."
    try:
        atomic.write_text(verdict_path(bundle, where), report.to_json(private_key))
    except (OSError, NemoTrtError) as error:
        return f"{verdict_path(bundle, where)} was not written: {error}."
    return None


def _digests(bundle: Bundle, where: Where) -> dict[str, str]:
    """Of all that is judged. Weights whose sha256 the manifest states must have it.

    Raises:
        BundleError: they have another, or a file cannot be read.
    """
    try:
        for weight in bundle.manifest.weights:
            if weight.sha256 and sha256_file(bundle.path / weight.file) != weight.sha256:
                raise BundleError(
                    f"{bundle.path / weight.file} must have the sha256 that the manifest states, "
                    f"{weight.sha256[:12]}. It was altered after the export; export again."
                )
        return digests_of(bundle, where)
    except OSError as error:
        raise BundleError(f"{bundle} cannot be read: {error}.") from error


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


def _open(
    bundle: Bundle,
    where: Where,
    max_batch: int | None,
    max_seq_len: int | None,
    threads: int | None,
    *,
    rounding: DType | None,
) -> Session:
    rows, limit = max_batch, max_seq_len
    if where.kind != "engine":
        rows = rows or MAX_ROWS
    if where.kind == "cpu":
        share = _CACHE_SHARE
        limit = limit or ort_session.affordable_seq_len(bundle.config, rows or 1, share=share)
    if rounding:
        return ort_session.OrtSession.open(
            bundle, max_batch=rows or 1, max_seq_len=limit, threads=threads, rounding=rounding
        )
    return open_session(bundle, where, max_batch=rows, max_seq_len=limit, threads=threads)
