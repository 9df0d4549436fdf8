"""The traced graph: a repeated layer is the traced layer, and nothing of the machine is in it."""

import onnx_ir as ir
import pytest
import torch

from nemo_trt import contract
from nemo_trt.config import ModelConfig
from nemo_trt.export.decoder import Numerics
from nemo_trt.export.trace import trace_decoder, trace_every_layer
from nemo_trt.precision import PRECISIONS, DType
from nemo_trt.quantization import LM_HEAD, groups

pytestmark = pytest.mark.model

CONFIG = ModelConfig(
    architecture="MistralForCausalLM",
    num_layers=3,
    hidden_size=80,
    intermediate_size=96,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=64,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    max_position_embeddings=128,
    tied_head=False,
    bos_token_id=1,
    eos_token_ids=(2,),
)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return trace_decoder(CONFIG, DType.BF16)


def computed_from(model: ir.Model) -> dict[str, str]:
    """Output name -> the whole expression that computes it, constants as their values."""
    known: dict[ir.Value, str] = {}

    def expression(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        if value not in known:
            if (node := value.producer()) is not None:
                attributes = sorted(str(attribute) for attribute in node.attributes.values())
                inputs = [expression(v) for v in node.inputs]
                text = f"{node.op_type}{attributes if node.op_type != 'Constant' else ''}{inputs}"
                if node.op_type == "Constant":
                    text = str(ir.convenience.get_const_tensor(value).numpy().tolist())  # type: ignore[union-attr]
                known[value] = str(hash(text)) if len(text) > 500 else text
            elif value.const_value is not None:
                known[value] = str(value.const_value.numpy().tolist())
            else:
                known[value] = str(value.name)
        return known[value]

    return {str(value.name): expression(value) for value in model.graph.outputs}


def test_repeating_one_layer_gives_the_graph_that_tracing_every_layer_gives(
    model: ir.Model,
) -> None:
    assert computed_from(model) == computed_from(trace_every_layer(CONFIG, DType.BF16))


def test_so_it_does_where_some_groups_of_products_are_fp8() -> None:
    every = {group for group, _ in groups(CONFIG)}
    kept = {"model.layers.0.self_attn.qkv", "model.layers.1.mlp.down", "model.layers.2.mlp.gate_up"}
    for fp8 in (every, every - kept, every - kept - {LM_HEAD}):
        numerics = Numerics(dtype=torch.bfloat16, fp8_groups=frozenset(fp8))
        found = trace_decoder(CONFIG, DType.FP8, numerics)
        expected = trace_every_layer(CONFIG, DType.FP8, numerics)
        assert computed_from(found) == computed_from(expected)
        names = {n for n, v in expected.graph.initializers.items() if v.const_value is None}
        assert {n for n, v in found.graph.initializers.items() if v.const_value is None} == names


def test_weights_are_named_as_the_checkpoint_names_them(model: ir.Model) -> None:
    weights = {
        name: tuple(value.shape or ())
        for name, value in model.graph.initializers.items()
        if value.const_value is None
    }
    assert weights == dict(CONFIG.tensors())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_and_outputs_follow_the_contract(precision: DType) -> None:
    graph = trace_decoder(CONFIG, precision).graph
    for values, specs in (
        (graph.inputs, contract.inputs(CONFIG, precision)),
        (graph.outputs, contract.outputs(CONFIG, precision)),
    ):
        found = [
            (v.name, v.dtype, tuple(d if isinstance(d, int) else d.value for d in v.shape or ()))
            for v in values
        ]
        assert found == [(s.name, ir.DataType(s.dtype.onnx_code), s.shape) for s in specs]


def test_only_the_contracts_operators_occur(model: ir.Model) -> None:
    assert {node.domain for node in model.graph} == {""}
    assert {node.op_type for node in model.graph} == {
        "Add", "Attention", "Cast", "Concat", "Constant", "Cos", "Gather", "GatherND", "MatMul",
        "Mul", "RMSNormalization", "Range", "Reshape", "RotaryEmbedding", "Shape", "Sigmoid", "Sin",
        "Slice", "Squeeze", "TensorScatter", "Transpose", "Unsqueeze",
    }  # fmt: skip
    assert model.opset_imports == {"": contract.OPSET}
    assert model.ir_version == contract.IR_VERSION


def test_attention_is_causal_and_bounded_by_length(model: ir.Model) -> None:
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert len(attentions) == CONFIG.num_layers
    for node in attentions:
        assert node.attributes["is_causal"].as_int() == 1
        lengths = node.inputs[6]
        assert lengths is not None and lengths.producer() is not None
        assert "write_indices" in {v.name for v in lengths.producer().inputs if v}  # type: ignore[union-attr]


def test_every_node_of_a_layer_says_where_it_belongs(model: ir.Model) -> None:
    for layer in range(CONFIG.num_layers):
        names = [n.name for n in model.graph if (n.name or "").startswith(f"model.layers.{layer}.")]
        assert f"model.layers.{layer}.self_attn.q_proj.MatMul" in names
    every = [node.name for node in model.graph]
    assert len(set(every)) == len(every)


def test_the_graph_tells_nothing_of_the_machine_that_made_it(model: ir.Model) -> None:
    text = ir.to_proto(model).SerializeToString()
    assert b".py" not in text
    assert b"stack_trace" not in text
