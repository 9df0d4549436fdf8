"""Reference logits: transformers' own modules, fed layer by layer with weights that others read.

The model class, its RoPE, the reading of weights (`validate.reading`) and, for Hugging Face
checkpoints, of config.json are not ours, so that a fault of ours cannot cancel out. Memory: one
layer, and the embedding in blocks of rows.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from nemo_trt.config import ModelConfig
from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.progress import Progress, Silent

from .context import Context
from .explain.places import COS, EMBEDDING, HIDDEN, LOGITS, NORM, SIN, Watch, rotate, watched
from .reading import WeightSource, open_weights
from .sequences import TokenSequence

_PROBE_TOKENS = 16
_HEAD_ROWS = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Logits to compare with.

    Attributes:
        logits: sequence name -> (n, V) float32, of the tokens that the sequence wants.
        noise: largest difference, on a probe, between these and the same in float64.
        context: keys and values of the first sequence, before which others may stand.
        reader: who read the weights, and whether that is not this project.
        dtype: in which they were computed.
    """

    logits: dict[str, NDArray[np.float32]]
    noise: float
    context: Context
    reader: str
    independent: bool
    dtype: str = "float32"
    transformers_version: str = field(default_factory=lambda: str(transformers.__version__))


@torch.no_grad()
def compute_reference(
    checkpoint: Checkpoint,
    sequences: Sequence[TokenSequence],
    progress: Progress | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    watch: Watch | None = None,
) -> Reference:
    """Compute the logits of every token of `sequences`, in fp32 unless told otherwise.

    The first sequence must start at 0. All go through a layer before the next is read. A probe goes
    along in float64: what it differs by is the reference's own noise, within which tokens are tied.

    Args:
        device: where the layers compute, in PyTorch's words.
        watch: is given what every part computes of the last sequence, part by part.

    Raises:
        CheckpointError: transformers refuses the checkpoint's config.
    """
    progress = progress or Silent()
    config = checkpoint.config
    model = _empty_model(checkpoint)
    weights = open_weights(checkpoint, model)
    first = sequences[0]
    probe = TokenSequence(name="", tokens=first.tokens[:_PROBE_TOKENS])
    runs = [_Run(one, model, weights, dtype, device) for one in sequences]
    runs[-1].watch = watch
    if watch:
        watch("embedding", runs[-1].begun())
    blocks: dict[tuple[int, str], NDArray[np.float32]] = {}
    context = Context(blocks, config.rope_theta)
    double = _Run(probe, model, weights, torch.float64, device)
    progress.phase("reference: layers", config.num_layers)
    for index, layer in enumerate(model.model.layers):
        prefix = f"model.layers.{index}."
        layer.load_state_dict(  # of a dict without a name, which would outlive the layer
            {
                name.removeprefix(prefix): weights.weight(name).to(device, dtype)
                for name, _ in config.tensors()
                if name.startswith(prefix)
            },
            assign=True,
        )
        for run in runs:
            keys, values = run.through(layer, index, context)
            if run is runs[0]:
                blocks[index, "key"], blocks[index, "value"] = keys, values
        double.through(layer.double(), index, context)
        layer.to("meta")
        progress.advance()
    progress.phase("reference: head")
    norm = model.model.norm
    norm.load_state_dict(
        {"weight": weights.weight("model.norm.weight").to(device, dtype)}, assign=True
    )
    head = "model.embed_tokens.weight" if config.tied_head else "lm_head.weight"
    size = config.vocab_size
    logits = _head([norm(run.wanted()) for run in runs], weights, head, size)
    if watch:
        hidden, wanted = runs[-1].hidden, logits[-1].float().cpu().numpy()
        seen = {HIDDEN: _values(hidden), NORM: _values(norm(hidden)), LOGITS: wanted[None]}
        watch("head", seen)
    exact = _head([norm.double()(double.hidden[0])], weights, head, size)[0]
    compared = logits[0][: len(probe.tokens)].double()
    return Reference(
        logits={
            sequence.name: one.float().cpu().numpy()
            for sequence, one in zip(sequences, logits, strict=True)
        },
        noise=float((compared - exact).abs().max()),
        context=context,
        reader=weights.reader,
        independent=weights.independent,
        dtype=str(dtype).removeprefix("torch."),
    )


