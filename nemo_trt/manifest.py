"""The manifest of a bundle: what it holds, whence it came, and the digests that prove both."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from nemo_trt import contract
from nemo_trt.config import ModelConfig
from nemo_trt.digest import quick_digest, sha256_file
from nemo_trt.errors import DAMAGED_JSON, BundleError, CheckpointError
from nemo_trt.precision import DType
from nemo_trt.quantization import Quantization
from nemo_trt.shown import shown
from nemo_trt.utf8 import json_text

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
NEXT_MANIFEST_FILE = "manifest.next.json"  # see `read_manifest`
GRAPH_FILE = "model.onnx"
WEIGHTS_FOLDER = "weights"
TOKENIZER_FOLDER = "tokenizer"
VALIDATION_FILE = "validation.json"
CUDA_VALIDATION_FILE = "validation-cuda.json"
ENGINES_FOLDER = "engines"
ENGINE_FILE = "engine.json"
_MAX_BYTES = 2**28

WeightsMode = Literal["copy", "in-place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """One safetensors file that the graph's external data points into.

    Attributes:
        file: path relative to the bundle, with forward slashes.
        quick_digest: see `nemo_trt.digest.quick_digest`.
        sha256: of the whole file, or None when it was not asked for.
    """

    file: str
    num_bytes: int
    quick_digest: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        source: the checkpoint's path and format at export time.
        quantization: of an FP8 bundle; None for any other.
        adapters: path, weight and sha256 of every LoRA adapter that was merged, in order.
    """

    config: ModelConfig
    precision: DType
    stored_dtypes: tuple[DType, ...]
    weights_mode: WeightsMode
    graph_sha256: str
    weights: tuple[WeightFile, ...]
    tokenizer_files: tuple[str, ...]
    source: dict[str, str]
    tools: dict[str, str]
    quantization: Quantization | None = None
    adapters: tuple[Mapping[str, str | float], ...] = ()
    contract_version: int = contract.CONTRACT_VERSION

    @property
    def bundle_id(self) -> str:
        """Identity of what is computed: graph and weights, in hex. A verdict is bound to it."""
        parts = [self.graph_sha256, *(f"{w.num_bytes}:{w.quick_digest}" for w in self.weights)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(weight.num_bytes for weight in self.weights)

    @property
    def kept_cache_layers(self) -> frozenset[int] | None:
        """Layers that keep the base dtype in an FP8 cache; None where none was calibrated."""
        scales = self.quantization.cache if self.quantization else None
        return frozenset(map(int, scales.kept)) if scales else None

    def tokenizer_folder(self, bundle: Path) -> Path | None:
        """The folder of the tokenizer's files, or None when the bundle has no tokenizer."""
        return (bundle / self.tokenizer_files[0]).parent if self.tokenizer_files else None

    def to_json(self) -> str:
        """The text of `manifest.json`: no time stamp, so equal inputs give equal bytes."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "contract_version": self.contract_version,
            "bundle_id": self.bundle_id,
            "precision": self.precision,
            "stored_dtypes": list(self.stored_dtypes),
            "config": self.config.to_dict(),
            "graph": {"file": GRAPH_FILE, "sha256": self.graph_sha256},
            "weights_mode": self.weights_mode,
            "weights": [asdict(weight) for weight in self.weights],
            "tokenizer_files": list(self.tokenizer_files),
            "source": self.source,
            "adapters": [dict(adapter) for adapter in self.adapters],
            "tools": self.tools,
            "quantization": self.quantization.to_dict() if self.quantization else None,
        }
        return json_text(data)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            BundleError: the text is no manifest, or one of another schema or contract version.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            versions = data["schema_version"], data["contract_version"]
        except DAMAGED_JSON as error:
            raise BundleError(
                f"{MANIFEST_FILE} is unreadable: {shown(str(error))}. Export again."
            ) from error
        if versions != (SCHEMA_VERSION, contract.CONTRACT_VERSION):
            raise BundleError(
                f"{MANIFEST_FILE} must have schema and contract version "
                f"{(SCHEMA_VERSION, contract.CONTRACT_VERSION)}, got {shown(versions)}. "
                "Export again with this version of nemo-trt."
            )
        quantization = data.get("quantization")
        try:
            manifest = cls(
                config=ModelConfig.from_dict(data["config"]),
                precision=DType(data["precision"]),
                stored_dtypes=tuple(DType(dtype) for dtype in data["stored_dtypes"]),
                weights_mode=data["weights_mode"],
                graph_sha256=data["graph"]["sha256"],
                weights=tuple(WeightFile(**weight) for weight in data["weights"]),
                tokenizer_files=tuple(data["tokenizer_files"]),
                source=dict(data["source"]),
                tools=dict(data["tools"]),
                quantization=Quantization.from_dict(quantization) if quantization else None,
                adapters=tuple(dict(adapter) for adapter in data.get("adapters", ())),
                contract_version=data["contract_version"],
            )
            manifest._require_fields()
        except (*DAMAGED_JSON, CheckpointError) as error:
            raise BundleError(
                f"{MANIFEST_FILE} is damaged: {shown(repr(error))}. Export again."
            ) from error
        return manifest

    def _require_fields(self) -> None:
        """Check what the types of Python do not.

        Raises:
            ValueError: a field is of a wrong type.
            BundleError: a file's name leaves the bundle.
        """
        texts = [self.graph_sha256, *self.tokenizer_files, *self.tools, *self.tools.values()]
        texts += [text for one in self.weights for text in (one.file, one.quick_digest)]
        texts += [one.sha256 for one in self.weights if one.sha256 is not None]
        texts += [*self.source, *self.source.values(), self.source["path"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name, a digest or a version is no text")
        if not self.weights or not all(type(one.num_bytes) is int for one in self.weights):
            raise ValueError("a weight file's size is missing or no integer")
        if self.weights_mode not in get_args(WeightsMode):
            raise ValueError(f"weights_mode {shown(self.weights_mode)}")
        for file in (*self.tokenizer_files, *(weight.file for weight in self.weights)):
            if Path(file).is_absolute() or ".." in Path(file).parts:
                raise BundleError(f"{MANIFEST_FILE} names {shown(file)}, which leaves the bundle.")


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder with a manifest."""
    return (path / MANIFEST_FILE).is_file() or (path / NEXT_MANIFEST_FILE).is_file()


def read_manifest(bundle: Path, *, verify_weights: bool = True) -> Manifest:
    """Read a bundle's manifest and prove that graph and weights are the ones it names.

    A bundle made in place replaces two files, graph then manifest. `manifest.next.json` closes the
    gap: when the graph on disk is the one that it names, it counts.

    Raises:
        BundleError: no bundle, a damaged one, or files that are not those of the manifest.
    """
    if not is_bundle(bundle):
        raise BundleError(
            f"{bundle} must be a bundle with a {MANIFEST_FILE}. "
            "Make one: nemo-trt export CHECKPOINT BUNDLE."
        )
    try:
        graph_sha256 = sha256_file(bundle / GRAPH_FILE)
        texts = [
            _text(path)
            for path in (bundle / MANIFEST_FILE, bundle / NEXT_MANIFEST_FILE)
            if path.is_file()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{bundle} cannot be read: {error}. Export again.") from error
    for text in texts:
        manifest = Manifest.from_json(text)
        if manifest.graph_sha256 == graph_sha256:
            break
    else:
        raise BundleError(
            f"{bundle / GRAPH_FILE} is not the graph that {MANIFEST_FILE} names: "
            f"sha256 {graph_sha256[:12]}. It was altered; export again."
        )
    if verify_weights:
        for weight in manifest.weights:
            _verify_weight(bundle, weight)
    return manifest


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_BYTES:
        raise BundleError(f"{path} must be at most {_MAX_BYTES} bytes long. Export again.")
    return path.read_text(encoding="utf-8")


def _verify_weight(bundle: Path, weight: WeightFile) -> None:
    path = bundle / weight.file
    try:
        digest = quick_digest(path)
    except CheckpointError as error:
        raise BundleError(f"A weight file of the bundle is damaged: {error}") from error
    if (path.stat().st_size, digest) != (weight.num_bytes, weight.quick_digest):
        raise BundleError(
            f"{path} is not the file that {MANIFEST_FILE} names: its digest differs. "
            "It was altered after the export; export again."
        )
