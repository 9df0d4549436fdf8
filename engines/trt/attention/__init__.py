"""Paged attention in Triton: decode, prefill and the write of new keys and values."""
