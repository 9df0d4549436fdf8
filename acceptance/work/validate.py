"""Validate: logits of the bundle or the engine against transformers' own model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_trt import atomic
from nemo_trt.bundle import Bundle
from nemo_trt.progress import Progress

from .done import Done, require_packages
from .here import required


def run(
    *,
    bundle: str,
    reference: str,
    engine: str | None,
    cuda_gpu: str | None,
    max_seq_len: int | None,
    threads: int | None,
    copy: str,
    progress: Progress,
) -> Done:
    """Judge the engine, or without one the bundle on ONNX Runtime; the whole report goes to `copy`.

    ONNX Runtime runs on the CPU, or with `cuda_gpu`, a target's name, on a GPU of its kind. Passes
    only on a verdict of `nemo_trt.validate`.
    """
    require_packages("validate", "torch", "transformers")
    opened = Bundle.open(bundle)
    where, gpu = required(opened, engine, cuda_gpu)
    from nemo_trt.validate.bundle_validation import validate_bundle

    report = validate_bundle(
        opened,
        Path(reference),
        max_seq_len=max_seq_len,
        where=where,
        threads=threads,
        progress=progress,
    )
    target = Path(copy)
    atomic.write_text(target, report.to_json())
    cases: list[dict[str, Any]] = []
    for case in report.cases:
        figures = asdict(case)
        figures["num_positions"] = len(figures.pop("positions"))
        del figures["per_position"]
        cases.append(figures)
    failures = [f"{case.name}: {words}" for case in report.cases for words in case.failures]
    failures += report.failures
    return Done(
        verdict=report.verdict,
        reason="; ".join(failures),
        facts={
            "backend": dict(report.engine),
            "gpu": gpu,
            "reference": {
                name: report.reference[name] for name in ("dtype", "noise", "transformers")
            },
            "limits": report.limits,
            "perplexity": report.perplexity,
            "cases": cases,
            "every_position": f"validation/{target.name}",
        },
    )
