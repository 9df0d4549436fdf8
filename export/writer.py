"""Writes a bundle's files, atomically: weights, tokenizer, graph, and last the manifest."""

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from nemo_trt import __version__, atomic
from nemo_trt.digest import quick_digest, sha256_file
from nemo_trt.manifest import (
    GRAPH_FILE,
    MANIFEST_FILE,
    NEXT_MANIFEST_FILE,
    TOKENIZER_FOLDER,
    WEIGHTS_FOLDER,
    Manifest,
    WeightFile,
    WeightsMode,
)
from nemo_trt.precision import DType
from nemo_trt.progress import Progress
from nemo_trt.quantization import Quantization
from nemo_trt.safetensors import read_layout
from nemo_trt.tensors import TensorRef

from .checkpoints import Checkpoint
from .graph import save_graph
from .target import relative_to_bundle
from .weights import attach_weights, copy_file

_WEIGHTS_FILE = "model.safetensors"
_TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleWriter:
    """One export, ready to be written.

    Attributes:
        model: the decoder's graph; its weights have names and no data yet.
        sha256: record the SHA-256 of every weight file.
    """

    checkpoint: Checkpoint
    model: ir.Model
    precision: DType
    quantization: Quantization | None
    sha256: bool
    progress: Progress

    def copy_weights(
        self, bundle: Path, locations: Mapping[Path, PurePosixPath], *, replace: bool
    ) -> Manifest:
        """Copy the checkpoint's weight files into the bundle.

        Args:
            locations: weight file -> its place in the bundle.
        """
        attach_weights(self.model, stored_tensors(self.checkpoint), locations)
        with atomic.new_directory(bundle, replace=replace) as folder:
            (folder / WEIGHTS_FOLDER).mkdir()
            self.progress.phase("copy the weights", self.checkpoint.num_file_bytes, "bytes")
            for path, location in locations.items():
                copy_file(path, folder / location, self.progress)
            return self._finish(folder, locations.values())

    def new_weights(
        self, bundle: Path, write: Callable[[Path, Progress], None], *, replace: bool
    ) -> Manifest:
        """Write new weights to one file, and point the graph at them.

        Args:
            write: writes the safetensors file at a path.
        """
        location = PurePosixPath(WEIGHTS_FOLDER, _WEIGHTS_FILE)
        with atomic.new_directory(bundle, replace=replace) as folder:
            path = folder / location
            path.parent.mkdir()
            write(path, self.progress)
            attach_weights(self.model, read_layout(path), {path: location})
            return self._finish(folder, [location])

    def weights_in_place(self, bundle: Path, locations: Mapping[Path, PurePosixPath]) -> Manifest:
        """Add graph and manifest to the folder that already holds the weights."""
        attach_weights(self.model, stored_tensors(self.checkpoint), locations)
        files = self.checkpoint.tokenizer_files
        with atomic.new_file(bundle / GRAPH_FILE) as graph:
            self.progress.phase("write and check the graph")
            save_graph(self.model, graph, self.checkpoint.config, self.precision)
            manifest = self._manifest(
                weights_mode="in-place",
                graph=graph,
                weights=self._digests(bundle, locations.values()),
                tokenizer_files=tuple(
                    relative_to_bundle(file.path, bundle).as_posix() for file in files if file.path
                ),
            )
            atomic.write_text(bundle / NEXT_MANIFEST_FILE, manifest.to_json())
        # The graph has its name: from here on the new bundle is the one that counts.
        (bundle / NEXT_MANIFEST_FILE).replace(bundle / MANIFEST_FILE)
        return manifest

    def _finish(self, folder: Path, locations: Iterable[PurePosixPath]) -> Manifest:
        """Complete a new bundle whose weights are written: tokenizer, graph, manifest."""
        files = self.checkpoint.tokenizer_files
        if files:
            (folder / TOKENIZER_FOLDER).mkdir()
        for file in files:
            file.write_to(folder / TOKENIZER_FOLDER)
        self.progress.phase("write and check the graph")
        save_graph(self.model, folder / GRAPH_FILE, self.checkpoint.config, self.precision)
        manifest = self._manifest(
            weights_mode="copy",
            graph=folder / GRAPH_FILE,
            weights=self._digests(folder, locations),
            tokenizer_files=tuple(f"{TOKENIZER_FOLDER}/{file.name}" for file in files),
        )
        (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        return manifest

    def _digests(self, root: Path, locations: Iterable[PurePosixPath]) -> tuple[WeightFile, ...]:
        self.progress.phase("digest the weights")
        return tuple(
            WeightFile(
                file=str(location),
                num_bytes=(root / location).stat().st_size,
                quick_digest=quick_digest(root / location),
                sha256=sha256_file(root / location) if self.sha256 else None,
            )
            for location in locations
        )

    def _manifest(
        self,
        *,
        weights_mode: WeightsMode,
        graph: Path,
        weights: tuple[WeightFile, ...],
        tokenizer_files: tuple[str, ...],
    ) -> Manifest:
        checkpoint, stored = self.checkpoint, self.checkpoint.stored_dtypes
        if self.quantization and DType.FP8 not in stored:
            stored = (*stored, DType.FP8)
        return Manifest(
            config=checkpoint.config,
            precision=self.precision,
            stored_dtypes=stored,
            weights_mode=weights_mode,
            graph_sha256=sha256_file(graph),
            weights=weights,
            tokenizer_files=tokenizer_files,
            source={
                "path": str(checkpoint.path.resolve()),
                "format": checkpoint.format,
                "architecture": checkpoint.config.architecture,
                **({"dequantised": "from FP8"} if checkpoint.dequantised else {}),
                **({"fp8": checkpoint.fp8_kind} if checkpoint.fp8 else {}),
            },
            tools={
                "nemo-trt": __version__,
                **{name: importlib.metadata.version(name) for name in _TOOLS},
            },
            quantization=self.quantization,
            adapters=checkpoint.adapters,
        )


def stored_tensors(checkpoint: Checkpoint) -> dict[str, TensorRef]:
    """Where every weight lies in the checkpoint's own files."""
    return {name: ref for name, ref in checkpoint.tensors.items() if isinstance(ref, TensorRef)}
