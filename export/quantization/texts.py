"""The calibration set: which samples there are, and their identity."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nemo_trt.errors import RequestError

_DEFAULT = Path(__file__).with_name("texts.jsonl")
MAX_TOKENS = 512
"""Longer samples are cut."""


class Encoder(Protocol):
    """What calibration needs of a tokeniser."""

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Tokens of a text; with `bos` a start token is put before them."""

    def chat(self, messages: Sequence[Mapping[str, object]]) -> list[int]:
        """Tokens of a conversation in the model's own format, ready for the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSet:
    """Samples to calibrate on.

    Attributes:
        name: of the file, or "built-in".
        sha256: of the file's bytes.
        lines: one JSON object a sample: {"text": ...}, {"user": ..., "assistant": ...} or
            {"tokens": [...]}. Other keys are for readers.
    """

    name: str
    sha256: str
    lines: tuple[dict[str, object], ...]

    def describe(self) -> dict[str, str | int]:
        """What a manifest says of the set."""
        return {"name": self.name, "sha256": self.sha256}

    def tokens(self, encoder: Encoder | None, vocab_size: int) -> list[list[int]]:
        """Token ids of every sample, each below `vocab_size`.

        Raises:
            RequestError: a text and no tokeniser, or an id out of range.
        """
        return [self._sample(line, encoder, vocab_size)[:MAX_TOKENS] for line in self.lines]

    def _sample(
        self, line: dict[str, object], encoder: Encoder | None, vocab_size: int
    ) -> list[int]:
        tokens = line.get("tokens")
        if isinstance(tokens, list):
            if not all(isinstance(token, int) and 0 <= token < vocab_size for token in tokens):
                raise RequestError(f"{self.name}: tokens must be ids from 0 to {vocab_size - 1}.")
            return list(tokens)
        if encoder is None:
            raise RequestError(
                "A checkpoint without a tokenizer must be calibrated on token ids, got text. "
                'Pass --calibration FILE.jsonl with lines like {"tokens": [1, 17, 25]}.'
            )
        if "user" in line:
            prompt = encoder.chat([{"role": "user", "content": str(line["user"])}])
            return [*prompt, *encoder.encode(str(line.get("assistant", "")), bos=False)]
        return encoder.encode(str(line["text"]), bos=True)


def read_calibration_set(
    path: Path | None = None, num_samples: int | None = None
) -> CalibrationSet:
    """Read a calibration set, by default the built-in one of 128 samples.

    Args:
        path: JSON lines (see `CalibrationSet`), or plain text with one sample a line.
        num_samples: take this many from the start.

    Raises:
        RequestError: the file is unreadable, a line is none of the forms, or there are fewer
            samples than asked for.
    """
    source = path or _DEFAULT
    try:
        raw = source.read_bytes()
        texts = [line for line in raw.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise RequestError(f"{source} must be text in UTF-8: {error}.") from error
    lines = tuple(_parsed(texts, source))
    if len(lines) < (num_samples or 1):
        raise RequestError(
            f"{source} must hold at least {num_samples or 1} samples, got {len(lines)}."
        )
    return CalibrationSet(
        name=path.name if path else "built-in",
        sha256=hashlib.sha256(raw).hexdigest(),
        lines=lines[:num_samples],
    )


def _parsed(texts: Sequence[str], source: Path) -> Iterable[dict[str, object]]:
    json_lines = source.suffix in (".jsonl", ".json")
    for number, text in enumerate(texts, 1):
        if not json_lines:
            yield {"text": text}
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise RequestError(f"{source} line {number} must be JSON: {error}.") from error
        if not isinstance(line, dict) or not {"text", "user", "tokens"} & set(line):
            raise RequestError(f'{source} line {number} must have "text", "user" or "tokens".')
        yield line
