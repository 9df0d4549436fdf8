"""Chooses the tokeniser by the files that a bundle carries."""

from pathlib import Path

from nemo_trt.errors import BundleError

from .tokenizer import Tokenizer

TEKKEN = "tekken.json"
HUGGING_FACE = "tokenizer.json"


def open_tokenizer(folder: Path) -> Tokenizer:
    """Open the tokeniser in `folder`. Tekken counts where both forms are there: it is the original.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    if (folder / TEKKEN).is_file():
        from .tekken import TekkenTokenizer

        return TekkenTokenizer(folder / TEKKEN)
    if (folder / HUGGING_FACE).is_file():
        from .huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer(folder)
    raise BundleError(f"{folder} must hold {TEKKEN} or {HUGGING_FACE}, got neither.")
