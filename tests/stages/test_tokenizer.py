"""What is wrong with a checkpoint's tokenizer is said at export, not when the bundle is used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Library

from nemo_trt.engines.runner import Runner
from nemo_trt.errors import CheckpointError, NemoTrtError, RequestError
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.stages.export import export_checkpoint
from nemo_trt.stages.tokenizer import require_tokenizer, tokenizer_note

pytestmark = pytest.mark.model

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 14801223\n"


def write_tokenizer(folder: Path, *, added: int = 0) -> None:
    """A byte-level tokenizer of 256 entries, and as many added tokens."""
    alphabet = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)])]
    alphabet += [chr(256 + n) for n in range(256 - len(alphabet))]
    library = Library(models.BPE(vocab={one: n for n, one in enumerate(alphabet)}, merges=[]))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(f"<{n}>", special=True) for n in range(added)])
    library.save(str(folder / "tokenizer.json"))


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, target)
    return target


def write(name: str, text: str = "") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def both(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [step(folder) for step in steps]


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "tekken.json is a pointer": (write("tekken.json", POINTER), "tekken.json .*Git LFS pointer"),
    "tokenizer.json is a pointer": (write("tokenizer.json", POINTER), "tokenizer.json .*git lfs"),
    "the template is a pointer": (
        both(write_tokenizer, write("chat_template.jinja", POINTER)),
        "chat_template.jinja .*Git LFS pointer",
    ),
    "SentencePiece": (
        both(write("tokenizer.model"), write("tokenizer_config.json", "{}")),
        "tokenizer.model, which is not read. Convert it: python -c .*save_pretrained",
    ),
    "SentencePiece of Mistral": (write("tokenizer.model.v3"), "v3, which is not read. Convert it"),
    "GPT-2's files": (
        both(write("vocab.json", "{}"), write("merges.txt")),
        "vocab.json, which is not read. Convert it",
    ),
    "a config alone": (write("tokenizer_config.json", "{}"), "got neither"),
    "no tokenizer": (write("tokenizer.json", "{}"), "tokenizer.json must be a tokenizer"),
    "no Tekken": (write("tekken.json", "{}"), "must be a readable Tekken file"),
    "too many tokens": (
        lambda folder: write_tokenizer(folder, added=300),
        "must be below 512, .* got up to 555",
    ),
    "an end token that is no token": (
        both(write_tokenizer, write("tokenizer_config.json", '{"eos_token": "</s>"}')),
        "eos_token of tokenizer_config.json must be in the vocabulary .*'</s>'",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_export_refuses_a_tokenizer_that_cannot_be_used(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    damage, words = UNUSABLE[name]
    damage(checkpoint)
    with pytest.raises(NemoTrtError, match=words) as raised:
        export_checkpoint(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert "/nemo-trt-" not in str(raised.value)  # the checkpoint's own files are named


def test_a_tokenizer_with_all_ids_of_the_model_is_usable(checkpoint: Path) -> None:
    write_tokenizer(checkpoint, added=256)
    require_tokenizer(open_checkpoint(checkpoint))
    (checkpoint / "config.json").write_text(
        json.dumps(json.loads((checkpoint / "config.json").read_text()) | {"eos_token_id": 512})
    )
    with pytest.raises(CheckpointError, match="0 to 511, got 512"):
        open_checkpoint(checkpoint)


def test_a_template_that_cannot_be_compiled_is_said_and_stops_chats_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    from nemo_trt.cli.export import command

    write_tokenizer(checkpoint)
    (checkpoint / "chat_template.jinja").write_text("{% for m in %}")
    result = CliRunner().invoke(
        command, [str(checkpoint), str(tmp_path / "b"), "--precision", "fp32"]
    )
    assert result.exit_code == 0, result.output
    assert "Chats will not work. The chat template must be valid Jinja" in result.output
    with Runner.open(tmp_path / "b") as runner:
        assert list(runner.generate("a"))
        with pytest.raises(RequestError, match="valid Jinja"):
            list(runner.chat([{"role": "user", "content": "a"}]))


def test_a_bundle_without_a_tokenizer_is_said_to_have_none(
    checkpoint: Path, tmp_path: Path
) -> None:
    made = export_checkpoint(checkpoint, tmp_path / "bundle")
    assert "has no tokenizer" in (tokenizer_note(made) or "")
    write_tokenizer(checkpoint)
    made = export_checkpoint(checkpoint, tmp_path / "bundle", force=True)
    assert tokenizer_note(made) is None
