"""Traces the decoder under fake tensors: an ONNX graph without a weight ever being allocated."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nemo_trt import contract
from nemo_trt.config import ModelConfig
from nemo_trt.passes.keep_in_base import KeepInBase
from nemo_trt.passes.repeat_layer import RepeatLayer
from nemo_trt.precision import DType
from nemo_trt.quantization import LM_HEAD, Quantization, groups

from . import ops
from .decoder import Decoder, Numerics
from .exactness import require_exact
from .quantization.graph import scale_names
from .scopes import name_by_scope

TORCH_DTYPES = {
    DType.BF16: torch.bfloat16,
    DType.FP16: torch.float16,
    DType.FP32: torch.float32,
}


def numerics_of(
    config: ModelConfig, precision: DType, quantization: Quantization | None = None
) -> Numerics:
    """What a decoder of `precision` computes in what; FP8 needs a `quantization`."""
    dtype = TORCH_DTYPES[precision.base]
    if quantization is None:
        return Numerics(dtype=dtype)
    return Numerics(
        dtype=dtype,
        fp8_groups=frozenset(g for g, _ in groups(config) if quantization.is_fp8(g)),
        per_channel=quantization.weight_scales == "per-channel",
    )


def trace_decoder(
    config: ModelConfig, precision: DType, numerics: Numerics | None = None
) -> ir.Model:
    """The contract's graph for `config`, its initializers named canonically and without data.

    One layer is traced and repeated: the layers differ in nothing but their weights, and the time
    no longer grows with their number (`tests/export/test_trace.py` proves it equal to a trace of
    all layers). Where a group of some layers stays in the base dtype, its quantisation is taken out
    again.

    Raises:
        ExportError: the graph rounds what must stay in fp32 (`export.exactness`).
    """
    numerics = numerics or numerics_of(config, precision)
    one_layer = replace(config, num_layers=1)
    traced = numerics
    if any(group != LM_HEAD for group in numerics.fp8_groups):
        every = {group for group, _ in groups(one_layer) if group != LM_HEAD}
        traced = replace(numerics, fp8_groups=numerics.fp8_groups & {LM_HEAD} | every)
    model = trace_every_layer(one_layer, precision, traced)
    RepeatLayer(config.num_layers)(model)
    for group, weights in groups(config):
        if traced is not numerics and group != LM_HEAD and group not in numerics.fp8_groups:
            input_scale, weight_scales = scale_names(group, weights)
            scales = dict(zip(weights, weight_scales, strict=True))
            KeepInBase(input_scale, scales, ir.DataType(precision.base.onnx_code))(model)
    require_exact(model, config)
    return model


def trace_every_layer(
    config: ModelConfig, precision: DType, numerics: Numerics | None = None
) -> ir.Model:
    """The same graph, every layer traced: slow, the reference of `trace_decoder`."""
    numerics = numerics or numerics_of(config, precision)
    dtype = numerics.dtype
    with FakeTensorMode():
        decoder = Decoder(config, numerics)
        # Sizes that are neither 0 nor 1, all different, so that no dimension is specialised.
        batch, new_tokens, capacity, num_logits = 2, 3, 16, 4
        past = [
            torch.empty(batch, config.num_kv_heads, capacity, config.head_dim, dtype=dtype)
            for _ in range(2 * config.num_layers)
        ]
        example = (
            torch.zeros(batch, new_tokens, dtype=torch.int64),
            torch.zeros(batch, dtype=torch.int64),
            torch.zeros(batch, num_logits, dtype=torch.int64),
            past,
        )
        rows, new, capacity_dim, positions = map(torch.export.Dim, ("B", "S", "T", "N"))
        program = torch.export.export(
            decoder,
            example,
            dynamic_shapes=(
                {0: rows, 1: new},
                {0: rows},
                {0: rows, 1: positions},
                [{0: rows, 2: capacity_dim} for _ in past],
            ),
            strict=False,
        )
    with _quiet_exporter():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=contract.OPSET,
            custom_translation_table=ops.translations(),
            input_names=[spec.name for spec in contract.inputs(config, precision)],
            output_names=[spec.name for spec in contract.outputs(config, precision)],
            optimize=False,
            verbose=False,
        )
    assert exported is not None  # it is with dynamo=True
    model = exported.model
    model.ir_version = contract.IR_VERSION
    for weight in model.graph.initializers.values():
        weight.const_value = None  # a fake tensor: nothing may try to fold it
    name_by_scope(model)
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says of packages that we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`isinstance.treespec, LeafSpec.`")
            yield
    finally:
        logger.setLevel(level)
