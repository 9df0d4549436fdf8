"""API keys: files as people write them, and no list that is empty by mistake."""

import logging
from pathlib import Path

import pytest

from nemo_trt.errors import RequestError
from nemo_trt.serve.keys import KEYS_VARIABLE, read_keys

pytestmark = pytest.mark.unit


def written(folder: Path, data: bytes, mode: int = 0o600) -> Path:
    file = folder / "keys"
    file.write_bytes(data)
    file.chmod(mode)
    return file


def test_without_file_and_variable_there_are_no_keys() -> None:
    assert read_keys(None, {}) == ()


def test_bom_comments_and_empty_lines_are_no_keys(tmp_path: Path) -> None:
    file = written(tmp_path, b"\xef\xbb\xbf# keys of the team\r\n\r\none\r\n  two \n#three\n")
    assert read_keys(file, {KEYS_VARIABLE: "four, five,"}) == ("one", "two", "four", "five")


@pytest.mark.parametrize("data", [b"", b"\n \n", b"# none yet\n", b"\xef\xbb\xbf"])
def test_a_file_without_a_key_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="must hold at least one API key"):
        read_keys(written(tmp_path, data), {})
    with pytest.raises(RequestError, match="must hold at least one API key"):
        read_keys(written(tmp_path, data), {KEYS_VARIABLE: "one"})


@pytest.mark.parametrize("value", ["", " ", ",", " , ,"])
def test_a_variable_without_a_key_does_not_open_the_server(value: str) -> None:
    with pytest.raises(RequestError, match=f"{KEYS_VARIABLE} must hold"):
        read_keys(None, {KEYS_VARIABLE: value})


def test_other_bytes_than_utf8_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="must be text in UTF-8"):
        read_keys(written(tmp_path, b"key\xff\xfe\n"), {})


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o640, 1), (0o644, 1), (0o604, 1)])
def test_a_file_that_others_can_read_is_named(
    mode: int, warned: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="nemo_trt.serve"):
        assert read_keys(written(tmp_path, b"secret\n", mode), {}) == ("secret",)
    assert len(caplog.records) == warned
    assert "secret" not in caplog.text
