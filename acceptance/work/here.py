"""Whether this machine can run a bundle or an engine, before it is tried."""

from nemo_trt.acceptance.identity import ONNXRUNTIME, memory_bytes, package_versions
from nemo_trt.bundle import Bundle
from nemo_trt.engines.machine import gpus
from nemo_trt.engines.targets import Target, target_named
from nemo_trt.engines.trt.engine_record import read_record
from nemo_trt.engines.trt.toolkit import REQUIREMENTS, is_installed
from nemo_trt.errors import MachineError
from nemo_trt.precision import DType
from nemo_trt.where import CPU, CUDA, Where

from .done import CannotHere, require_packages

_LOAD_FACTOR = 2  # ONNX Runtime holds the weights twice for a moment (README, limits)


def required(bundle: Bundle, engine: str | None, cuda_gpu: str | None) -> tuple[Where, str | None]:
    """Where a step runs, and the name of the GPU there; raises `CannotHere` unless it can.

    Args:
        engine: of the bundle; without one ONNX Runtime runs it.
        cuda_gpu: target whose GPU ONNX Runtime runs it on; without one it is the CPU.
    """
    if engine:
        return Where.of(engine), require_engine_gpu(bundle, engine)
    if cuda_gpu:
        return CUDA, require_cuda_session(bundle, cuda_gpu)
    require_cpu_session(bundle)
    return CPU, None


def require_cpu_session(bundle: Bundle) -> None:
    """Raises `CannotHere` unless ONNX Runtime's CPU provider can hold it."""
    _require_onnxruntime("cpu")
    compute = DType.FP16 if bundle.precision is DType.FP16 else DType.FP32
    needed = _LOAD_FACTOR * bundle.config.num_parameters * compute.itemsize
    if needed > memory_bytes():
        raise CannotHere(
            f"ONNX Runtime's CPU provider needs about {needed / 1e9:.0f} GB to load the bundle in "
            f"{compute}, and this machine has {memory_bytes() / 1e9:.0f} GB."
        )


def require_cuda_session(bundle: Bundle, gpu: str) -> str:
    """The name of the GPU here that is of target `gpu`'s kind; raises `CannotHere` unless there is
    one, ONNX Runtime has its CUDA provider, and the weights fit."""
    target = target_named(gpu)
    found = _gpu_like(target, "This step runs")
    _require_onnxruntime("gpu")
    require_packages("gpu", "cuda-python")
    from nemo_trt.engines.cuda.provider import CudaProvider

    try:
        CudaProvider()
    except MachineError as error:
        raise CannotHere(str(error)) from error
    base = bundle.precision.base  # FP8 weights are dequantised to it
    needed = bundle.config.num_parameters * base.itemsize
    if needed > target.memory_bytes:
        raise CannotHere(
            f"ONNX Runtime's CUDA provider needs {needed / 1e9:.1f} GB for the weights in {base}, "
            f"and {target.name} has {target.memory_gb} GB."
        )
    return found


def require_engine_gpu(bundle: Bundle, engine: str) -> str:
    """The name of the GPU here that the engine is for; raises `CannotHere` unless there is one."""
    record = read_record(bundle, engine, verify=False)
    found = _gpu_like(target_named(record.options.target), f"Engine {engine} runs")
    if not is_installed(record.toolkit):  # type: ignore[arg-type]  # the builder wrote it
        requirement = REQUIREMENTS[record.toolkit]
        raise CannotHere(
            f"Engine {engine} needs the library {record.toolkit}. "
            f"Install: pip install '{requirement}'."
        )
    require_packages("gpu", "cuda-python")
    return found


def _gpu_like(target: Target, what_runs: str) -> str:
    """The name of the first GPU here of the target's compute capability."""
    present = gpus()
    fitting = [gpu.name for gpu in present if gpu.sm == target.sm]
    if not fitting:
        have = ", ".join(f"{gpu.name}, sm_{gpu.sm}" for gpu in present) or "none"
        raise CannotHere(f"{what_runs} on an sm_{target.sm} GPU like {target.name} (here: {have}).")
    return fitting[0]


def _require_onnxruntime(extra: str) -> None:
    if not any(package_versions(ONNXRUNTIME).values()):
        require_packages(extra, ONNXRUNTIME[0])
