"""Calibration: a set of tokens goes through the decoder, one layer in memory at a time.

Beside it go a few probe samples in FP8: how far FP8 moves the model's answers is measured, and how
much of that each group (`nemo_trt.quantization.groups`) causes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nemo_trt.cache_scales import CacheLayer
from nemo_trt.defaults import MAX_CACHE_KL
from nemo_trt.e4m3 import scale_of
from nemo_trt.errors import ExportError, MachineError
from nemo_trt.export import ops
from nemo_trt.export.checkpoints import Checkpoint
from nemo_trt.export.decoder import Decoder, Layer, Linear, Numerics, Step
from nemo_trt.export.finite import not_finite
from nemo_trt.export.tensors import load
from nemo_trt.progress import Progress
from nemo_trt.quantization import LM_HEAD, Activation, Quantization, WeightScales

from .cache import CacheHooks, choose_layers
from .keep import choose_kept
from .observe import Method, Observer

_PROBE_EVERY = 8  # each eighth sample is a probe
_KL_ROWS = 256


@torch.no_grad()
def calibrate(
    checkpoint: Checkpoint,
    samples: Sequence[Sequence[int]],
    *,
    calibration: Mapping[str, str | int],
    method: Method = "amax",
    weight_scales: WeightScales = "per-tensor",
    max_kl: float,
    max_cache_kl: float = MAX_CACHE_KL,
    fp8_lm_head: bool = False,
    device: str = "cpu",
    progress: Progress,
) -> Quantization:
    """Measure every group's input, choose its scale, and choose the groups that stay in BF16.

    Memory: one layer's weights in the compute dtype (fp32 on a CPU, BF16 on a GPU), one of its
    groups once more, the hidden states of all samples, and the probes' logits.

    Args:
        checkpoint: unquantised.
        samples: token ids, each sample at least two.
        calibration: what the set is, for the record.
        method: see `Observer.clip`.
        max_kl: mean KL divergence, in nats, of the FP8 model's answers from the exact ones that is
            allowed on the probes; groups stay in BF16 until the rest is expected to cause less.
        max_cache_kl: likewise, of an FP8 cache alone; layers keep a BF16 cache.
        fp8_lm_head: whether the head is FP8 too.
        device: where the layers compute, in PyTorch's words.

    Raises:
        CheckpointError: a weight is NaN or infinite.
        ExportError: there is nothing to calibrate on, or the head is tied to the embedding.
    """
    config = checkpoint.config
    if not samples or min(map(len, samples)) < 2:
        raise ExportError("The calibration set must hold samples of at least two tokens each.")
    if fp8_lm_head and config.tied_head:
        raise ExportError(
            "The head must be untied to be FP8, got one tied to the embedding. "
            "Leave --fp8-lm-head out."
        )
    run = _Run(checkpoint, samples, method, weight_scales, device)
    progress.phase("calibrate: layers", config.num_layers)
    for index in range(config.num_layers):
        run.layer(index)
        progress.advance()
    progress.phase("calibrate: head")
    kl, cache_kl = run.head(fp8_lm_head)
    activations, kept = choose_kept(config, run.measured, kl=kl, max_kl=max_kl)
    return Quantization(
        weight_scales=weight_scales,
        method=method,
        calibration={**calibration, "samples": len(samples), "tokens": sum(map(len, samples))},
        activations=activations,
        weight_amax=run.weight_amax,
        kl=kl,
        max_kl=max_kl,
        kept=kept,
        cache=choose_layers(run.cache_layers, kl=cache_kl, max_kl=max_cache_kl),
    )


@dataclass(slots=True)
class _Group:
    """A group of the layer at hand: what its input does, and its weights."""

    name: str
    linears: Mapping[str, Linear]  # weight name -> projection
    observer: Observer = field(default_factory=Observer)
    observes: bool = True
    scale: Tensor | None = None  # of the input; None leaves it exact

    def hook(self, _: nn.Module, __: object, x: Tensor) -> Tensor | None:
        """Observe a group's input, or round it."""
        if self.observes:
            self.observer.add(x)
        return None if self.scale is None else ops.quantize_dequantize(x, self.scale)


