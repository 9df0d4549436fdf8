"""Tokenisers: Tekken and tokenizer.json behind one protocol, and text that streams whole."""
