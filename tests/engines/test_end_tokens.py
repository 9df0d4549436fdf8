"""Every end token that a checkpoint names anywhere ends an answer."""

import json
import shutil
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nemo_trt.config import ModelConfig
from nemo_trt.engines.end_tokens import end_tokens
from nemo_trt.engines.generation import Generation
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.tokenizers import Tokenizer, open_tokenizer

pytestmark = pytest.mark.unit

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    num_layers=1,
    hidden_size=64,
    intermediate_size=64,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=49152,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=64,
    tied_head=True,
    bos_token_id=None,
    eos_token_ids=(2, 7),
)


def tokenizer_ending_with(token: str | None, folder: Path, sample: Path) -> Tokenizer:
    shutil.copy(sample / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    return open_tokenizer(folder)


@pytest.mark.parametrize(
    ("token", "named", "expected"),
    [
        ("<|endoftext|>", (2, 7), {0, 2, 7}),
        (None, (2,), {2}),
        ("<|endoftext|>", (), {0}),
        ("no entry of the vocabulary", (), set()),
        (None, (), set()),
    ],
)
def test_answers_end_with_the_tokenizers_tokens_and_with_the_models(
    token: str | None,
    named: tuple[int, ...],
    expected: set[int],
    tmp_path: Path,
    sample_tokenizer: Path,
) -> None:
    tokenizer = tokenizer_ending_with(token, tmp_path, sample_tokenizer)
    config = replace(CONFIG, eos_token_ids=named)
    assert end_tokens(config, tokenizer) == expected
    for end in (0, 2, 7):
        row = Generation(0, [1], SamplingParams(max_tokens=9, temperature=0), config, tokenizer)
        logits = np.zeros(config.vocab_size, np.float32)
        logits[end] = 9
        assert (row.next(logits, last=False).finish_reason == "stop") is (end in expected)


@pytest.mark.model
def test_grammars_of_a_server_end_with_the_same_tokens(
    tmp_path: Path, sample_tokenizer: Path
) -> None:
    from nemo_trt.serve.grammar_trial import GrammarTrial
    from nemo_trt.serve.http.local_service import LocalService

    tokenizer = tokenizer_ending_with("<|endoftext|>", tmp_path, sample_tokenizer)
    service: Any = LocalService.__new__(LocalService)
    service._grammars, service._making = None, threading.Lock()
    service._trial = GrammarTrial()
    service.require = lambda: SimpleNamespace(tokenizer=tokenizer, config=CONFIG)
    with closing(service._trial):
        state = service.grammars().regex("[0-9]+")
    for one in tokenizer.encode("12", bos=False):
        state.accept(one)
    allowed = np.flatnonzero(state.allowed())
    assert {int(one) for one in allowed if not tokenizer.token_bytes(int(one))} == {0, 2, 7}
