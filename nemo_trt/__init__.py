"""nemo-trt: export Mistral-NeMo checkpoints to validated ONNX bundles and TensorRT engines.

The names below are the public interface; docs/stability.md says what may change. Each is imported
on first access, with only its own dependencies, so `import nemo_trt` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemo_trt.bundle import Bundle
    from nemo_trt.engines.measure import Measurement, measure
    from nemo_trt.engines.planner import Budget
    from nemo_trt.engines.rates import Rate
    from nemo_trt.engines.runner import Runner
    from nemo_trt.engines.sampling import SamplingParams
    from nemo_trt.engines.trt.build import build_engine
    from nemo_trt.engines.trt.engine_record import EngineRecord
    from nemo_trt.serve.engine import AsyncEngine
    from nemo_trt.serve.http.app import create_app
    from nemo_trt.serve.options import ServeOptions
    from nemo_trt.stages.export import Fp8Options, export_checkpoint
    from nemo_trt.stages.plan import plan_engine
    from nemo_trt.validate.bundle_validation import validate_bundle
    from nemo_trt.validate.report import Report
    from nemo_trt.where import Where

__version__ = "0.1.0"
__all__ = [
    "AsyncEngine",
    "Budget",
    "Bundle",
    "EngineRecord",
    "Fp8Options",
    "Measurement",
    "Rate",
    "Report",
    "Runner",
    "SamplingParams",
    "ServeOptions",
    "Where",
    "__version__",
    "build_engine",
    "create_app",
    "export_checkpoint",
    "measure",
    "plan_engine",
    "validate_bundle",
]
_HOMES = {  # name -> its module, and the extras that this needs
    "AsyncEngine": ("serve.engine", "cpu,serve"),
    "Budget": ("engines.planner", ""),
    "Bundle": ("bundle", ""),
    "EngineRecord": ("engines.trt.engine_record", ""),
    "Fp8Options": ("stages.export", "export"),
    "Measurement": ("engines.measure", "cpu"),
    "Rate": ("engines.rates", ""),
    "Report": ("validate.report", "cpu,validate"),
    "Runner": ("engines.runner", "cpu"),
    "SamplingParams": ("engines.sampling", ""),
    "ServeOptions": ("serve.options", ""),
    "Where": ("where", ""),
    "build_engine": ("engines.trt.build", ""),
    "create_app": ("serve.http.app", "cpu,serve"),
    "export_checkpoint": ("stages.export", "export"),
    "measure": ("engines.measure", "cpu"),
    "plan_engine": ("stages.plan", ""),
    "validate_bundle": ("validate.bundle_validation", "cpu,validate"),
}


def __getattr__(name: str) -> object:
    """Load a public name (PEP 562).

    Raises:
        AttributeError: there is no such name.
        ImportError: a package that it needs is not installed; the message says what to install.
    """
    if name == "errors":
        return import_module("nemo_trt.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, extras = _HOMES[name]
    try:
        return getattr(import_module(f"nemo_trt.{home}"), name)
    except ImportError as error:
        if (error.name or "nemo_trt").startswith("nemo_trt"):
            raise
        package = f"'nemo-trt[{extras}]'" if extras else "nemo-trt"
        raise ImportError(
            f"nemo_trt.{name} needs {error.name}, which is not installed. "
            f"Install it: pip install {package}.",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "errors"})
