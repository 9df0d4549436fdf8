"""Which tests share a worker of pytest-xdist, and which never run beside each other.

A test file runs on one worker, so that its module's fixtures are made once. The files of a group
run on one worker, too: one Ray cluster and one browser run at a time. Two compilations of Nemo's
real dimensions, 8 GB each, never do, not even in two runs of the suite.

Workers share the cores: PyTorch and ONNX Runtime compute in one thread in each. Threads of several
workers that wait for each other, spinning, would take most of the time.
"""

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

GROUPS = {
    "tensorrt": ("tests/engines/trt/", "tests/cli/test_engines.py"),
    "acceptance": ("tests/acceptance/",),
    "ray": ("tests/serve/cluster/",),
    "fp8": ("tests/validate/test_fp8.py", "tests/export/quantization/test_cache_quality.py"),
    "browser": ("tests/serve/page/", "tests/validate/test_page.py"),
}
LARGE = "tests/engines/trt/test_compiled.py"  # compiles what takes 8 GB
FIRST = (  # minutes each: begun late, one of them would end alone
    "tensorrt",
    "ray",
    "fp8",
    "acceptance",
    "tests/export/checkpoints/test_fp8_kept.py",
    "tests/export/test_bundle.py",
    "browser",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: a test of processes, such as Ray's, mostly waits for them."""
    return len(os.sched_getaffinity(0)) + (config.option.markexpr != "unit")


IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IS_WORKER:
    os.environ["OMP_NUM_THREADS"] = "1"  # read as PyTorch is imported, and by processes of tests


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Sessions that are asked for no number of threads get one."""
    runtime: Any = sys.modules.get("onnxruntime")
    if not IS_WORKER or runtime is None or "_of_a_worker" in vars(runtime):
        return
    default = runtime.SessionOptions

    def options() -> Any:
        made = default()
        made.intra_op_num_threads = 1
        return made

    runtime.SessionOptions, runtime._of_a_worker = options, True


def group_of(nodeid: str) -> str:
    """The group of a test; its file, when it has none."""
    found = (name for name, paths in GROUPS.items() if nodeid.startswith(paths))
    return next(found, nodeid.split("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Takes the place of --dist."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            for name in reversed(FIRST):
                if name in self.workqueue:
                    self.workqueue.move_to_end(name, last=False)
            super()._assign_work_unit(node)

    return GroupScheduling(config, log)


@contextmanager
def _held(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel lets go of it when the process ends
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not item.nodeid.startswith(LARGE):
        return (yield)
    with _held(Path(tempfile.gettempdir()) / f"nemo-trt-tests-{os.getuid()}-tensorrt.lock"):
        return (yield)
