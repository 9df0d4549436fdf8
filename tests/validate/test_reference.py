"""The streamed reference is what transformers' whole model computes."""

import gc
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


def test_no_more_than_a_layer_is_held(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a weight is read, only weights of its own layer are still in memory."""
    held: list[tuple[str, StorageWeakRef]] = []
    layers: list[set[str]] = []

    def layer_of(name: str) -> str:
        return name.rpartition(".layers.")[2].partition(".")[0]

    class Watched(OwnWeights):
        def weight(self, name: str) -> Tensor:
            gc.collect()
            alive = {layer_of(one) for one, storage in held if not storage.expired()}
            layers.append(alive | {layer_of(name)})
            found = super().weight(name).float()  # in the reference's dtype: it makes no copy
            held.append((name, StorageWeakRef(found.untyped_storage())))
            return found

    monkeypatch.setattr(reference_module, "open_weights", lambda checkpoint, _: Watched(checkpoint))
    compute_reference(open_checkpoint(tiny_checkpoint), [TokenSequence(name="a", tokens=TOKENS)])
    assert {"0", "1"} <= set().union(*layers) and all(len(names) == 1 for names in layers)


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
