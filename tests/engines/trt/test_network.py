"""The network after parsing: what the parser loses is given back, what it misreads is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nemo_trt.engines.trt import grouped, lowering, network
from nemo_trt.engines.trt.attention import place
from nemo_trt.engines.trt.toolkit import Log, load_toolkit
from nemo_trt.errors import BuildError
from nemo_trt.export.bundle import export_bundle
from nemo_trt.export.samples import write_seeded
from nemo_trt.manifest import GRAPH_FILE
from nemo_trt.passes.scale_queries import ScaleQueries

from .conftest import small_config

pytestmark = pytest.mark.e2e

pytest.importorskip("tensorrt_rtx", reason="compiles with TensorRT-RTX")


def parsed(bundle: Path) -> tuple[Any, Any, Any]:
    """(toolkit, network as the parser leaves it, what must live as long)"""
    toolkit = load_toolkit("tensorrt-rtx")
    log = Log(toolkit)
    made = toolkit.api.Builder(log.logger)
    graph = lowering.lower(bundle, GRAPH_FILE, 256)
    return toolkit, network.parse(toolkit, log, made, graph), (log, made, graph)


def attentions(toolkit: Any, net: Any) -> list[Any]:
    found = []
    for index in range(net.num_layers):
        layer = net.get_layer(index)
        if layer.type == toolkit.api.LayerType.ATTENTION_INPUT:
            layer.__class__ = toolkit.api.IAttentionInputLayer
            found.append(layer.attention)
    return found


def edited(bundle: Path, target: Path, edit: Any) -> Path:
    """The lowered graph's source with an edit, beside links to its weights."""
    target.mkdir()
    for path in bundle.iterdir():
        (target / path.name).symlink_to(path)
    (target / GRAPH_FILE).unlink()
    model = onnx.load(bundle / GRAPH_FILE, load_external_data=False)
    for node in model.graph.node:
        edit(node)
    onnx.save(model, target / GRAPH_FILE)
    return target


def test_the_parser_loses_lengths_and_corner_and_the_mend_gives_them_back(
    small: dict[str, Path],
) -> None:
    toolkit, net, alive = parsed(small["bf16"])
    lower_right = toolkit.api.CausalMaskKind.LOWER_RIGHT
    lost = attentions(toolkit, net)
    assert len(lost) == 2
    assert all(one.key_value_lengths is None and one.causal_kind != lower_right for one in lost)
    network.mend(toolkit, net, num_layers=2, allow_unfused=False)
    made = {
        layer.get_output(index).name: layer
        for layer in (net.get_layer(index) for index in range(net.num_layers))
        for index in range(layer.num_outputs)
    }
    for layer, one in enumerate(attentions(toolkit, net)):
        assert one.key_value_lengths.name == place.LENGTHS
        assert one.causal_kind == lower_right and not one.decomposable
        for index, kind in ((1, "key"), (2, "value")):
            read = grouped.cache_read(toolkit.api, one.get_input(index), made)
            assert read == f"present.{layer}.{kind}"
    del alive


def test_more_than_ten_layers(tmp_path: Path) -> None:
    """Their numbers have two digits in the names of nodes and tensors; each reads its own cache."""
    write_seeded(tmp_path / "checkpoint", small_config(12))
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    toolkit, net, alive = parsed(tmp_path / "bundle")
    network.mend(toolkit, net, num_layers=12, allow_unfused=False)
    made = {
        layer.get_output(index).name: layer
        for layer in (net.get_layer(index) for index in range(net.num_layers))
        for index in range(layer.num_outputs)
    }
    read = [
        grouped.cache_read(toolkit.api, one.get_input(1), made) for one in attentions(toolkit, net)
    ]
    assert sorted(map(str, read)) == sorted(f"present.{layer}.key" for layer in range(12))
    del alive


