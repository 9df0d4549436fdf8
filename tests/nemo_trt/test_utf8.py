"""Text that UTF-8 cannot hold is refused wherever it comes in."""

from pathlib import Path
from typing import Any

import pytest

from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.errors import RequestError
from nemo_trt.serve.grammars import VocabularyGrammars
from nemo_trt.utf8 import require_utf8

pytestmark = pytest.mark.unit

HALF = "cut \ud83d"


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module", params=["tekken", "huggingface"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from nemo_trt.export.checkpoints.tokenizer_files import tekken_of_mistral_common

    if request.param == "huggingface":
        return open_tokenizer(request.getfixturevalue("sample_tokenizer"))
    folder: Path = tmp_path_factory.mktemp("tekken")
    (folder / "tekken.json").write_bytes(tekken_of_mistral_common().read_bytes())
    return open_tokenizer(folder)


def test_the_message_names_where_it_stands() -> None:
    require_utf8({"a": ["é", {"b": 1, 2: None}], "🙂": ()}, "x")
    for value, path in (
        (HALF, "x"),
        ([1, [HALF]], "x[1][0]"),
        ({"a": {"b": HALF}}, "x.a.b"),
        ({"a": {HALF: 1}}, "x.a"),
    ):
        with pytest.raises(RequestError) as raised:
            require_utf8(value, "x")
        assert str(raised.value).startswith(f"{path} must be text that UTF-8 can hold")


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("prompt", lambda t: t.encode(HALF, bos=True)),
        (r"messages\[0\].content", lambda t: t.chat(user(HALF))),
        (r"messages\[0\].content\[0\].text", lambda t: t.chat(user([{"text": HALF}]))),
        (r"tools\[0\].function", lambda t: t.chat(user("x"), [{"function": {HALF: 1}}])),
        (r"stop\[0\]", lambda t: SamplingParams(stop=(HALF,))),
        ("regex", lambda t: VocabularyGrammars(t, t.vocab_size, ()).regex(HALF)),
        ("grammar", lambda t: VocabularyGrammars(t, t.vocab_size, ()).lark(HALF)),
        (
            r"schema.enum\[0\]",
            lambda t: VocabularyGrammars(t, t.vocab_size, ()).json_schema({"enum": [HALF]}),
        ),
    ],
)
def test_no_text_of_a_request_may_hold_half_a_character(
    name: str, use: Any, tokenizer: Any
) -> None:
    with pytest.raises(RequestError, match=f"^{name} must be text that UTF-8 can hold"):
        use(tokenizer)


def test_a_template_cannot_make_such_text(tmp_path: Path, sample_tokenizer: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((sample_tokenizer / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ '\\ud83d' }}")
    with pytest.raises(RequestError, match="must be text that UTF-8 can hold"):
        open_tokenizer(tmp_path).chat(user("x"))


@pytest.mark.parametrize("name", ["run", "chat"])
def test_what_comes_in_by_a_pipe_must_be_utf8(name: str, tekken_bundle: Path) -> None:
    from importlib import import_module

    from click.testing import CliRunner

    command = import_module(f"nemo_trt.cli.{name}").command
    arguments = [str(tekken_bundle), *(["-"] if name == "run" else [])]
    result = CliRunner().invoke(command, arguments, input=b"caf\xe9\n")
    assert isinstance(result.exception, RequestError)
    assert "must be text that UTF-8 can hold" in str(result.exception)
