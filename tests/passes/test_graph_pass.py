"""How passes are run: a form that one does not know is refused, what nothing reads goes."""

import onnx_ir as ir
import pytest
from onnx_ir.passes import PostconditionError, PreconditionError

from nemo_trt.errors import BundleError
from nemo_trt.passes.graph_pass import GraphPass, apply, constant, follow, make, substitute

from .computing import computed, graph_of, operators, random

pytestmark = pytest.mark.unit
TEXT = "g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x) y = Abs(a) z = Exp(a) }"


class Picky(GraphPass):
    def requires(self, model: ir.Model) -> None:
        if "Attention" not in operators(model):
            raise PreconditionError("an attention")

    def change(self, graph: ir.Graph) -> None:
        raise AssertionError("it was refused")


class Lazy(GraphPass):
    def change(self, graph: ir.Graph) -> None:
        """Leave a node that nothing reads."""
        graph.append(make("Neg", [graph.inputs[0]], "unread"))

    def ensures(self, model: ir.Model) -> None:
        if "Exp" in operators(model):
            raise PostconditionError("no Exp")


def test_a_form_that_a_pass_does_not_know_is_refused() -> None:
    with pytest.raises(BundleError, match="must have an attention, got another form"):
        apply(graph_of(TEXT), [Picky()])


def test_a_pass_that_leaves_something_undone_is_named() -> None:
    with pytest.raises(BundleError, match="Lazy must leave no Exp"):
        apply(graph_of(TEXT), [Lazy()])


def test_what_nothing_reads_goes() -> None:
    model = graph_of("g (float[2] x) => (float[2] y) { y = Abs(x) }")
    constant(model.graph, "unread constant", ir.Tensor(random(2)))
    apply(model, [Lazy()])
    assert operators(model) == ["Abs"] and not model.graph.initializers


def test_what_follows_a_value_is_read_by_all_its_readers() -> None:
    model, x = graph_of(TEXT), random(2)
    value = next(iter(model.graph)).outputs[0]
    follow(
        model.graph,
        value,
        [
            make("Relu", [value], "r"),
        ],
    )
    for found, expected in zip(
        computed(model, x=x),
        computed(
            graph_of(TEXT.replace("y = Abs(a) z = Exp(a)", "b = Relu(a) y = Abs(b) z = Exp(b)")),
            x=x,
        ),
        strict=True,
    ):
        assert (found == expected).all()


def test_a_substitute_keeps_the_name_of_an_output() -> None:
    model, x = graph_of(TEXT), random(2)
    old = next(node for node in model.graph if node.op_type == "Abs")
    (given,) = old.inputs
    twice = make("Add", [given, given], "twice")
    substitute(model.graph, old, [twice, make("Neg", twice.outputs, "negative")])
    assert (computed(model, x=x)[0] == 2 * x).all()
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
