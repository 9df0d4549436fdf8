"""The steps of a smoke: a small bundle, its engine, and that engine's session."""

from collections.abc import Iterator

from nemo_trt.engines.machine import gpus
from nemo_trt.precision import DType

from .acceptance_options import AcceptanceOptions
from .identity import ONNXRUNTIME, machine_words, package_versions
from .step import ENGINE_PACKAGES, EXPORT_PACKAGES, Step, bundle_gone, code_of, engine_gone
from .step_record import Scalar

_VALIDATE_PACKAGES = ("torch", "transformers", *ONNXRUNTIME)


def smoke_names(precision: DType) -> tuple[str, ...]:
    """The names of its steps."""
    return tuple(f"smoke-{precision}-{part}" for part in ("bundle", "engine", "session"))


def smoke_steps(options: AcceptanceOptions, precision: DType) -> Iterator[Step]:
    """Those of a precision."""
    bundle_step, engine_step, session_step = smoke_names(precision)
    folder, engine = options.smoke_folder, options.engine_name(precision)
    bundle = folder / f"bundle-{precision}"
    driver: dict[str, Scalar] = {"driver": next((gpu.driver for gpu in gpus()), None)}
    inputs: dict[str, Scalar] = {
        "precision": precision,
        **code_of("engines", "export", "passes", "stages", "validate", "acceptance"),
    }

    def arguments(part: str, name: str) -> dict[str, str]:
        copy = options.report_folder / "validation" / f"{name}.json"
        return {
            "part": part, "folder": str(folder), "precision": precision,
            "gpu": options.target.name, "copy": str(copy),
        }  # fmt: skip

    yield Step(
        name=bundle_step,
        stage="smoke",
        subject=f"small {precision} bundle",
        arguments=arguments("bundle", bundle_step),
        inputs=inputs,
        environment=package_versions((*EXPORT_PACKAGES, *_VALIDATE_PACKAGES)),
        gone=lambda record: bundle_gone(bundle, record),
    )
    yield Step(
        name=engine_step,
        stage="smoke",
        subject=f"small engine {engine}",
        arguments=arguments("engine", engine_step),
        needs=(bundle_step,),
        inputs={**inputs, "gpu": options.target.name},
        environment={**package_versions(ENGINE_PACKAGES), **driver},
        gone=lambda record: engine_gone(bundle, engine, record),
    )
    yield Step(
        name=session_step,
        stage="smoke",
        subject=f"small engine {engine} on its GPU",
        arguments=arguments("session", session_step),
        needs=(engine_step,),
        inputs=inputs,
        environment={
            "machine": machine_words(),
            **package_versions((*ENGINE_PACKAGES, "cuda-python", *_VALIDATE_PACKAGES)),
            **driver,
        },
    )
