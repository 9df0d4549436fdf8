"""A Ray of this process's own: private, on this machine alone, gone at the end."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager

_OBJECTS_BYTES = 100 * 2**20  # answers are small, and never lie long in Ray's store
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # So it gives its processes the loopback address; its name says where Ray does so by itself.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a replica without a GPU sees none, unwarned
    "RAY_DEDUP_LOGS": "0",  # each line is another request's
    "RAY_COLOR_PREFIX": "0",
    "RAY_worker_niceness": "0",  # 15 by itself: beside other work on the machine, replicas starve
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # of 5 it kills a proxy that a busy core delays
}


@contextmanager
def own_ray(*, cpus: int, gpus: int | None = None) -> Iterator[None]:
    """Start Ray, and end all its processes on leaving.

    Its files lie in a folder that nobody else may read, and its processes ask one another for a
    token that is in no file: Ray by itself would write one that everybody can read.

    Args:
        cpus: cores that replicas may be given.
        gpus: GPUs; None for those that there are.
    """
    os.environ |= {name: os.environ.get(name, value) for name, value in _SETTINGS.items()}
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    with tempfile.TemporaryDirectory(prefix="nemo-trt-", ignore_cleanup_errors=True) as folder:
        try:
            # Ray's workers look for modules where this process stands: not in a folder of others.
            with chdir(folder):
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    num_gpus=gpus,
                    include_dashboard=False,
                    object_store_memory=_OBJECTS_BYTES,
                    logging_level="ERROR",
                    _temp_dir=f"{folder}/ray",  # Ray opens it to all; the folder around is closed
                )
            yield
        finally:
            ray.shutdown()
