"""A tokenizer that gives other tokens than its makers' fails validation."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_trt.engines.tokenizers import Detokenizer, open_tokenizer
from nemo_trt.engines.tokenizers.tekken import TekkenTokenizer
from nemo_trt.export.checkpoints.tokenizer_files import in_folder, tekken_of_mistral_common
from nemo_trt.validate.tokens import TokenizerVerdict, judge_tokenizer

pytestmark = pytest.mark.model


def judged(bundle: Path, source: Path) -> TokenizerVerdict:
    checkpoint: Any = SimpleNamespace(tokenizer_files=in_folder(source))
    return judge_tokenizer(open_tokenizer(bundle), checkpoint)


def test_the_sample_models_tokenizer_is_transformers(sample_tokenizer: Path) -> None:
    verdict = judged(sample_tokenizer, sample_tokenizer)
    assert verdict.failures == () and str(verdict.judge).startswith("transformers")
    assert "one turn" in verdict.chats


def test_a_tokenizer_json_alone_is_judged_too(sample_tokenizer: Path, tmp_path: Path) -> None:
    shutil.copyfile(sample_tokenizer / "tokenizer.json", tmp_path / "tokenizer.json")
    verdict = judged(tmp_path, tmp_path)
    assert verdict.failures == () and verdict.judge and verdict.chats == ()


def test_tekken_is_mistral_commons(tmp_path: Path) -> None:
    shutil.copyfile(tekken_of_mistral_common(), tmp_path / "tekken.json")
    verdict = judged(tmp_path, tmp_path)
    assert verdict.failures == () and str(verdict.judge).startswith("mistral-common")
    assert len(verdict.chats) == 3


def exchange_two_tokens(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    one, other = "ĠParis", "Paris"  # they differ by the space before them alone
    assert one in vocabulary and other in vocabulary
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(data))


def lower_case_first(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(data))


def other_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    data = json.loads(path.read_text())
    assert "<|im_start|>assistant" in data["chat_template"]
    template = data["chat_template"].replace("<|im_start|>assistant", "<|im_start|>user")
    data["chat_template"] = template
    path.write_text(json.dumps(data))


def test_an_altered_tekken_fails(tmp_path: Path) -> None:
    source, bundle = tmp_path / "source", tmp_path / "bundle"
    for folder in (source, bundle):
        folder.mkdir()
    shutil.copyfile(tekken_of_mistral_common(), source / "tekken.json")
    data = json.loads((source / "tekken.json").read_text())
    one, other = data["vocab"][3000], data["vocab"][4000]
    for field in ("token_bytes", "token_str"):
        one[field], other[field] = other[field], one[field]
    (bundle / "tekken.json").write_text(json.dumps(data))
    failures = judged(bundle, source).failures
    assert any("got 2 with another" in failure for failure in failures), failures


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "two tokens exchanged": (exchange_two_tokens, "got 2 with another"),
    "another normalizer": (lower_case_first, "must have the tokens"),
    "another chat template": (other_template, "a chat with one turn"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_altered_tokenizer_fails(name: str, sample_tokenizer: Path, tmp_path: Path) -> None:
    plant, words = FAULTS[name]
    shutil.copytree(sample_tokenizer, tmp_path / "bundle")
    plant(tmp_path / "bundle")
    failures = judged(tmp_path / "bundle", sample_tokenizer).failures
    assert any(words in failure for failure in failures), failures


def without_tools(chat: Any, messages: Any, tools: Any = None, **named: Any) -> Any:
    return chat(messages, None, **named)


def without_system(chat: Any, messages: Any, tools: Any = None, **named: Any) -> Any:
    return chat([one for one in messages if one["role"] != "system"], tools, **named)


def last_turn_alone(chat: Any, messages: Any, tools: Any = None, **named: Any) -> Any:
    return chat(messages[-1:], tools, **named)


CHATS: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "tools are left out": (without_tools, {"tools"}),
    "the system prompt is left out": (without_system, {"a system prompt and several turns"}),
    "earlier turns are left out": (last_turn_alone, {"a system prompt and several turns"}),
}


@pytest.mark.parametrize("name", CHATS)
def test_a_conversation_that_loses_a_part_fails(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, chats = CHATS[name]
    shutil.copyfile(tekken_of_mistral_common(), tmp_path / "tekken.json")
    chat = TekkenTokenizer.chat
    monkeypatch.setattr(
        TekkenTokenizer,
        "chat",
        lambda self, *args, **named: change(partial(chat, self), *args, **named),
    )
    failures = judged(tmp_path, tmp_path).failures
    assert len(failures) == len(chats)
    assert all(any(f"a chat with {one}" in words for words in failures) for one in chats)


def test_streamed_text_that_is_not_the_decoded_text_fails(
    sample_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that decodes every token alone breaks characters of several tokens."""
    monkeypatch.setattr(
        Detokenizer, "push", lambda self, token: str(self._tokenizer.decode([token]))
    )
    failures = judged(sample_tokenizer, sample_tokenizer).failures
    assert failures and all("must stream as it is decoded" in words for words in failures)


def test_what_cannot_be_judged_is_said(sample_tokenizer: Path, tmp_path: Path) -> None:
    nothing: Any = SimpleNamespace(tokenizer_files=())
    assert "no tokenizer" in str(judge_tokenizer(None, nothing).unjudged)
    assert "no tokenizer" in str(
        judge_tokenizer(open_tokenizer(sample_tokenizer), nothing).unjudged
    )
