"""The files that a tokenizer is made of, on the disk or inside a checkpoint's file."""

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_trt.errors import CheckpointError, MachineError
from nemo_trt.lfs import require_content

from .text_files import parse_json

TEKKEN = "tekken.json"
TEKKEN_BOS, TEKKEN_EOS = 1, (2,)  # Tekken v3's <s> and </s>, in every tekken.json
_NAMES = (
    TEKKEN,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_TEMPLATES = "additional_chat_templates/*.jinja"  # more templates, each under its file's name


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFile:
    """One file of a tokenizer.

    Attributes:
        name: under which a tokenizer expects it, with a folder where it lies in one.
        path: where it lies; None for one inside a checkpoint's file.
        contents: makes its bytes.
    """

    name: str
    path: Path | None
    contents: Callable[[], bytes]

    def write_to(self, folder: Path) -> None:
        """Write the file where a tokenizer in `folder` expects it."""
        path = folder / self.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.contents())


def in_folder(folder: Path) -> tuple[TokenizerFile, ...]:
    """The tokenizer's files of a folder.

    Raises:
        CheckpointError: one is a Git LFS pointer, or a link that leaves the folder or the Hugging
            Face cache around it: a bundle would carry a file that is no part of the checkpoint.
    """
    paths = [folder / name for name in _NAMES if (folder / name).is_file()]
    paths += sorted(path for path in folder.glob(_TEMPLATES) if path.is_file())
    root = folder.resolve()
    if root.parent.name == "snapshots":  # models--ORG--NAME/snapshots/REVISION, links into blobs
        root = root.parent.parent
    for path in paths:
        require_content(path)
        if not path.resolve().is_relative_to(root):
            raise CheckpointError(
                f"{path} must be a file of its own folder, got a link to {path.resolve()}. Replace "
                "the link by the file."
            )
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    return tuple(
        TokenizerFile(name=name, path=path, contents=path.read_bytes)
        for path, name in names.items()
    )


@contextmanager
def unpacked(files: Sequence[TokenizerFile]) -> Iterator[Path | None]:
    """A folder that holds the files, while the block runs; None when there are none."""
    if not files:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="nemo-trt-") as folder:
        for file in files:
            file.write_to(Path(folder))
        yield Path(folder)


def tekken_of_vocabulary(vocabulary: Callable[[], bytes], where: str) -> TokenizerFile:
    """A tekken.json around a bare vocabulary list, which is all that a .nemo archive carries.

    Pattern, version and sizes are those of Tekken v3 as mistral-common carries them.
    """

    def contents() -> bytes:
        wrapped = b'{"vocab": ' + vocabulary() + b"}"
        return json.dumps({"config": _tekken_config(), **parse_json(wrapped, where)}).encode()

    return TokenizerFile(name=TEKKEN, path=None, contents=contents)


def _tekken_config() -> dict[str, Any]:
    path = tekken_of_mistral_common()
    config: dict[str, Any] = parse_json(path.read_bytes(), str(path))["config"]
    return config


def tekken_of_mistral_common() -> Path:
    """The Tekken of Mistral-Nemo-Instruct-2407, which mistral-common carries.

    Raises:
        MachineError: it is not installed.
    """
    spec = importlib.util.find_spec("mistral_common")  # found, not imported
    path = Path(str(spec.origin)).parent / "data" / "tekken_240718.json" if spec else None
    if path is None or not path.is_file():
        raise MachineError("Tekken needs mistral-common. Install it: pip install mistral-common.")
    return path
