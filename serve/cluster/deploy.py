"""Options become Ray Serve's deployments."""

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from nemo_trt.errors import RequestError
from nemo_trt.serve.keys import read_keys
from nemo_trt.serve.options import ServeOptions
from nemo_trt.where import Where

from .cluster_options import ClusterOptions
from .ingress import Ingress
from .replica import Replica
from .router import PrefixRouter

_MOST_ONGOING = 10_000  # of one ingress: a request there costs no slot
_SPARE = 8
_SERVER_FIELDS = {field.name for field in fields(ServeOptions)}
_CLUSTER_FIELDS = {field.name for field in fields(ClusterOptions)} - {"server"}
Made = TypeVar("Made")


def build(args: dict[str, Any]) -> Application:
    """The application for `serve run nemo_trt.serve.cluster:build bundle=/models/nemo replicas=4`.

    Args:
        args: fields of `ClusterOptions` but `server`, and of `ServeOptions`, as values or as text;
            `autoscale` may be "MIN:MAX", `where`
            an engine's name. API keys come from `api_key_file` and the environment.

    Raises:
        RequestError: a field is unknown or out of its range.
        BundleError, BuildError: the bundle or its engine is missing.
    """
    given = dict(args)
    file = given.pop("api_key_file", None)
    if unknown := sorted(given.keys() - _CLUSTER_FIELDS - _SERVER_FIELDS):
        known = ", ".join(sorted(_CLUSTER_FIELDS | _SERVER_FIELDS | {"api_key_file"}))
        raise RequestError(f"Arguments must be some of {known}, got {unknown[0]!r}.")
    if isinstance(given.get("autoscale"), str):
        given["autoscale"] = given["autoscale"].split(":")
    if isinstance(given.get("where"), str):
        given["where"] = Where.of(given["where"])
    made = _checked(ServeOptions, {name: given.pop(name) for name in _SERVER_FIELDS & given.keys()})
    options = _checked(ClusterOptions, given | {"server": made})
    keys = read_keys(Path(file) if file else None, os.environ)
    made = replace(made, api_keys=(*made.api_keys, *keys))
    return application(replace(options, bundle=options.bundle.resolve(), server=made))


def application(options: ClusterOptions) -> Application:
    """Ingresses in front of replicas, as Ray Serve deploys them.

    A replica takes as many requests as it has slots and places in its queue, and some more, so
    that the one too many gets the replica's own 429. Replicas are added when there are more
    requests than slots, that is, when some wait.
    """
    slots = options.slots()
    most = slots + options.server.max_queue + _SPARE
    actors: dict[str, Any] = {"num_cpus": options.cpus, "num_gpus": options.gpus}
    scale: dict[str, Any] = {"num_replicas": options.replicas}
    if options.autoscale:
        fewest, _ = options.autoscale
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=fewest,
                max_replicas=options.most_replicas,
                initial_replicas=min(max(options.replicas, fewest), options.most_replicas),
                target_ongoing_requests=slots,
                upscale_delay_s=options.upscale_delay_s,
                downscale_delay_s=options.downscale_delay_s,
            )
        }
    replicas = serve.deployment(
        Replica,
        name="replica",
        max_ongoing_requests=most,
        max_queued_requests=options.server.max_queue,
        ray_actor_options=actors,
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter, request_router_kwargs={"slack": float(slots)}
        ),
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=options.drain_timeout_s,
        **scale,
    )
    ingress = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=options.ingresses,
        max_ongoing_requests=_MOST_ONGOING,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=options.drain_timeout_s,
    )
    behind = replace(options, server=replace(options.server, api_keys=()))  # asked for in front
    return ingress.bind(replicas.bind(behind), options.server)


def _checked(kind: type[Made], values: Mapping[str, Any]) -> Made:
    """An instance of a dataclass from values or text."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
