"""The Runner: prefill, decode, rewind and generation on the rows of a session's KV cache."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from nemo_trt.bundle import Bundle
from nemo_trt.config import ModelConfig
from nemo_trt.errors import CapacityError, RequestError, StateError
from nemo_trt.where import CPU, Where

from .generation import Generation, TokenEvent
from .open import open_session
from .ownership import Ownership
from .paged_rows import rows_of
from .rows import common_prefix
from .sampling import SamplingParams
from .session import Logits, Session
from .tokenizers import Message, Tokenizer, open_tokenizer

Prompt = str | Sequence[int]


class Runner:
    """Runs a bundle: prefill, decode and rewind of rows, and generation.

    A row is one sequence; its cache holds every token that was appended and not rewound. Errors are
    raised before anything is written. Use a Runner in the process that opened it, from one thread
    at a time; otherwise calls raise StateError. Two Runners share nothing and may run in two
    threads.

        with Runner.open(Path("bundle")) as runner:
            for event in runner.generate("The capital of France is"):
                print(event.text, end="")
    """

    def __init__(self, session: Session, tokenizer: Tokenizer | None = None) -> None:
        self._session: Session | None = session
        self._tokenizer = tokenizer
        self._rows = rows_of(session)
        self._ownership = Ownership("a runner")
        self._generating: dict[int, Generation] = {}  # by row, those that nothing has come between

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path,
        where: Where | str = CPU,
        *,
        max_batch: int | None = None,
        max_seq_len: int | None = None,
        threads: int | None = None,
    ) -> Self:
        """Open a bundle, with its own tokenizer if it has one.

        Args:
            bundle: an open bundle, or its folder.
            where: "cpu", "cuda", or the name of one of the bundle's TensorRT engines.
            max_batch: number of rows, 1 by default; an engine has its own.
            max_seq_len: most tokens per row, by default the model's context; an engine has its own.
            threads: compute threads; CPU only.

        Raises:
            BundleError: the bundle is missing or damaged.
            BuildError: the bundle has no such engine, or it belongs to another bundle or another
                version of TensorRT.
            MachineError: the GPU or a library is missing.
            RequestError: an option does not apply to this backend, or is out of range.
        """
        bundle = Bundle.open(bundle)
        folder = bundle.tokenizer_folder
        tokenizer = open_tokenizer(folder) if folder else None
        session = open_session(
            bundle, where, max_batch=max_batch, max_seq_len=max_seq_len, threads=threads
        )
        return cls(session, tokenizer)

    @property
    def session(self) -> Session:
        """The open session.

        Raises:
            StateError: the runner has been closed, or was opened before this process was forked.
        """
        self._ownership.require_here()
        if self._session is None:
            raise StateError("Cannot use a runner that has been closed.")
        return self._session

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.session.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer.

        Raises:
            RequestError: the bundle has none.
        """
        self._ownership.require_here()
        if self._tokenizer is None:
            raise RequestError(
                "This bundle has no tokenizer. Pass token ids, or export a checkpoint that has one."
            )
        return self._tokenizer

    @property
    def max_seq_len(self) -> int:
        """Tokens that a row can hold."""
        return self.session.max_seq_len

    @property
    def max_batch(self) -> int:
        """Number of rows."""
        return self.session.max_batch

    def tokens(self, row: int) -> tuple[int, ...]:
        """The tokens that a row's cache holds."""
        with self._ownership:
            return tuple(self._rows.held(row))

    def rewind(self, row: int, length: int = 0) -> None:
        """Drop a row's tokens from `length` on. No memory moves.

        Raises:
            RequestError: `length` is not between 0 and what the row holds.
        """
        with self._ownership:
            self._rows.rewind(row, length)
            self._generating.pop(row, None)

    def prefill(self, rows: Mapping[int, Sequence[int]], *, chunk: int | None = None) -> Logits:
        """Append tokens to rows, any number to each, and return the logits after each row.

        Args:
            rows: row -> new tokens, at least one each.
            chunk: maximum tokens per row and step; by default all at once.

        Returns:
            (len(rows), V) float32 logits after each row's last token, in the order of `rows`.

        Raises:
            CapacityError: a row would exceed `max_seq_len`; nothing was written.
            RequestError: a row or a token does not exist.
            StateError: another thread uses the runner.
        """
        with self._ownership:
            result = self._prefill(rows, chunk)
            for row in rows:
                self._generating.pop(row, None)
        return result

    def _prefill(self, rows: Mapping[int, Sequence[int]], chunk: int | None) -> Logits:
        if chunk is not None and chunk < 1:
            raise RequestError(f"chunk must be at least 1, got {chunk}.")
        _ = self.session  # a closed runner says so
        self._rows.require_fit(rows)
        order = {row: index for index, row in enumerate(rows)}
        result = np.empty((len(rows), self.config.vocab_size), np.float32)
        rest = {row: list(tokens) for row, tokens in rows.items()}
        while rest:
            piece = {row: tokens[:chunk] for row, tokens in rest.items()}
            for row, logits in self._rows.append(piece):
                rest[row] = rest[row][len(piece[row]) :]
                if not rest[row]:
                    result[order[row]] = logits[0]
                    del rest[row]
        return result

    def decode(self, rows: Mapping[int, int]) -> Logits:
        """Append one token to each row, like `prefill` with one token per row."""
        return self.prefill({row: (token,) for row, token in rows.items()})

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        chunk: int | None = None,
    ) -> Iterator[TokenEvent]:
        """Continue one prompt, or several in parallel, in rows 0, 1, ...

        The prefix of a prompt that its row already holds is not recomputed.

        Args:
            prompts: one prompt or several. Text gets the BOS token; token ids are used as they are.
            params: sampling parameters, for all prompts or one per prompt; by default
                `SamplingParams()`.
            chunk: maximum tokens of a prompt per step; by default all at once.

        Yields:
            One `TokenEvent` per token, row by row. A row's last event has a `finish_reason`: "stop"
            (an end token or stop string) or "length" (max_tokens, or the row is full).

        Raises:
            CapacityError: a prompt does not leave room for one token.
            RequestError: there is no prompt, one is empty, or there are more prompts than rows.
            StateError: another thread uses the runner, or another call has changed a row since its
                last token.
        """
        every = [self._token_ids(prompt) for prompt in _as_batch(prompts)]
        if not 1 <= len(every) <= self.max_batch:
            raise RequestError(f"prompts must number 1 to {self.max_batch}, got {len(every)}.")
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(every)
        if len(params) != len(every):
            raise RequestError(f"params must be one per prompt, {len(every)}, got {len(params)}.")
        for row, tokens in enumerate(every):
            if not tokens:
                raise RequestError(f"Prompt {row} must hold at least one token.")
            if len(tokens) >= self.max_seq_len:
                raise CapacityError(
                    f"Prompt {row} must be shorter than max_seq_len, {self.max_seq_len} tokens, "
                    f"got {len(tokens)}."
                )
        rows = [
            Generation(row, tokens, one, self.config, self._tokenizer)
            for row, (tokens, one) in enumerate(zip(every, params, strict=True))
        ]
        return self._generate(rows, chunk)

    def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Iterator[TokenEvent]:
        """Answer a conversation, in the model's own chat format, in row 0."""
        return self.generate(self.tokenizer.chat(messages), params)

    def close(self) -> None:
        """Wait for a running call to end, then free the session.

        Does nothing if called again, or in a process that was forked after the runner was opened.
        """
        if not self._ownership.is_here:
            return
        with self._ownership.waiting():
            if self._session is not None:
                self._session.close()
                self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _generate(self, rows: list[Generation], chunk: int | None) -> Iterator[TokenEvent]:
        pending: dict[int, Sequence[int]] = {}
        with self._ownership:
            for generation in rows:
                kept = common_prefix(self._rows.held(generation.row), generation.prompt)
                self._rows.rewind(generation.row, kept)
                self._generating[generation.row] = generation
                pending[generation.row] = generation.prompt[kept:]
        active = {generation.row: generation for generation in rows}
        while active:
            with self._ownership:
                self._require_untouched(active)
                logits = self._prefill(pending, chunk)
                limit = self.max_seq_len - 1
                full = {row: len(self._rows.held(row)) >= limit for row in active}
            pending = {}
            for index, row in enumerate(list(active)):
                event = active[row].next(logits[index], last=full[row])
                if event.finish_reason:
                    del active[row]
                else:
                    pending[row] = (event.token_id,)
                yield event

    def _require_untouched(self, active: Mapping[int, Generation]) -> None:
        """Refuse to go on with rows that another call has changed since."""
        for row, generation in active.items():
            if self._generating.get(row) is not generation:
                raise StateError(
                    f"Row {row} must be left alone while it generates, and another call has "
                    "changed it. Finish one answer before the next, or pass all prompts together."
                )

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, bos=True)
        return list(prompt)


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    one = [item for item in prompts if isinstance(item, int | np.integer)]
    many = [item for item in prompts if not isinstance(item, int | np.integer)]
    if one and many:
        raise RequestError("prompts must be one prompt or several, got token ids among prompts.")
    return [one] if one else many
