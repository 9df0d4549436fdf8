"""`engine.json`: what an engine is, for which GPU and of which bundle."""

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from nemo_trt.bundle import Bundle
from nemo_trt.choices import require_choice, require_range
from nemo_trt.config import ModelConfig
from nemo_trt.digest import file_digest
from nemo_trt.engines.planned import CACHE_KINDS, CacheKind
from nemo_trt.errors import DAMAGED_JSON, BuildError, RequestError
from nemo_trt.manifest import ENGINE_FILE
from nemo_trt.precision import DType
from nemo_trt.utf8 import json_text

from .attention.paged_attention import PagedAttention

AttentionKind = Literal["native", "paged"]
SCHEMA_VERSION = 4
PAGE = 64  # tokens
LOWERING_VERSION = 6
"""Counts changes of how graphs are lowered: an engine of another number is built anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What an engine is built for; with bundle and toolkit it decides the plan.

    Attributes:
        target, sm: the GPU's name and compute capability.
        max_seq_len, max_batch: of the cache, T and rows.
        prefill_chunk: tokens of one row in one prefill step.
        max_logits: positions of a prefill step that can get logits.
        opt_level: TensorRT's builder optimisation level, None for its own default.
        single_plan: all profiles in one plan, so that the weights lie there once.
        allow_unfused: attention may be decomposed where no fused kernel serves it.
        attention: TensorRT's own over rows of `max_seq_len`, or ours over pages.
        page: tokens of a page.
        kv_cache: dtype of keys and values, see `cache_dtypes`.
        strip: no weights in the plan; the engine reads them from the bundle when it is opened.

    Raises:
        RequestError: an option has no such value.
    """

    target: str
    sm: int
    max_seq_len: int
    max_batch: int
    prefill_chunk: int
    max_logits: int
    opt_level: int | None = None
    single_plan: bool = True
    allow_unfused: bool = False
    attention: AttentionKind = "native"
    page: int = PAGE
    kv_cache: CacheKind = "base"
    strip: bool = False

    def __post_init__(self) -> None:
        require_choice("attention", self.attention, get_args(AttentionKind))
        require_choice("kv_cache", self.kv_cache, CACHE_KINDS)
        require_range("opt_level", self.opt_level, 0, 5)

    def attention_dtype(self, precision: str) -> DType:
        """What attention computes in, and keys and values are stored in but for FP8 pages."""
        return DType.FP16 if self.kv_cache == "fp16" else DType(precision).base

    @property
    def row_pages(self) -> int:
        """Page table entries of a row: a multiple of 4, for which the kernels are compiled."""
        return -(-self.max_seq_len // (4 * self.page)) * 4

    def build_id(
        self, bundle_id: str, toolkit: str, version: str, cache: dict[str, Any] | None = None
    ) -> str:
        """Identity of all inputs of a build, in hex. TensorRT makes no promise of equal bytes.

        Args:
            cache: the scales of an FP8 cache, which are no part of the bundle's identity.
        """
        parts = [LOWERING_VERSION, bundle_id, toolkit, version, asdict(self), cache]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """One plan.

    Attributes:
        digest: see `nemo_trt.digest.file_digest`.
        profiles: names of its optimisation profiles, in order: "prefill", "decode-1", ...
        kernels: profile -> kernel -> launches a layer.
        launches_per_layer: profile -> launches that each layer adds.
        scratch_bytes: profile -> device memory beside weights and inputs.
    """

    file: str
    num_bytes: int
    digest: str
    profiles: tuple[str, ...]
    kernels: dict[str, dict[str, float]]
    launches_per_layer: dict[str, float]
    scratch_bytes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """The contents of `engine.json`.

    Attributes:
        name: the engine's name and folder, such as "h100-fp8".
        build_id: identity of all inputs of the build; with equal ones an engine is kept.
        bundle_id: identity of the bundle that it was built from.
        precision: the bundle's precision.
        options: what it was built for.
        toolkit: "tensorrt" or "tensorrt-rtx".
        toolkit_version: version of that library.
        driver: driver of the GPU that it was built on; None if it was built without one.
        weight_bytes: bytes of the bundle's weights, which the plans hold or, stripped, take.
        plans: the plan files, with digests.
        build_s: seconds that the build took.
        peak_host_bytes: peak resident memory of the build.
        nemo_trt: version of nemo-trt.
        paged: the attention's kernels, with digests, of an engine with pages.
        stripped: digest of names, types and shapes of the weights that the plans take; None if they
            hold theirs.
    """

    name: str
    build_id: str
    bundle_id: str
    precision: str
    options: BuildOptions
    toolkit: str
    toolkit_version: str
    driver: str | None
    weight_bytes: int
    plans: tuple[PlanFile, ...]
    build_s: float
    peak_host_bytes: int
    nemo_trt: str
    paged: PagedAttention | None = None
    stripped: str | None = None

    @property
    def engine_id(self) -> str:
        """Identity of the bytes of plans and kernels, to which a verdict is bound."""
        digests = [plan.digest for plan in self.plans]
        digests += [kernel.digest for kernel in self.paged.kernels] if self.paged else []
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    @property
    def attention_dtype(self) -> DType:
        """See `BuildOptions.attention_dtype`."""
        return self.options.attention_dtype(self.precision)

    def kv_bytes_per_token(self, config: ModelConfig) -> int:
        """Bytes of a row's keys and values of one token, as they lie in the engine's cache."""
        caches = self.paged.caches if self.paged else (self.attention_dtype,)
        return sum(map(config.kv_bytes_per_token, caches)) // len(caches)

    def rebuild_command(self, bundle: Bundle) -> str:
        """The command that builds this engine again."""
        options = self.options
        words = ["nemo-trt", "build", str(bundle), "--gpu", options.target]
        for name in ("max_seq_len", "max_batch", "prefill_chunk", "opt_level"):
            if (value := getattr(options, name)) is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        words += ["--toolchain", self.toolkit]
        words += ["--separate-plans"] * (not options.single_plan)
        words += ["--allow-unfused"] * options.allow_unfused
        if options.attention == "paged":
            words += ["--attention", "paged", "--page", str(options.page)]
        if options.kv_cache != "base":
            words += ["--kv-cache", options.kv_cache]
        words += ["--strip"] * options.strip
        return shlex.join(words)

    def to_json(self) -> str:
        """The text of `engine.json`."""
        data = {"schema_version": SCHEMA_VERSION, "engine_id": self.engine_id, **asdict(self)}
        return json_text(data)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            BuildError: it is damaged or of another version.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError("another schema version")
            engine_id = data.pop("engine_id")
            data["options"] = BuildOptions(**data["options"])
            data["plans"] = tuple(
                PlanFile(**{**plan, "profiles": tuple(plan["profiles"])}) for plan in data["plans"]
            )
            if data.get("paged"):
                data["paged"] = PagedAttention.from_json(data["paged"])
            record = cls(**data)
            if record.engine_id != engine_id:
                raise ValueError("its plans are not the ones it was written for")
        except (*DAMAGED_JSON, RequestError) as error:
            raise BuildError(f"{ENGINE_FILE} is damaged: {error}. Build again.") from error
        for plan in record.plans:
            if Path(plan.file).name != plan.file:
                raise BuildError(f"{ENGINE_FILE} names {plan.file}, which leaves its folder.")
        return record


def read_record(bundle: Bundle, name: str, *, verify: bool = True) -> EngineRecord:
    """Read an engine's record and prove that the plans on disk are its own, of this bundle.

    Raises:
        BuildError: there is none, it is damaged or altered, or it is of another bundle.
    """
    folder = bundle.engine_folder(name)
    try:
        record = EngineRecord.from_json((folder / ENGINE_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        have = ", ".join(bundle.engines()) or "none"
        raise BuildError(
            f"{bundle} must have an engine {name}, got {have}. "
            f"Build one: nemo-trt build {bundle} --gpu NAME."
        ) from error
    if record.bundle_id != bundle.bundle_id:
        raise BuildError(
            f"Engine {name} is of another bundle than {bundle}. "
            f"Build it again: {record.rebuild_command(bundle)}."
        )
    for kernel in record.paged.kernels if record.paged else ():
        path = folder / kernel.file
        if not path.is_file() or file_digest(path) != kernel.digest:
            raise BuildError(
                f"{path} is missing or was altered after it was built. "
                f"Build it again: {record.rebuild_command(bundle)}."
            )
    for plan in record.plans:
        path = folder / plan.file
        if not path.is_file() or path.stat().st_size != plan.num_bytes:
            raise BuildError(
                f"{path} must have {plan.num_bytes} bytes; it is missing or cut short. "
                f"Build it again: {record.rebuild_command(bundle)}."
            )
        if verify and file_digest(path) != plan.digest:
            raise BuildError(
                f"{path} was altered after it was built. "
                f"Build it again: {record.rebuild_command(bundle)}."
            )
    return record


def same_build(bundle: Bundle, name: str, build_id: str) -> EngineRecord | None:
    """The engine's record when it is what a build would make, else None."""
    try:
        record = read_record(bundle, name, verify=False)
    except BuildError:
        return None
    return record if record.build_id == build_id else None
