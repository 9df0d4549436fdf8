"""Structured output: grammars over a tokenizer's vocabulary, by llguidance."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from nemo_trt.engines.generation import Constraint
from nemo_trt.engines.tokenizers import Tokenizer
from nemo_trt.errors import RequestError
from nemo_trt.utf8 import require_utf8

from .grammar_trial import LIMITS, GrammarTooLargeError, GrammarTrial

# A space, or a new line with its indentation: with white space unbounded, a model can fall into
# writing nothing else. What a schema asks for and the library cannot enforce is an error.
_JSON = {"whitespace_pattern": r"( |\n[ \t]{0,16})?", "lenient": False}
_LONGEST_MESSAGE = 500
_MAX_BYTES = 2**18
"""Of a grammar or schema."""
CACHED = 32


class Grammar(Constraint, Protocol):
    """A grammar that was compiled, as the state of one answer."""

    def fresh(self) -> Self:
        """The state of another answer, from here on; what was compiled is shared."""


class GrammarConstraint:
    """The state of one answer. See `nemo_trt.engines.generation.Constraint`."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros(vocab_size // 32 + 1, np.int32)  # one token more: see _Vocabulary
        self._vocab_size = vocab_size

    def fresh(self) -> "GrammarConstraint":
        """The state of another answer, from here on; what was compiled is shared."""
        return GrammarConstraint(self._matcher.deep_copy(), self._vocab_size)

    @property
    def finished(self) -> bool:
        """Whether nothing but an end token may come."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """(V,) tokens that may come next."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._require_sound()
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little", count=self._vocab_size)
        return bits.view(np.bool_)

    def accept(self, token_id: int) -> None:
        """The answer goes on with a token that was allowed."""
        self._matcher.consume_token(token_id)
        self._require_sound()

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"The grammar is too much for the parser: {self._error()}")

    def _error(self) -> str:
        return str(self._matcher.get_error()).strip().splitlines()[0]


class Grammars(ABC):
    """Makes constraints of what a request says.

    Args:
        trial: compiles each grammar first, in bounded time; None: grammars are trusted.
    """

    def __init__(self, trial: GrammarTrial | None = None) -> None:
        import llguidance

        self._trial = trial
        self._matcher: Any = llguidance.LLMatcher
        self._compile = lru_cache(maxsize=CACHED)(self._tried)

    @abstractmethod
    def compiled(self, grammar: str) -> Grammar:
        """A grammar in llguidance's own form, over the model's vocabulary.

        Raises:
            RequestError: what llguidance says of it.
        """

    @property
    def spent_s(self) -> float:
        """Processor time that the trial of all grammars has taken."""
        return self._trial.spent_s if self._trial else 0.0

    def json_object(self) -> Grammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any], *, lenient: bool = False) -> Grammar:
        """JSON that a schema allows.

        Args:
            lenient: what llguidance does not enforce is left out, not an error.

        Raises:
            RequestError: the schema is wrong, or uses what llguidance does not enforce.
        """
        require_utf8(schema, "schema")
        overrides = {**_JSON, "lenient": lenient}
        try:
            text = json.dumps(schema)
            grammar = self._matcher.grammar_from_json_schema(text, overrides=overrides)
        except (TypeError, ValueError) as error:
            raise RequestError(f"The schema must be JSON that UTF-8 can hold: {error}.") from error
        _require_short(text, "JSON schema")
        return self._start(grammar, "JSON schema")

    def regex(self, pattern: str) -> Grammar:
        """Text that a regular expression matches whole (Rust's syntax).

        Raises:
            RequestError: the expression is wrong.
        """
        require_utf8(pattern, "regex")
        return self._start(self._matcher.grammar_from_regex(pattern), "regular expression")

    def lark(self, grammar: str) -> Grammar:
        """Text of a context-free grammar in Lark's form, from its rule `start` on.

        Raises:
            RequestError: the grammar is wrong.
        """
        require_utf8(grammar, "grammar")
        return self._start(self._matcher.grammar_from_lark(grammar), "grammar")

    def _start(self, grammar: str, kind: str) -> Grammar:
        _require_short(grammar, kind, factor=8)  # as llguidance writes it
        return self._compile(grammar, kind).fresh()

    def _tried(self, grammar: str, kind: str) -> Grammar:
        try:
            error = self._trial.error_of(grammar) if self._trial else None
            if error is not None:
                raise RequestError(error)
            return self.compiled(grammar)
        except GrammarTooLargeError:
            raise
        except RequestError as wrong:
            message = " ".join(str(wrong).split())[:_LONGEST_MESSAGE]
            raise RequestError(f"The {kind} must be one that can be enforced: {message}") from None


class VocabularyGrammars(Grammars):
    """Compiles grammars for one model's vocabulary, which is read once, here.

    Args:
        tokenizer: of the model.
        vocab_size: V, of the model's logits; tokens that the tokenizer lacks are never allowed.
        end_ids: tokens that end an answer where the grammar lets it end; there may be none.
        trial: see `Grammars`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        end_ids: Collection[int],
        trial: GrammarTrial | None = None,
    ) -> None:
        import llguidance

        super().__init__(trial)
        self._vocab_size = vocab_size
        self._limits: Any = llguidance.LLParserLimits(**LIMITS)
        self._tokenizer: Any = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(tokenizer, vocab_size)),
            eos_token=[*sorted(end_ids), vocab_size],
        )

    def compiled(self, grammar: str) -> GrammarConstraint:
        """See `Grammars`."""
        matcher = self._matcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise RequestError(str(matcher.get_error()))
        return GrammarConstraint(matcher, self._vocab_size)


def _require_short(text: str, kind: str, factor: int = 1) -> None:
    if len(text) > factor * _MAX_BYTES:
        raise RequestError(
            f"The {kind} must be at most {_MAX_BYTES} characters long, got {len(text)}."
        )


class _Vocabulary:
    """A tokenizer as llguidance wants to see it.

    It needs an end token, which a model may lack: one stands behind the vocabulary, where no
    sampler sees it.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        known = min(tokenizer.vocab_size, vocab_size)
        self.eos_token_id = vocab_size
        self.bos_token_id = tokenizer.bos_id
        pieces = [tokenizer.token_bytes(token) for token in range(known)]
        empty = [token for token, piece in enumerate(pieces) if not piece]
        self.special_token_ids = [*empty, *range(known, vocab_size + 1)]
        self.tokens = pieces + [b""] * (vocab_size + 1 - known)
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, bos=False)