class _Run:
    """One sequence on its way through the layers: (1, S, C) hidden states, angles and mask."""

    def __init__(
        self,
        sequence: TokenSequence,
        model: Any,
        weights: WeightSource,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.sequence, self.dtype = sequence, dtype
        rows = weights.rows("model.embed_tokens.weight", sequence.tokens)
        self.hidden = rows.to(device, dtype)[None]
        end = sequence.start + len(sequence.tokens)
        positions = torch.arange(sequence.start, end, device=device)
        rotary = type(model.model.rotary_emb)(config=model.config).to(device)  # ours has data
        self.angles = rotary(self.hidden, positions[None])
        keys = torch.arange(end, device=device)
        hidden = torch.full(
            (len(positions), len(keys)), torch.finfo(dtype).min, dtype=dtype, device=device
        )
        self.mask = hidden.masked_fill(keys <= positions[:, None], 0)[None, None]  # (1, 1, S, T)
        self.watch: Watch | None = None

    def begun(self) -> dict[str, NDArray[np.float32]]:
        """The embedded tokens and the angles, before the first layer."""
        return {EMBEDDING: _values(self.hidden), **self._turned()}

    def _turned(self) -> dict[str, NDArray[np.float32]]:
        half = self.angles[0].shape[-1] // 2  # transformers holds every one twice
        return dict(zip((COS, SIN), (_values(one[..., :half]) for one in self.angles), strict=True))

    def wanted(self) -> Tensor:
        """Hidden states of the tokens whose logits are kept, (n, C)."""
        indices = self.sequence.wanted
        return self.hidden[0] if indices is None else self.hidden[0, list(indices)]

    def through(
        self, layer: Any, index: int, context: Context
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Go through one layer, behind the context if the sequence does not start at 0.

        Returns keys and values, (K, T, D) each, of all that the sequence saw.
        """
        cache = transformers.DynamicCache()
        if self.sequence.start:
            blocks = (
                torch.from_numpy(context.repeated(index, kind, self.sequence.start))[None]
                for kind in ("key", "value")
            )
            cache.update(*(block.to(self.hidden.device, self.dtype) for block in blocks), index)
        seen: dict[str, NDArray[np.float32]] = {}
        with watched(layer, seen) if self.watch else nullcontext():
            self.hidden = layer(
                self.hidden,
                attention_mask=self.mask,
                past_key_values=cache,
                use_cache=True,
                position_embeddings=self.angles,
            )
        held = cache.layers[index]
        if self.watch:
            rotate(layer, seen, self.angles)
            seen |= self._turned()
            seen |= {
                "self_attn.key_cache": _values(held.keys),
                "self_attn.value_cache": _values(held.values),
            }
            self.watch(index, seen)
        return _values(held.keys[0]), _values(held.values[0])


def _empty_model(checkpoint: Checkpoint) -> Any:
    """transformers' model of the checkpoint, on the meta device."""
    try:
        if checkpoint.format == "hf":
            config = transformers.AutoConfig.from_pretrained(checkpoint.path, local_files_only=True)
        else:
            config = _config(checkpoint.config)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, attn_implementation="eager"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"transformers refuses {checkpoint.path}: {error}") from error
    return model.eval()


def _config(config: ModelConfig) -> Any:
    """transformers' config of a checkpoint that has no config.json."""
    kinds = {
        "MistralForCausalLM": transformers.MistralConfig,
        "LlamaForCausalLM": transformers.LlamaConfig,
    }
    return kinds[config.architecture](
        num_hidden_layers=config.num_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tied_head,
        sliding_window=None,
    )


def _values(tensor: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return values


def _head(hidden: list[Tensor], weights: WeightSource, name: str, size: int) -> list[Tensor]:
    """Logits (S, V) of each (S, C), the head read in blocks of rows."""
    joined = torch.cat(hidden)  # (sum of S, C)
    logits = torch.empty(len(joined), size, dtype=joined.dtype, device=joined.device)
    for start in range(0, size, _HEAD_ROWS):
        rows = weights.rows(name, range(start, min(start + _HEAD_ROWS, size)))
        logits[:, start : start + _HEAD_ROWS] = joined @ rows.to(joined.device, joined.dtype).t()
    return list(torch.split(logits, [len(one) for one in hidden]))
