"""The decoder is the model that transformers computes, and its cache is one it can go on from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.decoder import Decoder, Numerics

pytestmark = pytest.mark.model

TOKENS = torch.randint(0, 512, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint: Path) -> Decoder:
    checkpoint = open_checkpoint(tiny_checkpoint)
    model = Decoder(checkpoint.config, Numerics(dtype=torch.float32))
    state = {
        name: torch.from_numpy(ref.read().copy()).view(torch.bfloat16).float()
        for name, ref in checkpoint.tensors.items()
    }
    model.load_state_dict(state)
    return model.eval()


def empty_cache(decoder: Decoder, rows: int, capacity: int) -> list[torch.Tensor]:
    config = decoder.config
    shape = rows, config.num_kv_heads, capacity, config.head_dim
    return [torch.zeros(shape) for _ in range(2 * config.num_layers)]


def every_position(tokens: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1]).expand(tokens.shape)


@torch.no_grad()
def test_logits_equal_those_of_transformers(decoder: Decoder, tiny_checkpoint: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    where = torch.zeros(2, dtype=torch.int64)
    logits, _ = decoder(TOKENS, where, every_position(TOKENS), empty_cache(decoder, 2, 32))
    torch.testing.assert_close(logits, reference(TOKENS).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_stepwise_decode_equals_one_pass(decoder: Decoder) -> None:
    cache = empty_cache(decoder, 2, 32)
    start = torch.zeros(2, dtype=torch.int64)
    whole, _ = decoder(TOKENS, start, every_position(TOKENS), cache)
    steps = []
    for index in range(TOKENS.shape[1]):
        token = TOKENS[:, index : index + 1]
        logits, cache = decoder(token, start + index, torch.zeros_like(token), cache)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_tied_head_is_the_embedding(decoder: Decoder) -> None:
    tied = Decoder(replace(decoder.config, tied_head=True), Numerics(dtype=torch.float32))
    tied.load_state_dict({n: p for n, p in decoder.state_dict().items() if n != "lm_head.weight"})
    untied = Decoder(decoder.config, Numerics(dtype=torch.float32))
    state = decoder.state_dict()
    untied.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    arguments = TOKENS, torch.zeros(2, dtype=torch.int64), every_position(TOKENS)
    expected, _ = untied(*arguments, empty_cache(decoder, 2, 32))
    found, _ = tied(*arguments, empty_cache(decoder, 2, 32))
    torch.testing.assert_close(found, expected)


def test_parameters_are_named_and_shaped_as_the_config_says(decoder: Decoder) -> None:
    found = [(name, tuple(p.shape)) for name, p in decoder.named_parameters()]
    assert sorted(found) == sorted(decoder.config.tensors())
