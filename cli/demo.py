"""`nemo-trt demo`: the whole road on the sample model, in one command."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

QUESTION = "What is the capital of France?"


@click.command(epilog="Example: nemo-trt demo ./demo")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("demo"))
@click.option("--question", default=QUESTION, show_default=True, help="What to ask the model.")
def command(folder: Path, question: str) -> int:
    """Write the sample model to FOLDER (./demo), export it, validate it, and chat with it."""
    from nemo_trt.engines.runner import Runner
    from nemo_trt.engines.sampling import SamplingParams
    from nemo_trt.export.bundle import export_bundle
    from nemo_trt.export.samples import write_smollm2
    from nemo_trt.manifest import is_bundle
    from nemo_trt.validate.bundle_validation import validate_bundle

    from .console import OUT, Bar, next_step
    from .validate import EXIT_FAIL, show

    checkpoint, bundle = folder / "smollm2", folder / "bundle"
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str, words: str) -> Iterator[None]:
        OUT.rule(f"[bold]{name}[/]  {words}", align="left")
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with step("sample", f"SmolLM2-135M-Instruct to {checkpoint}"), Bar() as bar:
        write_smollm2(checkpoint, force=checkpoint.exists(), progress=bar)
    with step("export", f"to {bundle}"), Bar() as bar:
        export_bundle(checkpoint, bundle, force=is_bundle(bundle), progress=bar)
    with step("validate", "ONNX Runtime against transformers"):
        with Bar() as bar:
            report = validate_bundle(bundle, checkpoint, progress=bar)
        show(report)
    with step("chat", question), Runner.open(bundle) as runner:
        start, count, first = time.perf_counter(), 0, 0.0
        messages = [{"role": "user", "content": question}]
        for event in runner.chat(messages, SamplingParams(max_tokens=128)):
            first = first or time.perf_counter() - start
            count += 1
            click.echo(event.text, nl=False)
        click.echo()
        rate = (count - 1) / max(time.perf_counter() - start - first, 1e-9)
    OUT.rule("[bold]summary[/]", align="left")
    for name, taken in seconds.items():
        OUT.print(f"{name:10} {taken:6.1f} s")
    OUT.print(f"{'verdict':10} {report.verdict.upper()}")
    OUT.print(f"{'chat':10} first token after {first:.2f} s, then {rate:.1f} tokens a second")
    next_step("nemo-trt", "chat", bundle)
    return EXIT_FAIL if report.verdict == "fail" else 0
