"""`nemo-trt validate`."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_trt.errors import BundleError, RequestError

if TYPE_CHECKING:
    from nemo_trt.engines.session import Session
    from nemo_trt.manifest import Manifest
    from nemo_trt.progress import Progress
    from nemo_trt.validate.report import Report

EXIT_FAIL = 1


@click.command(epilog="Example: nemo-trt validate ./bundle --json report.json")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Checkpoint to compare with; by default the one the bundle was exported from.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Text file, one prompt a line, in place of the built-in ones.",
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(64),
    help="Context to test up to; by default the model's, as far as memory allows.",
)
@click.option("--engine", help="Judge this engine of the bundle, on this machine's GPU.")
@click.option("--threads", type=click.IntRange(1), help="Compute threads.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write here."
)
def command(
    bundle: Path,
    reference: Path | None,
    prompts: Path | None,
    max_seq_len: int | None,
    engine: str | None,
    threads: int | None,
    json_file: Path | None,
) -> int:
    """Compare BUNDLE's logits with those of transformers, and write the verdict into it.

    Cases: whole and chunked prefill, stepwise decode, a ragged batch, a poisoned cache tail, a
    reused slot, positions near the context limit. Exit code 0 for pass, 1 for fail, 3 when this
    machine cannot run what is to be judged.
    """
    if engine and (max_seq_len or threads):
        raise click.UsageError("--engine has its own context and no threads; leave them out.")
    from nemo_trt import atomic

    from .console import OUT, Bar

    with Bar() as bar:
        report = run_validation(
            bundle,
            reference,
            _lines(prompts),
            max_seq_len=max_seq_len,
            engine=engine,
            threads=threads,
            bar=bar,
        )
    show(report)
    if json_file:
        atomic.write_text(json_file, report.to_json())
    folder = bundle / "engines" / engine if engine else bundle
    OUT.print(f"[dim]Every position: {folder / 'validation.json'}[/]")
    return EXIT_FAIL if report.verdict == "fail" else 0


def run_validation(
    bundle: Path,
    reference: Path | None,
    prompts: list[str] | None,
    *,
    max_seq_len: int | None,
    engine: str | None = None,
    threads: int | None,
    bar: "Progress",
) -> "Report":
    """Validate a bundle on the CPU, or an engine, and write validation.json beside it."""
    from nemo_trt import atomic
    from nemo_trt.engines.tokenizers import open_tokenizer
    from nemo_trt.export.checkpoints import open_reference
    from nemo_trt.export.checkpoints.lora import Adapter, merge_adapters
    from nemo_trt.manifest import VALIDATION_FILE, read_manifest
    from nemo_trt.validate.validator import make_sequences, validate

    manifest = read_manifest(bundle)
    source = reference or Path(manifest.source["path"])
    if not source.exists():
        raise BundleError(
            f"The checkpoint that the bundle was made from must be at {source}, got nothing there. "
            "Name it with --reference."
        )
    checkpoint = open_reference(source, None if reference else manifest.source["format"])
    if manifest.adapters and not reference:
        named = [Adapter(Path(str(a["path"])), float(a["weight"])) for a in manifest.adapters]
        checkpoint = merge_adapters(checkpoint, named)
        if checkpoint.adapters != manifest.adapters:
            raise BundleError(
                "A LoRA adapter was altered after the export. Export again, or name a merged "
                "checkpoint with --reference."
            )
    folder = manifest.tokenizer_folder(bundle)
    with ExitStack() as closing:
        session, target = _open(bundle, manifest, max_seq_len, engine, threads)
        closing.callback(session.close)
        tokenizer = open_tokenizer(folder) if folder else None
        sequences = make_sequences(session, tokenizer, prompts)
        report = validate(
            session,
            checkpoint,
            sequences,
            bundle_id=manifest.bundle_id,
            engine=session.describe(),
            progress=bar,
        )
    atomic.write_text(target / VALIDATION_FILE, report.to_json())
    return report


def _open(
    bundle: Path,
    manifest: "Manifest",
    max_seq_len: int | None,
    engine: str | None,
    threads: int | None,
) -> "tuple[Session, Path]":
    """What is judged, and where the verdict goes."""
    from nemo_trt.validate.cases import NUM_ROWS

    if engine:
        from nemo_trt.engines.trt.record import engine_folder
        from nemo_trt.engines.trt.session import TensorRtSession

        return TensorRtSession.open(bundle, engine), engine_folder(bundle, engine)
    from nemo_trt.engines import ort_session

    # The cache of the far case is the largest thing: a quarter of memory is its share.
    limit = max_seq_len or ort_session.affordable_seq_len(manifest.config, NUM_ROWS, share=0.25)
    session = ort_session.OrtSession.open(
        bundle, max_batch=NUM_ROWS, max_seq_len=limit, threads=threads
    )
    return session, bundle


def show(report: "Report") -> None:
    """Print a report as a table, failures in words, and the verdict."""
    import rich.table

    from .console import OUT

    table = rich.table.Table(box=None, header_style="bold")
    for heading in ("case", "n", "max abs", "rel L2", "1 - cos", "KL", "top-1", "top-5", ""):
        table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=True)
    for case in report.cases:
        table.add_row(
            case.name,
            str(len(case.positions)),
            f"{case.max_abs:.1e}",
            f"{case.max_relative_l2:.1e}",
            f"{1 - case.min_cosine:.1e}",
            f"{case.max_kl:.1e}",
            f"{case.top1:.1%}",
            f"{case.top5:.1%}",
            "[red]FAIL[/]" if case.failures else "[green]pass[/]",
        )
    OUT.print(table)
    perplexity = report.perplexity
    OUT.print(
        f"perplexity {perplexity['engine']:.4f}, reference {perplexity['reference']:.4f}; "
        f"computed in {report.engine['compute_precision']}, reference in "
        f"{report.reference['dtype']} (own noise {report.reference['noise']:.1g})"
    )
    for case in report.cases:
        for failure in case.failures:
            OUT.print(f"[red]{case.name}: {failure}[/]")
    for failure in report.failures:
        OUT.print(f"[red]{failure}[/]")
    passed = report.verdict == "pass"
    OUT.print("[bold green]PASS[/]" if passed else "[bold red]FAIL[/]")


def _lines(prompts: Path | None) -> list[str] | None:
    if prompts is None:
        return None
    try:
        lines = [line for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise RequestError(f"{prompts} must be text in UTF-8: {error}.") from error
    if not lines:
        raise RequestError(f"{prompts} must hold at least one prompt, got none.")
    return lines
