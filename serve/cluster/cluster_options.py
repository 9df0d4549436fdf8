"""What a cluster serves, and with how many replicas."""

from dataclasses import dataclass, field
from pathlib import Path

from nemo_trt.bundle import Bundle
from nemo_trt.defaults import DRAIN_TIMEOUT_S, SLOTS
from nemo_trt.engines.trt.engine_record import read_record
from nemo_trt.errors import RequestError
from nemo_trt.serve.options import ServeOptions
from nemo_trt.where import CPU, Where


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Settings of a cluster. Each replica is a whole server: one session, its slots, its queue.

    Attributes:
        bundle: its path, the same on every machine.
        where: what runs the bundle in each replica; see `Where`.
        max_batch, max_seq_len, threads: see `create_app`. An engine has its own slots and length.
        replicas: how many there are; where `autoscale` is given, at the start.
        autoscale: fewest and most replicas.
        num_cpus, num_gpus: what Ray sets aside for a replica; None means one GPU where the bundle
            runs on one, and one core per thread on the CPU.
        ingresses: processes that take requests in and pass them on; each learns by itself which
            replica has seen what.
        drain_timeout_s: what a replica that is taken away may still run.
        upscale_delay_s, downscale_delay_s: how long the load must be there, or be gone.
        server: how each replica behaves.
    """

    bundle: Path
    where: Where = CPU
    max_batch: int = SLOTS
    max_seq_len: int | None = None
    threads: int | None = None
    replicas: int = 1
    autoscale: tuple[int, int] | None = None
    num_cpus: float | None = None
    num_gpus: float | None = None
    ingresses: int = 1
    drain_timeout_s: float = DRAIN_TIMEOUT_S
    upscale_delay_s: float = 15.0
    downscale_delay_s: float = 300.0
    server: ServeOptions = field(default_factory=ServeOptions)

    def __post_init__(self) -> None:
        for name in ("max_batch", "replicas", "ingresses"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.autoscale is not None:
            fewest, most = self.autoscale
            if not 1 <= fewest <= most:
                raise RequestError(f"autoscale must be 1 <= MIN <= MAX, got {fewest}:{most}.")

    @property
    def most_replicas(self) -> int:
        """How many there may be at once."""
        return self.autoscale[1] if self.autoscale else self.replicas

    @property
    def cpus(self) -> float:
        """Cores that Ray sets aside for a replica."""
        if self.num_cpus is not None:
            return self.num_cpus
        return float(self.threads or 1) if self.where.kind == "cpu" else 1.0

    @property
    def gpus(self) -> float:
        """GPUs that Ray sets aside for a replica."""
        if self.num_gpus is not None:
            return self.num_gpus
        return 0.0 if self.where.kind == "cpu" else 1.0

    @property
    def compute_threads(self) -> int | None:
        """Threads of a replica on the CPU: those that were asked for, or its cores."""
        if self.where.kind != "cpu":
            return None
        return self.threads or max(1, int(self.cpus))

    def slots(self) -> int:
        """Requests that one replica runs at once.

        Raises:
            BundleError, BuildError: there is no such bundle, or no such engine of it.
        """
        bundle = Bundle.open(self.bundle)
        if self.where.kind != "engine":
            return self.max_batch
        return read_record(bundle, self.where.engine, verify=False).options.max_batch
