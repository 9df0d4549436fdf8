"""The streamed reference is what transformers' whole model computes."""

from pathlib import Path

import numpy as np
import torch

from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.validate.cases import TokenSequence, synthetic_block
from nemo_trt.validate.reference import compute_reference

TOKENS = tuple(np.random.default_rng(2).integers(0, 512, 20).tolist())


def test_layer_by_layer_equals_the_whole_model(tiny_checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    sequences = [
        TokenSequence(name="a", tokens=TOKENS),
        TokenSequence(name="b", tokens=TOKENS[3:9]),
    ]
    reference = compute_reference(open_checkpoint(tiny_checkpoint), sequences)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    for sequence in sequences:
        with torch.no_grad():
            expected = model(torch.tensor([sequence.tokens])).logits[0].numpy()
        np.testing.assert_allclose(reference.logits[sequence.name], expected, rtol=1e-4, atol=1e-5)
    assert 0 < reference.noise < 1e-4


def test_synthetic_keys_stand_where_tokens_would(tiny_checkpoint: Path) -> None:
    """transformers' own model over a cache that holds the same blocks."""
    from transformers import AutoModelForCausalLM, DynamicCache

    checkpoint = open_checkpoint(tiny_checkpoint)
    near = TokenSequence(name="near", tokens=TOKENS)
    far = TokenSequence(name="far", tokens=TOKENS[:6], start=100, seed=7)
    reference = compute_reference(checkpoint, [near, far])
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    cache = DynamicCache()
    for layer in range(checkpoint.config.num_layers):
        key, value = (
            torch.from_numpy(synthetic_block(checkpoint.config, far, layer, kind))[None]
            for kind in ("key", "value")
        )
        cache.update(key, value, layer)
    with torch.no_grad():
        output = model(
            torch.tensor([far.tokens]),
            past_key_values=cache,
            position_ids=torch.arange(100, 106)[None],
        )
    np.testing.assert_allclose(
        reference.logits["far"], output.logits[0].numpy(), rtol=1e-4, atol=1e-5
    )


def test_synthetic_blocks_are_seeded_and_exact_in_bf16(tiny_checkpoint: Path) -> None:
    config = open_checkpoint(tiny_checkpoint).config
    far = TokenSequence(name="far", tokens=TOKENS[:2], start=50, seed=7)
    block = synthetic_block(config, far, 0, "key")
    assert block.shape == (config.num_kv_heads, 50, config.head_dim)
    np.testing.assert_array_equal(block, synthetic_block(config, far, 0, "key"))
    assert not np.array_equal(block, synthetic_block(config, far, 1, "key"))
    assert not (block.view(np.uint32) & 0xFFFF).any()
