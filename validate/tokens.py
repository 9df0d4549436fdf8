"""Judges a bundle's tokenizer: another implementation, opened on the source, gives the same tokens.

The judge of a tokenizer.json is transformers' AutoTokenizer, that of a tekken.json mistral-common.
Compared are every token's text, the ids of the built-in texts, conversations in the chat format,
and the text that streams out against the text that is decoded whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nemo_trt.engines.tokenizers import Detokenizer, Message, Tokenizer
from nemo_trt.errors import RequestError
from nemo_trt.export.checkpoints import Checkpoint, unpacked
from nemo_trt.export.checkpoints.tokenizer_files import TEKKEN

from .texts import HELD_OUT

_TOOLS: list[dict[str, object]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
_USER: Message = {"role": "user", "content": "What is the weather in Paris, and in Reykjavík?"}
_ANSWER: Message = {"role": "assistant", "content": "Sunny in Paris; 3 °C in Reykjavík."}
_SYSTEM: Message = {"role": "system", "content": "Answer briefly."}
_CHATS: dict[str, tuple[list[Message], list[dict[str, object]] | None]] = {
    "one turn": ([_USER], None),
    "a system prompt and several turns": ([_SYSTEM, _USER, _ANSWER, _USER], None),
    "tools": ([_USER], _TOOLS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerVerdict:
    """What was found.

    Attributes:
        judge: the implementation that ours was compared with; None where there is none.
        unjudged: why there is none, in words.
        chats: the conversations that both rendered; the judge refuses the others.
        failures: every difference, in words.
    """

    judge: str | None
    unjudged: str | None = None
    chats: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


class _Judge(Protocol):
    name: str

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def chat(self, messages: list[Any], tools: list[Any] | None) -> list[int] | None: ...


def judge_tokenizer(tokenizer: Tokenizer | None, checkpoint: Checkpoint) -> TokenizerVerdict:
    """Compare a bundle's tokenizer with another implementation of the checkpoint's."""
    if tokenizer is None:
        return TokenizerVerdict(judge=None, unjudged="the bundle has no tokenizer")
    with unpacked(checkpoint.tokenizer_files) as folder:
        if folder is None:
            return TokenizerVerdict(judge=None, unjudged="the checkpoint has no tokenizer")
        try:
            judge: _Judge = (
                _MistralCommon(folder) if (folder / TEKKEN).is_file() else _Transformers(folder)
            )
        except Exception as error:  # whatever another implementation raises on these files
            return TokenizerVerdict(
                judge=None, unjudged=f"no other implementation reads it: {error}"
            )
        chats = dict(_rendered(judge))
        failures = (*_differences(tokenizer, judge), *_chat_differences(tokenizer, judge, chats))
        return TokenizerVerdict(judge=judge.name, chats=tuple(chats), failures=failures)


def _differences(tokenizer: Tokenizer, judge: _Judge) -> Iterator[str]:
    # Behind another token: SentencePiece's decoders drop the space of the first one.
    first = tokenizer.encode("a", bos=False)
    wrong = [
        token
        for token in range(tokenizer.vocab_size)
        if tokenizer.decode([*first, token]) != _decoded(judge, [*first, token])
    ]
    if wrong:
        yield (
            f"every token must have the text that {judge.name} gives it, got {len(wrong)} with "
            f"another, first {wrong[0]}: {tokenizer.decode([wrong[0]])!r}"
        )
    for number, text in enumerate(HELD_OUT, 1):
        ids = tokenizer.encode(text, bos=False)
        if ids != judge.encode(text):
            yield f"text {number} must have the tokens that {judge.name} gives it, got others"
        if _streamed(tokenizer, ids) != tokenizer.decode(ids):
            yield f"text {number} must stream as it is decoded, got another text"


def _decoded(judge: _Judge, ids: list[int]) -> str | None:
    """The judge's text; None for a token that it does not have."""
    try:
        return judge.decode(ids)
    except Exception:  # KeyError, IndexError, OverflowError: each package has its own
        return None


def _rendered(judge: _Judge) -> Iterator[tuple[str, list[int]]]:
    """The conversations that the judge renders, and their tokens."""
    for name, (messages, tools) in _CHATS.items():
        try:
            ids = judge.chat(messages, tools)
        except Exception:  # the template or the format refuses this conversation
            continue
        if ids is not None:
            yield name, ids


def _chat_differences(
    tokenizer: Tokenizer, judge: _Judge, expected: dict[str, list[int]]
) -> Iterator[str]:
    for name, ids in expected.items():
        try:
            found = tokenizer.chat(*_CHATS[name])
        except RequestError as error:
            yield f"a chat with {name} must be rendered, got an error: {error}"
        else:
            if found != ids:
                yield f"a chat with {name} must have {judge.name}'s tokens, got others"


def _streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    stream = Detokenizer(tokenizer)
    return "".join(map(stream.push, ids)) + stream.flush()


class _Transformers:
    def __init__(self, folder: Path) -> None:
        import transformers

        self.name = f"transformers {transformers.__version__}"
        self._tokenizer: Any = (
            transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            if (folder / "tokenizer_config.json").is_file()
            else transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        )

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: list[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def chat(self, messages: list[Any], tools: list[Any] | None) -> list[int] | None:
        if not self._tokenizer.chat_template:
            return None
        rendered = self._tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        return list(rendered["input_ids"])


class _MistralCommon:
    def __init__(self, folder: Path) -> None:
        import mistral_common
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        self.name = f"mistral-common {mistral_common.__version__}"
        self._mistral: Any = MistralTokenizer.from_file(str(folder / TEKKEN))
        self._tekken: Any = self._mistral.instruct_tokenizer.tokenizer
        self._left_out = SpecialTokenPolicy.IGNORE

    def encode(self, text: str) -> list[int]:
        return list(self._tekken.encode(text, bos=False, eos=False))

    def decode(self, ids: list[int]) -> str:
        return str(self._tekken.decode(ids, special_token_policy=self._left_out))

    def chat(self, messages: list[Any], tools: list[Any] | None) -> list[int] | None:
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        request: Any = ChatCompletionRequest.from_openai(messages=messages, tools=tools)
        return list(self._mistral.encode_chat_completion(request).tokens)
