"""A cluster of this machine alone: served until a signal, then drained and stopped."""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nemo_trt.bundle import Bundle
from nemo_trt.errors import MachineError
from nemo_trt.serve.approval import require_verdict
from nemo_trt.serve.running import listen, signal_events

from .cluster_options import ClusterOptions
from .ray_here import own_ray

_APP = "nemo-trt"
_POLL_S = 0.2
_QUIET = {"log_level": "WARNING", "enable_access_log": False}  # each replica has a log of its own


def serve_cluster_forever(
    options: ClusterOptions, *, host: str, port: int, on_ready: Callable[[str, str, str], None]
) -> None:
    """Serve on this machine until SIGTERM or SIGINT, then finish what runs.

    While it drains, new requests get 503; a second signal ends the waiting. When this returns, no
    process of Ray's is left.

    Args:
        port: 0 takes any that is free.
        on_ready: called once requests are taken, with the model's name, the address, the verdict.

    Raises:
        BundleError, BuildError: the bundle or its engine is missing or has no passing verdict.
        MachineError: the address cannot be had, or the replicas do not come up.
    """
    bundle = Bundle.open(options.bundle)
    asked = {"max_batch": options.max_batch, "max_seq_len": options.max_seq_len}
    if options.where.kind == "engine":
        asked = {}
    verdict = require_verdict(bundle, options.where, options.server, **asked).words
    listener, address = listen(host, port)
    port = listener.getsockname()[1]
    listener.close()  # Ray's proxy opens it again
    name = options.server.model_name or bundle.source_name
    cores = os.cpu_count() or 1
    options = shared_out(options, cores)
    with own_ray(cpus=cores, gpus=None if options.gpus else 0):
        require_gpus(options)
        asyncio.run(_serve(options, host, port, lambda: on_ready(name, address, verdict)))


async def _serve(
    options: ClusterOptions, host: str, port: int, on_ready: Callable[[], None]
) -> None:
    from ray import serve

    from .deploy import application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    stop, hurry = signal_events()
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port},
        logging_config=_QUIET,
    )
    target = serve.RunTarget(application(options), name=_APP, logging_config=_QUIET)
    (ingress,) = serve.run_many([target], wait_for_applications_running=False)
    while not _running(serve.status()):
        if await _set_within(stop, _POLL_S):
            return
    on_ready()
    await stop.wait()
    draining = asyncio.create_task(_drain(ingress, options.drain_timeout_s))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        await _drain(ingress, 0)  # requests that still run get an error
    hurrying.cancel()
    await draining


async def _drain(ingress: Any, timeout_s: float) -> None:
    await ingress.broadcast("drain", timeout_s).results_async(return_exceptions=True)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


def _running(status: Any) -> bool:
    """Whether the application takes requests.

    Raises:
        MachineError: it never will.
    """
    found = status.applications.get(_APP)
    if found and found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        told = [one.message for one in found.deployments.values() if one.message]
        lines = (told or [found.message])[0].strip().splitlines()
        raise MachineError(f"The replicas must come up; what they said last: {lines[-1].strip()}")
    return bool(found and found.status == "RUNNING")


def shared_out(options: ClusterOptions, cores: int) -> ClusterOptions:
    """This machine's cores, evenly, so that the replicas' threads do not stand in each other's
    way."""
    most = options.most_replicas
    if options.where.kind != "cpu":
        return replace(options, num_cpus=min(1.0, cores / most))
    threads = options.threads or max(1, cores // most)
    return replace(options, threads=threads, num_cpus=min(float(threads), cores / most))


def require_gpus(options: ClusterOptions) -> None:
    """Refuse more replicas than this machine has GPUs for: Ray would wait for ever.

    Raises:
        MachineError: it says how many there are.
    """
    import ray

    there = ray.cluster_resources().get("GPU", 0)
    if there < options.gpus * options.most_replicas:
        raise MachineError(
            f"{options.most_replicas} replicas with a GPU each must have as many GPUs, got "
            f"{int(there)}. Ask for fewer replicas, or serve on a cluster (docs/scale.md)."
        )
