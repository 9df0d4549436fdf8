"""Log-probabilities that evaluation harnesses read, against transformers on the same checkpoint."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytestmark = pytest.mark.model


def test_an_echoed_prompt_has_the_log_probabilities_of_transformers(
    tekken: Any, tekken_bundle: Path
) -> None:
    """As lm-eval's local-completions asks for them: `echo`, `logprobs`, no new tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    prompts = np.random.default_rng(0).integers(1000, 130_000, (3, 90)).tolist()
    prompts[1] = prompts[1][:7]
    body = {"prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
    answer = httpx.post(f"{tekken.url}/v1/completions", json=body, timeout=300).json()
    model = AutoModelForCausalLM.from_pretrained(
        tekken_bundle.parent / "checkpoint", dtype=torch.float32
    )
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        with torch.no_grad():
            rows = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        wanted = [rows[at, token].item() for at, token in enumerate(prompt[1:])]
        got = choice["logprobs"]["token_logprobs"]
        assert got[0] is None
        assert got[1:] == pytest.approx(wanted, abs=1e-3)
        tops = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][1:]]
        assert tops == pytest.approx(rows[:-1].max(-1).values.tolist(), abs=1e-3)
