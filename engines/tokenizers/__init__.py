"""Tokenisers: Tekken and tokenizer.json behind one protocol, and text that streams whole."""

from .detokenizer import Detokenizer
from .open import open_tokenizer
from .tokenizer import Message, Tokenizer

__all__ = ["Detokenizer", "Message", "Tokenizer", "open_tokenizer"]
