"""What validation.json says of a bundle or an engine, if it is of that very one."""

import json
from pathlib import Path

from .manifest import CUDA_VALIDATION_FILE, VALIDATION_FILE

PASS = "pass"
_CUDA_PROVIDER = "CUDAExecutionProvider"


def verdict_file(backend: str = "cpu") -> str:
    """The file of a verdict: of an engine and of ONNX Runtime's CPU, or of its CUDA provider."""
    return CUDA_VALIDATION_FILE if backend == "cuda" else VALIDATION_FILE


def read_verdict(
    folder: Path, *, bundle_id: str, engine_id: str | None = None, backend: str = "cpu"
) -> str:
    """The verdict in a bundle's or an engine's folder.

    Args:
        folder: of the bundle, or of one of its engines.
        bundle_id: of the bundle as it is now.
        engine_id: of the engine's plans as they are now.
        backend: "cuda" asks for the verdict of ONNX Runtime on CUDA, which no other replaces.

    Returns:
        "pass", "fail", or why there is none: "none yet: ...", "stale: ..." or "unreadable: ...".
    """
    file = folder / verdict_file(backend)
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        found = report["bundle_id"], report["engine"].get("engine_id"), report["verdict"]
        on_cuda = report["engine"].get("provider") == _CUDA_PROVIDER
    except FileNotFoundError:
        return f"none yet: run nemo-trt validate{' --backend cuda' if backend == 'cuda' else ''}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable: {file.name}: {error!r}"
    if found[0] != bundle_id:
        return "stale: it is of another bundle"
    if on_cuda != (backend == "cuda"):
        return "stale: it is of another backend"
    if found[1] != engine_id:
        return "stale: it is of other plans"
    return PASS if found[2] == PASS else "fail"
