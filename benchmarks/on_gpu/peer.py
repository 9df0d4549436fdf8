"""transformers beside us: eager, and with a static cache under torch.compile and CUDA graphs."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

from on_gpu.scale import Work

Step = Callable[[], object]


def load_model(work: Work) -> Any:
    """transformers' model of the checkpoint, BF16, on the device."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        work.checkpoint, dtype=torch.bfloat16, attn_implementation="sdpa", local_files_only=True
    )
    return model.to(work.scale.device).eval()


class Peer:
    """Prefill and decode of one model, each as a call without arguments that can be timed."""

    def __init__(self, model: Any, work: Work, *, compiled: bool) -> None:
        self._model, self._scale, self._compiled = model, work.scale, compiled
        self._forward = model
        if compiled:
            torch._dynamo.reset()
            options: dict[str, Any] = (
                {"backend": "eager"} if work.scale.tiny else {"mode": "reduce-overhead"}
            )
            self._forward = torch.compile(model, dynamic=False, **options)

    def prefill(self, length: int) -> Step:
        """A whole prompt, logits of its last token."""
        ids = self._ids(1, length)

        def step() -> object:
            cache = self._cache(1, length)
            return self._model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits

        return step

    def decode(self, rows: int, context: int, steps: int) -> Step:
        """One token a row behind `context` of them; a call advances the cache."""
        cache = self._cache(rows, context + steps)
        self._model(input_ids=self._ids(rows, context), past_key_values=cache, logits_to_keep=1)
        state = {"next": context}
        one = self._ids(rows, 1)

        def step() -> object:
            position = torch.full((rows, 1), state["next"], device=self._scale.device)
            state["next"] += 1
            if self._compiled and not self._scale.tiny:
                torch.compiler.cudagraph_mark_step_begin()
            return self._forward(
                input_ids=one, past_key_values=cache, position_ids=position, logits_to_keep=1
            ).logits

        return step

    def _cache(self, rows: int, length: int) -> Any:
        if not self._compiled:
            return transformers.DynamicCache(config=self._model.config)
        return transformers.StaticCache(config=self._model.config, max_cache_len=length)

    def _ids(self, rows: int, length: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, self._scale.config.vocab_size, (rows, length), generator=generator)
        return ids.to(self._scale.device)
