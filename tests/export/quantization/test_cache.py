"""An FP8 cache against transformers, whose own cache is rounded here by PyTorch."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache

from nemo_trt.cache_scales import CacheLayer, CacheScales
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.quantization.cache import CacheHooks, choose_layers
from nemo_trt.export.quantization.calibrate import calibrate
from nemo_trt.progress import Silent
from nemo_trt.quantization import Quantization

pytestmark = pytest.mark.model

SAMPLES = [np.random.default_rng(n).integers(0, 512, 9 + n).tolist() for n in range(10)]


class Rounded(DynamicCache):
    """Keys and values as a cache with these scales gives them back; those seen are kept."""

    def __init__(self, scales: CacheScales | None, config: Any) -> None:
        super().__init__(config=config)
        self.scales, self.seen = scales, {}

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *more: Any, **rest: Any
    ) -> Any:
        pair = key_states, value_states
        self.seen[layer_idx] = pair
        if self.scales and (scales := self.scales.scales(layer_idx)):
            pair = tuple(
                (one / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
                for one, scale in zip(pair, scales, strict=True)
            )
        return super().update(*pair, layer_idx, *more, **rest)


def opened(checkpoint: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


@torch.no_grad()
def answers(model: Any, samples: list[list[int]], scales: CacheScales | None) -> list[torch.Tensor]:
    """Log-probabilities (S, V) of every sample."""
    found = []
    for sample in samples:
        cache = Rounded(scales, model.config)
        logits = model(torch.tensor([sample]), past_key_values=cache, use_cache=True).logits
        found.append(logits[0].double().log_softmax(-1))
    return found


def divergence(exact: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Mean KL of every position but a sample's first, in nats."""
    kl = [(p.exp() * (p - q)).sum(-1)[1:] for p, q in zip(exact, other, strict=True)]
    return float(torch.cat(kl).mean())


def run(checkpoint: Path, samples: list[list[int]], **more: Any) -> Quantization:
    return calibrate(
        open_checkpoint(checkpoint), samples, calibration={}, max_kl=1e9, progress=Silent(), **more
    )


@pytest.fixture(scope="module")
def scales(tiny_checkpoint: Path) -> CacheScales:
    found = run(tiny_checkpoint, SAMPLES, max_cache_kl=1e9).cache
    assert found
    return found


def test_amaxes_are_those_of_transformers_cache(scales: CacheScales, tiny_checkpoint: Path) -> None:
    model, largest = opened(tiny_checkpoint), {0: [0.0, 0.0], 1: [0.0, 0.0]}
    for sample in SAMPLES:
        cache = Rounded(None, model.config)
        with torch.no_grad():
            model(torch.tensor([sample]), past_key_values=cache, use_cache=True)
        for layer, (keys, values) in cache.seen.items():
            pairs = keys.unflatten(-1, (2, -1)).norm(dim=-2)
            found = float(pairs.max()), float(values.abs().max())
            largest[layer] = [max(*both) for both in zip(largest[layer], found, strict=True)]
    for layer, one in enumerate(scales.layers):
        assert [one.key_amax, one.value_amax] == pytest.approx(largest[layer], rel=1e-5)


def test_no_position_makes_a_key_larger_than_its_amax(
    scales: CacheScales, tiny_checkpoint: Path
) -> None:
    """The calibration saw positions below 20; far ones turn the same keys elsewhere."""
    model = opened(tiny_checkpoint)
    for start in (0, 1000, 100_003):
        for sample in SAMPLES:
            cache = Rounded(None, model.config)
            where = torch.arange(start, start + len(sample))[None]
            with torch.no_grad():
                model(torch.tensor([sample]), position_ids=where, past_key_values=cache)
            for layer, (keys, _) in cache.seen.items():
                assert float(keys.abs().max()) <= scales.layers[layer].key_amax * 1.001


def test_the_divergence_is_that_of_transformers_with_a_rounded_cache(
    scales: CacheScales, tiny_checkpoint: Path
) -> None:
    model, probes = opened(tiny_checkpoint), SAMPLES[::8]
    expected = divergence(answers(model, probes, None), answers(model, probes, scales))
    assert scales.kl == pytest.approx(expected, rel=0.02)
    assert sum(one.kl for one in scales.layers) == pytest.approx(scales.kl)


def test_an_fp8_cache_is_no_part_of_what_the_groups_cost(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_checkpoint, SAMPLES)
    monkeypatch.setattr(CacheHooks, "_rounded", lambda *_: None)
    without = run(tiny_checkpoint, SAMPLES)
    assert (without.activations, without.kl) == (whole.activations, whole.kl)
    assert whole.cache and without.cache and without.cache.kl == 0 < whole.cache.kl


LAYERS = tuple(CacheLayer(key_amax=448, value_amax=896, shift=s, kl=0.0) for s in (1.0, 5.0, 4.0))


def test_layers_that_cost_most_keep_a_bf16_cache() -> None:
    assert not choose_layers(LAYERS, kl=1.0, max_kl=1.0).kept
    found = choose_layers(LAYERS, kl=1.0, max_kl=0.3)
    assert list(found.kept) == ["1", "2"] and "KL 0.5 of 1, at most 0.3" in found.kept["1"]
    assert [found.scales(layer) for layer in range(3)] == [(1.0, 2.0), None, None]
    assert len(choose_layers(LAYERS, kl=1.0, max_kl=0.0).kept) == 3


def test_what_is_written_is_read_again() -> None:
    found = choose_layers(LAYERS, kl=1.0, max_kl=0.3)
    assert CacheScales.from_dict(asdict(found)) == found