def test_a_graph_with_another_number_of_attentions_is_refused(small: dict[str, Path]) -> None:
    toolkit, net, alive = parsed(small["bf16"])
    with pytest.raises(BuildError, match="must have 3 attentions and 6 cache updates, got 2 and 4"):
        network.mend(toolkit, net, num_layers=3, allow_unfused=False)
    del alive


def of_values(network: Any, attention: Any) -> None:
    attention.set_input(1, attention.get_input(2))


def of_the_other_layer(network: Any, attention: Any) -> None:
    outputs = {
        network.get_output(i).name: network.get_output(i) for i in range(network.num_outputs)
    }
    index = 1 - int(attention.get_input(1).name.split(".")[1])
    for at, kind in ((1, "key"), (2, "value")):
        attention.set_input(at, outputs[f"present.{index}.{kind}"])


def of_a_foreign_row(network: Any, attention: Any) -> None:
    made = {network.get_layer(i).get_output(0).name: network.get_layer(i)
            for i in range(network.num_layers)}  # fmt: skip
    keys, values = (made[attention.get_input(index).name] for index in (1, 2))
    keys.set_input(1, values.get_input(1))


@pytest.mark.parametrize("wrong", [None, of_values, of_the_other_layer, of_a_foreign_row])
def test_an_attention_that_reads_another_cache_is_refused(
    wrong: Any, small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit, net, alive = parsed(small["bf16"])
    true = network.read_by_group

    def read(api: Any, net: Any, attention: Any) -> None:
        if wrong is not None:
            foreign = wrong is of_a_foreign_row
            if not foreign and attention.get_input(1).name.startswith("present.0"):
                wrong(net, attention)
            true(api, net, attention)
            if foreign:
                wrong(net, attention)

    monkeypatch.setattr(network, "read_by_group", read)
    with pytest.raises(BuildError, match=r"must read (a cache|.* one row of it|its layer)"):
        network.mend(toolkit, net, num_layers=2, allow_unfused=False)
    del alive


def test_an_attention_that_is_scaled_itself_is_refused(
    small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScaleQueries, "change", lambda *_: None)
    toolkit, net, alive = parsed(small["bf16"])
    with pytest.raises(BuildError, match=r"scale=1\.0"):
        network.mend(toolkit, net, num_layers=2, allow_unfused=False)
    del alive


def test_queries_are_scaled_in_fp32_by_the_exact_factor(small: dict[str, Path]) -> None:
    toolkit, net, alive = parsed(small["bf16"])
    api = toolkit.api
    network.mend(toolkit, net, num_layers=2, allow_unfused=False)
    producers = {
        layer.get_output(0).name: layer
        for layer in (net.get_layer(index) for index in range(net.num_layers))
    }
    for attention in attentions(toolkit, net):
        rounded = producers[attention.get_input(0).name]
        assert rounded.type == api.LayerType.CAST and rounded.get_output(0).dtype == api.bfloat16
        product = producers[rounded.get_input(0).name]
        assert product.type == api.LayerType.ELEMENTWISE
        assert [product.get_input(index).dtype for index in (0, 1)] == [api.float32] * 2
        factor = producers[product.get_input(1).name]
        while factor.type != api.LayerType.CONSTANT:
            factor = producers[factor.get_input(0).name]
        factor.__class__ = api.IConstantLayer
        (value,) = np.asarray(factor.weights).reshape(-1)
        assert abs(float(value) * math.sqrt(128) - 1) < 1e-7
    del alive


def test_a_quantisation_that_is_read_as_int8_is_refused(
    small: dict[str, Path], tmp_path: Path
) -> None:
    def edit(node: onnx.NodeProto) -> None:
        if node.op_type == "QuantizeLinear":
            kept = [one for one in node.attribute if one.name != "output_dtype"]
            del node.attribute[:]
            node.attribute.extend(kept)

    bundle = edited(small["fp8"], tmp_path / "int8", edit)
    with pytest.raises(BuildError):
        toolkit, net, _alive = parsed(bundle)
        network.mend(toolkit, net, num_layers=2, allow_unfused=False)
