"""What an outcome depends on: the checkpoint's bytes, the code, the packages, the machine."""

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import nemo_trt
from nemo_trt.digest import quick_digest, sha256_file
from nemo_trt.engines.machine import gpus
from nemo_trt.errors import CheckpointError

ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu")
"""Two packages of one library; a machine has one of them."""
_WHOLE_BYTES = 16 * 2**20  # smaller files are digested whole
_SAMPLE_BYTES = 64 * 2**10


def checkpoint_digest(path: Path) -> str:
    """A sha256 over a checkpoint's files, in hex: names, sizes, and samples of the large ones.

    It finds another, altered or truncated checkpoint as `quick_digest` does; not one altered number
    in the middle of a tensor.
    """
    digest = hashlib.sha256()
    for file in _files(path):
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        digest.update(f"{name} {file.stat().st_size} {_file_digest(file)}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and not hidden:
            yield file


def _file_digest(file: Path) -> str:
    size = file.stat().st_size
    if file.suffix == ".safetensors":
        try:
            return quick_digest(file)
        except CheckpointError:  # the export will say so
            pass
    if size <= _WHOLE_BYTES:
        return sha256_file(file)
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for start in (0, (size - _SAMPLE_BYTES) // 2, size - _SAMPLE_BYTES):
            opened.seek(start)
            digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()


@cache
def code_digest(room: str) -> str:
    """A sha256 over the source files of a package like "nemo_trt.export", in hex.

    Of "nemo_trt" it is the base alone: no sub-package.
    """
    spec = importlib.util.find_spec(room)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {room}", name=room)
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = folder.glob("*.py") if room == "nemo_trt" else folder.rglob("*.py")
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(folder).as_posix()} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each package, None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


@cache
def code_words() -> str:
    """The version of nemo-trt and, in a checkout, its commit."""
    root = Path(next(iter(nemo_trt.__path__))).parent
    if not (root / ".git").exists():
        return nemo_trt.__version__
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        return nemo_trt.__version__
    altered = ", altered" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{nemo_trt.__version__} ({commit[:12]}{altered})"


def _git(root: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=False
        )
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


@cache
def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return os.uname().machine


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine_words() -> str:
    """This machine in a line: what figures of speed depend on."""
    present = ", ".join(gpu.name for gpu in gpus()) or "no GPU"
    return f"{processor()}, {os.cpu_count()} threads, {memory_bytes() / 1e9:.0f} GB; {present}"