def _usable(name: str) -> torch.device:
    """A PyTorch device on which a tensor was made and read."""
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError) as error:  # the latter of a build without CUDA
        reason = str(error).strip().splitlines()[0]
        raise MachineError(
            f"PyTorch must be able to compute on the device, got {name!r}: {reason}"
        ) from error
    return device


class _Run:
    """The hidden states of all samples on their way through the layers, and FP8's beside them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        samples: Sequence[Sequence[int]],
        method: Method,
        weight_scales: WeightScales,
        device: str,
    ) -> None:
        self.checkpoint, self.method, self.weight_scales = checkpoint, method, weight_scales
        self.device = _usable(device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.numerics = Numerics(dtype=self.dtype)
        with torch.device("meta"):
            self.model = Decoder(checkpoint.config, self.numerics)
        table = checkpoint.tensors["model.embed_tokens.weight"]
        self.hidden = [load(table, rows=list(one)).to(self.dtype)[None] for one in samples]
        self.probes = range(0, len(samples), _PROBE_EVERY)
        self.coarse = {number: self.hidden[number] for number in self.probes}
        self.stored = dict(self.coarse)  # of exact products over an FP8 cache
        self.cache_layers: list[CacheLayer] = []
        self.measured: dict[str, Activation] = {}
        self.weight_amax: dict[str, float] = {}

    def layer(self, index: int) -> None:
        """Take all samples through a layer, and measure its four groups and its cache."""
        layer, groups, cache = self._open(index)
        before = {number: self.hidden[number] for number in self.probes}
        for number, hidden in enumerate(self.hidden):
            self.hidden[number] = self._through(layer, hidden)
        cache.observes = False
        for group in groups:
            group.observes = False
        after = {number: self.hidden[number] for number in self.probes}
        self._cache(layer, cache, before, after)
        for group in groups:
            exact = {name: linear.weight for name, linear in group.linears.items()}
            clip = self._quantize(group)
            shift = torch.cat(
                [_shift(self._through(layer, before[n]), after[n]).flatten() for n in self.probes]
            )
            self.measured[group.name] = Activation(
                amax=group.observer.amax, clip=clip, shift=float(shift.mean()), kl=0.0
            )
            group.scale = None
            for name, linear in group.linears.items():
                linear.weight = exact[name]
        for group in groups:
            self._quantize(group)
        for number, hidden in self.coarse.items():
            self.coarse[number] = self._through(layer, hidden)

    def _cache(
        self,
        layer: Layer,
        cache: CacheHooks,
        before: Mapping[int, Tensor],
        after: Mapping[int, Tensor],
    ) -> None:
        """Measure what this layer's cache alone does in FP8, and take the probes on with all."""
        cache.rounds = True
        shift = torch.cat(
            [_shift(self._through(layer, before[n]), after[n]).flatten() for n in self.probes]
        )
        self.cache_layers.append(
            CacheLayer(
                key_amax=cache.key_amax,
                value_amax=cache.value_amax,
                shift=float(shift.mean()),
                kl=0.0,
            )
        )
        for number, hidden in self.stored.items():
            self.stored[number] = self._through(layer, hidden)
        cache.rounds = False

    def head(self, fp8: bool) -> tuple[float, float]:
        """Measure what FP8 did to the answers: KL divergence, mean over the probes' positions, of
        FP8 matmuls and of an FP8 cache."""
        norm = self.model.model.norm
        norm.load_state_dict({"weight": self._load("model.norm.weight")}, assign=True)
        exact = torch.cat([norm(self.hidden[n].to(self.device))[0, 1:] for n in self.probes])
        coarse, stored = (
            torch.cat([norm(hidden[n].to(self.device))[0, 1:] for n in self.probes])
            for hidden in (self.coarse, self.stored)
        )
        tied = self.checkpoint.config.tied_head
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        if fp8:
            observer = Observer()
            for hidden in self.hidden:
                observer.add(norm(hidden.to(self.device)))
            linear = Linear(1, 1, self.dtype)
            linear.weight = nn.Parameter(self._load(name), requires_grad=False)
            group = _Group(LM_HEAD, {name: linear}, observer)
            clip = self._quantize(group)
            assert group.scale is not None
            rounded = ops.quantize_dequantize(exact, group.scale)
            shift = _shift(rounded @ linear.weight.t(), exact @ self._load(name).t())
            self.measured[LM_HEAD] = Activation(
                amax=observer.amax, clip=clip, shift=float(shift.mean()), kl=0.0
            )
        return self._kl(exact, coarse, name), self._kl(exact, stored, name)

    def _kl(self, exact: Tensor, coarse: Tensor, name: str) -> float:
        weight = self._load(name).t()
        total = 0.0
        blocks = torch.split(exact, _KL_ROWS), torch.split(coarse, _KL_ROWS)
        for one, other in zip(*blocks, strict=True):
            log_exact = (one @ weight).double().log_softmax(-1)
            log_coarse = (other @ weight).double().log_softmax(-1)
            total += float((log_exact.exp() * (log_exact - log_coarse)).sum())
        return total / len(exact)

    def _open(self, index: int) -> tuple[Layer, list[_Group], CacheHooks]:
        prefix = f"model.layers.{index}"
        with torch.device("meta"):
            layer = Layer(self.checkpoint.config, self.numerics, index)
        state = {name: self._load(f"{prefix}.{name}") for name in layer.state_dict()}
        layer.load_state_dict(state, assign=True)
        groups = []
        for block, site, projections in (
            ("self_attn", "qkv", ("q_proj", "k_proj", "v_proj")),
            ("self_attn", "o", ("o_proj",)),
            ("mlp", "gate_up", ("gate_proj", "up_proj")),
            ("mlp", "down", ("down_proj",)),
        ):
            module = getattr(layer, block)
            linears = {f"{prefix}.{block}.{p}.weight": getattr(module, p) for p in projections}
            groups.append(_Group(f"{prefix}.{block}.{site}", linears))
            getattr(module, f"{site}_input").register_forward_hook(groups[-1].hook)
        cache = CacheHooks()
        layer.self_attn.stored_key.register_forward_hook(cache.key)
        layer.self_attn.stored_value.register_forward_hook(cache.value)
        return layer, groups, cache

    def _load(self, name: str) -> Tensor:
        return load(self.checkpoint.tensors[name]).to(self.device, self.dtype)

    def _through(self, layer: Layer, hidden: Tensor) -> Tensor:
        config, length = self.checkpoint.config, hidden.shape[1]
        start = torch.zeros(1, dtype=torch.int64)
        step = Step(*(part.to(self.device) for part in self.model.step(start, length)))
        shape = (1, config.num_kv_heads, length, config.head_dim)
        cache = torch.zeros(shape, dtype=self.dtype, device=self.device)
        result: Tensor = layer(hidden.to(self.device), (cache, cache), step)[0]
        return result.to(hidden.device)

    def _quantize(self, group: _Group) -> float:
        """Let a group compute in FP8 from now on; return the clip of its input."""
        clip = group.observer.clip(self.method)
        group.scale = torch.tensor(scale_of(clip), device=self.device)
        exact = {name: linear.weight for name, linear in group.linears.items()}
        self.weight_amax |= {name: float(one.abs().max()) for name, one in exact.items()}
        for name in exact:
            if not math.isfinite(self.weight_amax[name]):
                raise not_finite(name)
        shared = torch.tensor(scale_of(max(self.weight_amax[n] for n in exact)), device=self.device)
        for name, linear in group.linears.items():
            scale = shared
            if self.weight_scales == "per-channel":
                rows = exact[name].abs().amax(dim=1).tolist()
                scale = torch.tensor([scale_of(row) for row in rows], device=self.device)[:, None]
            rounded = ops.to_e4m3(exact[name], scale).float() * scale
            linear.weight = nn.Parameter(rounded.to(self.dtype), requires_grad=False)
        return clip


def _shift(coarse: Tensor, exact: Tensor) -> Tensor:
    """|coarse - exact| ** 2 / |exact| ** 2 of each position but a sample's first, which attends to
    nothing else and takes values that no other takes."""
    difference = (coarse - exact).float().square().sum(-1)
    return (difference / exact.float().square().sum(-1).clamp_min(1e-30))[..., 1:]
