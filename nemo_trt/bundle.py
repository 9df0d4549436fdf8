"""A bundle on disk, whose manifest is read and checked once, when it is opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nemo_trt.config import ModelConfig
from nemo_trt.errors import BuildError
from nemo_trt.manifest import ENGINE_FILE, ENGINES_FOLDER, GRAPH_FILE, Manifest, read_manifest
from nemo_trt.precision import DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An open bundle, whose graph and weights match its manifest. Create one with `Bundle.open`.

    Attributes:
        path: its folder.
        manifest: contents of `manifest.json`.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, source: Self | Path | str) -> Self:
        """Read the manifest, and check graph and weights against its digests.

        Args:
            source: folder that `nemo-trt export` wrote; an open bundle is returned as it is.

        Raises:
            BundleError: the folder is not a bundle, or the bundle is damaged.
        """
        if isinstance(source, Path | str):
            path = Path(source)
            return cls(path=path, manifest=read_manifest(path))
        return source

    @property
    def bundle_id(self) -> str:
        """Digest of graph and weights. See `Manifest.bundle_id`."""
        return self.manifest.bundle_id

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.manifest.config

    @property
    def precision(self) -> DType:
        """The compute precision."""
        return self.manifest.precision

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return self.manifest.weight_bytes

    @property
    def kept_cache_layers(self) -> frozenset[int] | None:
        """See `Manifest.kept_cache_layers`."""
        return self.manifest.kept_cache_layers

    @property
    def graph_path(self) -> Path:
        """The ONNX graph."""
        return self.path / GRAPH_FILE

    @property
    def weight_paths(self) -> tuple[Path, ...]:
        """The weight files that the graph points into."""
        return tuple(self.path / weight.file for weight in self.manifest.weights)

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder of the tokenizer's files, or None when the bundle has no tokenizer."""
        return self.manifest.tokenizer_folder(self.path)

    @property
    def source_name(self) -> str:
        """Name of the source checkpoint: its file or folder, or the repository if the checkpoint is
        in a Hugging Face cache."""
        path = Path(self.manifest.source["path"])
        if path.parent.name == "snapshots":  # models--ORGANISATION--NAME/snapshots/REVISION
            return path.parent.parent.name.rpartition("--")[2]
        return path.stem if path.suffix in (".gguf", ".nemo") else path.name

    def engine_folder(self, name: str) -> Path:
        """The folder of the engine with this name, whether or not it exists.

        Raises:
            BuildError: the name is not a plain folder name.
        """
        if Path(name).name != name or name in ("", ".", ".."):
            raise BuildError(f"An engine's name must be a plain name like h100-fp8, got {name!r}.")
        return self.path / ENGINES_FOLDER / name

    def engines(self) -> tuple[str, ...]:
        """Names of the engines that have been built, sorted."""
        folder = self.path / ENGINES_FOLDER
        return tuple(sorted(record.parent.name for record in folder.glob(f"*/{ENGINE_FILE}")))

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)
