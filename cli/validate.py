"""`nemo-trt validate`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nemo_trt.defaults import MAX_ROWS
from nemo_trt.errors import BuildError, NemoTrtError, RequestError
from nemo_trt.precision import DType
from nemo_trt.verdict import PASS
from nemo_trt.where import Where

from .shared_options import where_options

if TYPE_CHECKING:
    from nemo_trt.bundle import Bundle
    from nemo_trt.validate.explain.explanation import Explanation
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
    help="Text file with one prompt per line, to use instead of the built-in ones.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help=f"Number of rows to test, by default {MAX_ROWS}; an engine has its own.",
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(64),
    help="Longest context to test; by default the model's, or less if memory is short.",
)
@click.option(
    "--random-weights",
    is_flag=True,
    help="The weights are random: do not check perplexity.",
)
@where_options
@click.option("--threads", type=click.IntRange(1), help="Number of compute threads.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the verdict to this file.",
)
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the verdict as an HTML page, with plots and the tokens with the largest errors.",
)
@click.option(
    "--explain",
    "explained",
    is_flag=True,
    help="Name the layer and projection where the bundle's graph differs from the reference.",
)
@click.option(
    "--repro",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --explain: write that part as a model with inputs for `polygraphy run`.",
)
@click.option(
    "--rounding",
    type=click.Choice(("bf16", "fp8")),
    help="Simulate the rounding of an engine of this precision; no verdict is written.",
)
@click.option(
    "--kv-cache",
    type=click.Choice(("base", "fp16")),
    default="base",
    show_default=True,
    help="With --rounding: that engine's cache and attention; see `build`.",
)
@click.option(
    "--sign-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Ed25519 private key (PEM) that signs the verdict.",
)
@click.option(
    "--verify-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Only check that the verdict is signed with this key (PEM) and matches the files.",
)
def command(
    bundle: Path,
    reference: Path | None,
    prompts: Path | None,
    max_batch: int | None,
    max_seq_len: int | None,
    random_weights: bool,
    where: Where,
    threads: int | None,
    json_file: Path | None,
    report_file: Path | None,
    explained: bool,
    repro: Path | None,
    rounding: str | None,
    kv_cache: str,
    sign_key: Path | None,
    verify_key: Path | None,
) -> int:
    """Compare BUNDLE's logits with those of transformers, and write the verdict into BUNDLE.

    Cases: whole, long and chunked prefill, decode, a growing cache, ragged batches, a poisoned
    cache tail, reused and rewound rows, the Runner, and several positions along the context. Exit
    codes: 0 pass, 1 fail, 3 this machine cannot run the validation.
    """
    from nemo_trt import atomic
    from nemo_trt.bundle import Bundle
    from nemo_trt.signature import read_key
    from nemo_trt.validate.bundle_validation import validate_bundle
    from nemo_trt.verdict import verdict_path

    from .console import ERR, OUT, Bar, escaped

    if verify_key:
        others = {
            "--reference": reference,
            "--prompts": prompts,
            "--max-batch": max_batch,
            "--max-seq-len": max_seq_len,
            "--random-weights": random_weights,
            "--threads": threads,
            "--json": json_file,
            "--report": report_file,
            "--explain": explained,
            "--repro": repro,
            "--rounding": rounding,
            "--kv-cache": kv_cache != "base",
            "--sign-key": sign_key,
        }
        if given := [name for name, value in others.items() if value]:
            raise click.UsageError(f"--verify-key judges nothing; leave {', '.join(given)} out.")
        return _verify(Bundle.open(bundle), where, verify_key)
    if kv_cache != "base" and not rounding:
        raise click.UsageError("--kv-cache is that of a simulated engine; give --rounding, too.")
    if rounding and sign_key:
        raise click.UsageError("--rounding writes no verdict; leave --sign-key out.")
    private_key = read_key(sign_key) if sign_key else None
    attention = DType.FP16 if kv_cache == "fp16" else DType.BF16
    opened = Bundle.open(bundle)
    _require_sensible(opened, explained=explained, repro=repro, rounding=rounding)
    for target in (json_file, report_file, repro):
        if target:
            atomic.require_writable(target)
    if report_file:
        import matplotlib  # noqa: F401  an error that says what to install, before the work
    if explained:
        import polygraphy  # noqa: F401
    with Bar() as bar:
        report = validate_bundle(
            opened,
            reference,
            _lines(prompts),
            max_batch=max_batch,
            max_seq_len=max_seq_len,
            where=where,
            threads=threads,
            random_weights=random_weights,
            private_key=private_key,
            rounding=attention if rounding else None,
            explained=explained,
            must_write=json_file is None,
            progress=bar,
        )
    show(report)
    if json_file:
        try:
            atomic.write_text(json_file, report.to_json(private_key))
        except OSError as error:
            ERR.out(f"{json_file} was not written: {error}.")
    if rounding:
        OUT.print(report.unwritten)
    elif report.unwritten:
        ERR.out(f"{report.unwritten} The verdict above stands; no server sees it.")
    else:
        OUT.print(f"[dim]Every position: {escaped(verdict_path(opened, where))}[/]")
    if report.unexplained:
        ERR.out(f"Not explained: {report.unexplained}")
    if report_file:
        _write_page(report_file, report, opened)
    if report.explanation and repro:
        _write_repro(repro, report.explanation, opened)
    return EXIT_FAIL if report.verdict == "fail" else 0


def _require_sensible(
    bundle: "Bundle", *, explained: bool, repro: Path | None, rounding: str | None
) -> None:
    """Refuse options that do not go together, before the work."""
    if repro and not explained:
        raise click.UsageError("--repro writes what --explain found; give both.")
    if repro and repro.exists():
        raise RequestError(f"{repro} must be a new folder, but it exists. Name another.")
    if rounding and rounding != bundle.precision:
        raise RequestError(
            f"--rounding must be the bundle's own precision, {bundle.precision}, got {rounding}."
        )


def _write_page(file: Path, report: "Report", bundle: "Bundle") -> None:
    from nemo_trt import atomic
    from nemo_trt.engines.tokenizers import open_tokenizer
    from nemo_trt.validate.page import page

    from .console import ERR, OUT, escaped

    folder = bundle.tokenizer_folder
    text = page(report, open_tokenizer(folder) if folder else None)
    try:
        atomic.write_text(file, text)
    except OSError as error:
        ERR.out(f"{file} was not written: {error}.")
    else:
        OUT.print(f"[dim]Report: {escaped(file)}[/]")


def _write_repro(folder: Path, explanation: "Explanation", bundle: "Bundle") -> None:
    from .console import ERR, OUT, escaped

    try:
        explanation.worst.write(folder, bundle)
    except (OSError, NemoTrtError) as error:
        ERR.out(f"{folder} was not written: {error}")
    else:
        OUT.print(f"[dim]For Polygraphy: {escaped(folder / 'run.sh')}[/]")


def _verify(bundle: "Bundle", where: Where, key: Path) -> int:
    """Check a verdict that is there: its signature, and every byte of what it is of."""
    from nemo_trt.engines.trt.engine_record import read_record
    from nemo_trt.signature import read_key
    from nemo_trt.verdict import altered_weights, read_verdict

    from .console import OUT

    verdict = read_verdict(bundle, where, public_key=read_key(key))
    words = verdict.words
    if verdict.passed:
        words = altered_weights(bundle, verdict) or words
    if verdict.passed and where.kind == "engine":  # no session is opened, which would compare them
        try:
            read_record(bundle, where.engine)
        except BuildError as error:
            words = f"stale: {error}"
    OUT.out(f"{bundle} on {where}: {words}")
    return 0 if words == PASS else EXIT_FAIL


def show(report: "Report") -> None:
    """Print a report as a table, failures in words, and the verdict."""
    import rich.table

    from .console import OUT, escaped

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
    limits = report.limits
    table.add_row(
        f"[dim]limits of {report.engine['compute_precision']}[/]",
        "",
        "",
        f"{limits['max_relative_l2']:.1e}",
        f"{1 - limits['min_cosine']:.1e}",
        f"{limits['max_kl']:.1e}",
        f"{limits['min_top1']:.1%}",
        f"{limits['min_top5']:.1%}",
        style="dim",
    )
    OUT.print(table)
    perplexity = report.perplexity
    OUT.print(
        f"perplexity {perplexity['engine']:.4f}, reference {perplexity['reference']:.4f}; "
        f"computed in {report.engine['compute_precision']}, reference in "
        f"{report.reference['dtype']} (own noise {report.reference['noise']:.1g})"
    )
    OUT.print(f"Reference weights read by {report.reference['reader']}.")
    if not report.reference["independent_reader"]:
        OUT.print("No other package reads this format: a fault in reading may go unseen.")
    tokens = report.settings["tokenizer"]
    OUT.print(
        f"Tokenizer compared with {tokens['judge']}; chats: {', '.join(tokens['chats']) or 'none'}."
        if tokens["judge"]
        else f"The tokenizer is not judged: {tokens['unjudged']}."
    )
    if reason := report.settings["perplexity_not_judged"]:
        OUT.print(f"Perplexity is not judged: {reason}.")
    for case in report.cases:
        for failure in case.failures:
            OUT.print(f"[red]{case.name}: {escaped(failure)}[/]")
    for failure in report.failures:
        OUT.print(f"[red]{escaped(failure)}[/]")
    if report.explanation:
        one = report.explanation
        OUT.print(
            f"Explained on {one.sequence} ({one.tokens} tokens from position {one.start} on), by "
            f"{escaped(one.runner)}:"
        )
        for words in one.sentences():
            OUT.print(f"  {escaped(words)}")
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
