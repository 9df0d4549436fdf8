"""Which tokens end an answer: every one that the checkpoint names anywhere."""

from nemo_trt.config import ModelConfig

from .tokenizers import Tokenizer


def end_tokens(config: ModelConfig, tokenizer: Tokenizer | None) -> frozenset[int]:
    """The model's end tokens; none is fine.

    config.json, generation_config.json, a GGUF header and the tokenizer's own files may each name
    others, and each of them ends an answer.
    """
    named = {*config.eos_token_ids, *(tokenizer.eos_ids if tokenizer else ())}
    return frozenset(token for token in named if token < config.vocab_size)
