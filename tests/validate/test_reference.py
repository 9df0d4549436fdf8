"""The streamed reference is what transformers' whole model computes."""

import gc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.validate import reference as reference_module
from nemo_trt.validate.reading.own import OwnWeights
from nemo_trt.validate.reference import compute_reference
from nemo_trt.validate.sequences import TokenSequence

pytestmark = pytest.mark.model

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


def test_no_more_than_a_layer_or_a_block_of_the_embedding_is_held(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a weight is read, only weights of its own layer, or one block, are in memory."""
    checkpoint = open_checkpoint(tiny_checkpoint)
    block_rows, width = 64, checkpoint.config.hidden_size
    held: list[tuple[str, int, StorageWeakRef]] = []
    alive: list[tuple[set[str], int]] = []  # at each read: layers, and bytes of table rows

    def layer_of(name: str) -> str:
        return name.rpartition(".layers.")[2].partition(".")[0]

    class Counting(OwnWeights):
        def weight(self, name: str) -> Tensor:
            return self._counted(layer_of(name), super().weight(name))

        def rows(self, name: str, rows: Sequence[int]) -> Tensor:
            return self._counted("rows", super().rows(name, rows))

        def _counted(self, kind: str, tensor: Tensor) -> Tensor:
            gc.collect()
            held[:] = [one for one in held if not one[2].expired()]
            tensor = tensor.float()  # in the reference's dtype: it makes no copy
            storage = tensor.untyped_storage()
            held.append((kind, storage.nbytes(), StorageWeakRef(storage)))
            table = sum(num_bytes for kind, num_bytes, _ in held if kind == "rows")
            alive.append(({kind for kind, *_ in held} - {"rows"}, table))
            return tensor

    monkeypatch.setattr(reference_module, "open_weights", lambda one, _: Counting(one))
    monkeypatch.setattr(reference_module, "_HEAD_ROWS", block_rows)
    gc.collect()
    gc.freeze()  # what PyTorch and transformers hold is not looked through at every read
    try:
        compute_reference(checkpoint, [TokenSequence(name="a", tokens=TOKENS)])
    finally:
        gc.unfreeze()
    assert {"0", "1"} <= set().union(*(layers for layers, _ in alive))
    assert all(len(layers) <= 1 for layers, _ in alive)
    # Two blocks while one takes the other's place; the tokens' own rows before the layers.
    assert block_rows * width * 4 <= max(table for _, table in alive) <= 2 * block_rows * width * 4
    assert checkpoint.config.vocab_size > 4 * block_rows


def test_a_repeated_context_stands_where_tokens_would(tiny_checkpoint: Path) -> None:
    """transformers' own model over a cache that holds the same blocks."""
    from transformers import AutoModelForCausalLM, DynamicCache

    checkpoint = open_checkpoint(tiny_checkpoint)
    near = TokenSequence(name="near", tokens=TOKENS)
    far = TokenSequence(name="far", tokens=TOKENS[:6], start=100)
    reference = compute_reference(checkpoint, [near, far])
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    cache = DynamicCache()
    for layer in range(checkpoint.config.num_layers):
        key, value = (
            torch.from_numpy(reference.context.repeated(layer, kind, 100))[None]
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


def test_a_repeated_context_is_what_the_tokens_themselves_leave_at_that_place(
    tiny_checkpoint: Path,
) -> None:
    """The first layer's keys know nothing but token and position: there it can be compared."""
    from transformers import AutoModelForCausalLM

    near = TokenSequence(name="near", tokens=TOKENS)
    context = compute_reference(open_checkpoint(tiny_checkpoint), [near]).context
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    with torch.no_grad():
        output = model(torch.tensor([TOKENS * 3]), use_cache=True)
    held = output.past_key_values.layers[0]
    for kind, expected in (("key", held.keys), ("value", held.values)):
        found = context.repeated(0, kind, 60)
        assert found.shape == expected[0].shape
        np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-2, atol=1e-2)
        assert not (found.view(np.uint32) & 0xFFFF).any()  # exact in BF16
