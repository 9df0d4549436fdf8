"""Errors of tokenizer libraries, which are plain Exceptions, and panics of Rust, not even that."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_trt.errors import BundleError, NemoTrtError, RequestError
from nemo_trt.shown import said


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """What a library raises while a file is opened and tried becomes a `BundleError`."""
    with _turned(lambda words: BundleError(f"{path} must be a tokenizer that is whole: {words}.")):
        yield


@contextmanager
def text_errors() -> Iterator[None]:
    """What a library raises at a text becomes a `RequestError`: others can be tokenized."""
    with _turned(
        lambda words: RequestError(f"prompt must be text that can be tokenized, got: {words}")
    ):
        yield


@contextmanager
def _turned(made: Callable[[str], NemoTrtError]) -> Iterator[None]:
    try:
        yield
    except (NemoTrtError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        raise made(said(error)) from error
