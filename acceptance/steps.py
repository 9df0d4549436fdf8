"""The steps of an acceptance, in order."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemo_trt.precision import DType

from .acceptance_options import AcceptanceOptions
from .identity import ONNXRUNTIME, checkpoint_digest, machine_words, package_versions
from .smoke_steps import smoke_names, smoke_steps
from .step import ENGINE_PACKAGES, EXPORT_PACKAGES, Step, bundle_gone, code_of, engine_gone
from .step_record import STAGES, Scalar


def steps_of(options: AcceptanceOptions) -> list[Step]:
    """Every step, those of a stage together."""
    every = [Step(name="doctor", stage="doctor", subject="this machine", arguments={}, keep=False)]
    if options.smoke != "none":
        for precision in dict.fromkeys(options.precisions):
            every += smoke_steps(options, precision)
    if options.smoke != "only":
        every += _steps_of_the_checkpoint(options)
    return sorted(every, key=lambda step: STAGES.index(step.stage))


def _steps_of_the_checkpoint(options: AcceptanceOptions) -> Iterator[Step]:
    checkpoint = {"checkpoint": checkpoint_digest(options.checkpoint)}
    reference = {
        "reference": checkpoint_digest(options.reference)
        if options.reference
        else checkpoint["checkpoint"]
    }
    machine = {"machine": machine_words()}
    yield Step(
        name="plots",
        stage="report",
        subject="plots",
        arguments={"report_folder": str(options.report_folder)},
        essential=False,
        keep=False,
    )
    for precision in dict.fromkeys(options.precisions):
        yield from _made(options, precision, checkpoint)
        yield from _judged(options, precision, reference, machine)


def _made(
    options: AcceptanceOptions, precision: DType, checkpoint: Mapping[str, Scalar]
) -> list[Step]:
    """Plan, export and build of a precision."""
    bundle = options.bundle(precision)
    engine = options.engine_name(precision)
    shape = {
        "gpu": options.target.name,
        "max_seq_len": options.max_seq_len,
        "max_batch": options.max_batch,
    }
    fp8: dict[str, Any] = {"calibration": None, "samples": None, "max_kl": options.max_kl}
    fp8_inputs: dict[str, Scalar] = {}
    if precision is DType.FP8:
        fp8["samples"] = options.samples
        fp8["calibration"] = str(options.calibration) if options.calibration else None
        fp8_inputs = {"samples": options.samples, "max_kl": options.max_kl}
        if options.calibration:
            fp8_inputs["calibration"] = checkpoint_digest(options.calibration)
    return [
        Step(
            name=f"plan-{precision}",
            stage="plan",
            subject=f"{precision} on {options.target.name}",
            arguments={"checkpoint": str(options.checkpoint), "precision": precision, **shape},
            inputs={
                **checkpoint,
                "precision": precision,
                **shape,
                **code_of("engines", "export", "passes", "stages"),
            },
        ),
        Step(
            name=f"export-{precision}",
            stage="export",
            subject=precision,
            needs=(f"plan-{precision}",),
            arguments={
                "checkpoint": str(options.checkpoint),
                "bundle": str(bundle),
                "precision": precision,
                **fp8,
            },
            inputs={
                **checkpoint,
                "precision": precision,
                **fp8_inputs,
                **code_of("engines", "export", "passes", "stages"),
            },
            environment=package_versions(EXPORT_PACKAGES),
            gone=lambda record: bundle_gone(bundle, record),
        ),
        Step(
            name=f"build-{precision}",
            stage="build",
            subject=engine,
            needs=(f"plan-{precision}", f"export-{precision}"),
            unless_failed=smoke_names(precision),
            arguments={"bundle": str(bundle), **shape},
            inputs={**shape, **code_of("engines", "passes")},
            environment=package_versions(ENGINE_PACKAGES),
            gone=lambda record: engine_gone(bundle, engine, record),
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backend:
    """What runs a bundle.

    Attributes:
        name: ends the names of its steps.
        subject: in words.
        made_by: the step that makes what it runs.
        engine: name of the engine, None for the bundle itself.
        seq_len: context to validate up to, None for its own.
        threads: compute threads, None for its own choice.
        packages: whose versions its outcome depends on.
        cuda_gpu: target whose GPU the bundle runs on with ONNX Runtime's CUDA provider, or None.
        essential: see `Step`.
    """

    name: str
    subject: str
    made_by: str
    engine: str | None
    seq_len: int | None
    threads: int | None
    packages: tuple[str, ...]
    cuda_gpu: str | None = None
    essential: bool = True


def _backends(options: AcceptanceOptions, precision: DType) -> tuple[_Backend, ...]:
    engine = options.engine_name(precision)
    return (
        _Backend(
            name="onnxruntime",
            subject=f"{precision} bundle on ONNX Runtime, CPU",
            made_by=f"export-{precision}",
            engine=None,
            seq_len=options.validate_seq_len,
            threads=options.threads,
            packages=("onnx", *ONNXRUNTIME),
        ),
        _Backend(
            name="cuda",
            subject=f"{precision} bundle on ONNX Runtime, CUDA",
            made_by=f"export-{precision}",
            engine=None,
            seq_len=options.validate_seq_len,
            threads=None,
            packages=("onnx", *ONNXRUNTIME, "cuda-python"),
            cuda_gpu=options.target.name,
            essential=False,
        ),
        _Backend(
            name="engine",
            subject=f"engine {engine} on its GPU",
            made_by=f"build-{precision}",
            engine=engine,
            seq_len=None,
            threads=None,
            packages=ENGINE_PACKAGES,
        ),
    )


def _judged(
    options: AcceptanceOptions,
    precision: DType,
    reference: Mapping[str, Scalar],
    machine: Mapping[str, Scalar],
) -> Iterator[Step]:
    """Validation of a precision on each backend; then its speed, where it is valid."""
    bundle = str(options.bundle(precision))
    for backend in _backends(options, precision):
        name = f"validate-{precision}-{backend.name}"
        copy = options.report_folder / "validation" / f"{name}.json"
        versions = package_versions(backend.packages)
        gpu: dict[str, Scalar] = {"gpu": backend.cuda_gpu} if backend.cuda_gpu else {}
        yield Step(
            name=name,
            stage="validate",
            subject=backend.subject,
            needs=(backend.made_by,),
            arguments={
                "bundle": bundle,
                "reference": str(options.reference or options.checkpoint),
                "engine": backend.engine,
                "cuda_gpu": backend.cuda_gpu,
                "max_seq_len": backend.seq_len,
                "threads": backend.threads,
                "copy": str(copy),
            },
            inputs={
                **reference,
                **gpu,
                "max_seq_len": backend.seq_len,
                "threads": backend.threads,
                **code_of("engines", "export", "passes", "validate"),
            },
            environment={**versions, **package_versions(("torch", "transformers"))},
            gone=lambda _, copy=copy: "" if copy.is_file() else f"{copy.name} is gone.",  # type: ignore[misc]
            essential=backend.essential,
        )
        yield Step(
            name=f"bench-{precision}-{backend.name}",
            stage="bench",
            subject=backend.subject,
            needs=(backend.made_by, name),
            arguments={
                "bundle": bundle,
                "engine": backend.engine,
                "cuda_gpu": backend.cuda_gpu,
                "prefill": options.prefill,
                "decode": options.decode,
                "decode_steps": options.decode_steps,
                "threads": backend.threads,
            },
            inputs={
                **gpu,
                "prefill": " ".join(map(str, options.prefill)),
                "decode": " ".join(map(str, options.decode)),
                "decode_steps": options.decode_steps,
                "threads": backend.threads,
                **code_of("engines", "acceptance.work"),
            },
            environment={**machine, **versions},
            essential=backend.essential,
        )
