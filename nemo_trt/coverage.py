"""What a verdict covers: the files that were judged, and the lengths and rows they ran with."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from nemo_trt.bundle import Bundle
from nemo_trt.digest import file_digest
from nemo_trt.manifest import ENGINE_FILE, GRAPH_FILE, MANIFEST_FILE, NEXT_MANIFEST_FILE
from nemo_trt.where import Where

_TOKENIZER_FILES = (
    "tekken.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
"""What `open_tokenizer` reads, where it is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What was judged.

    Attributes:
        where: what ran the bundle.
        max_seq_len: tokens a row up to which it was judged.
        max_batch: rows of the session that was judged.
        compute_precision: of its arithmetic.
        digests: file, relative to the bundle -> `file_digest` of its bytes.
    """

    where: Where
    max_seq_len: int
    max_batch: int
    compute_precision: str
    digests: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {**asdict(self), "where": str(self.where)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError, RequestError: it did not.
        """
        lengths = {name: int(data[name]) for name in ("max_seq_len", "max_batch")}
        if min(lengths.values()) < 1:
            raise ValueError(f"lengths must be at least 1, got {lengths}")
        digests = {str(name): str(digest) for name, digest in data["digests"].items()}
        return cls(
            where=Where.of(str(data["where"])),
            compute_precision=str(data["compute_precision"]),
            digests=digests,
            **lengths,
        )


def judged_files(bundle: Bundle, where: Where) -> dict[str, Path]:
    """Every file on which the answers depend, by its name relative to the bundle.

    Of an engine not its plans: engine.json holds their digests, with which they are compared
    whenever they are loaded.
    """
    manifest = bundle.manifest
    names = [MANIFEST_FILE, NEXT_MANIFEST_FILE, GRAPH_FILE]
    names += [weight.file for weight in manifest.weights]
    names += manifest.tokenizer_files
    if folder := bundle.tokenizer_folder:
        names += [(folder / name).relative_to(bundle.path).as_posix() for name in _TOKENIZER_FILES]
    paths = {name: bundle.path / name for name in names}
    if where.kind == "engine":
        record = bundle.engine_folder(where.engine) / ENGINE_FILE
        paths[record.relative_to(bundle.path).as_posix()] = record
    return {name: path for name, path in paths.items() if path.is_file()}


def digests_of(bundle: Bundle, where: Where) -> dict[str, str]:
    """The digest of every one of `judged_files`, every byte read.

    Raises:
        OSError: one cannot be read.
    """
    return {name: file_digest(path) for name, path in judged_files(bundle, where).items()}
