"""What every pass is: a form that it requires, a change, and what holds afterwards."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult, PostconditionError, PreconditionError
from onnx_ir.passes.common import RemoveUnusedNodesPass

from nemo_trt.errors import BundleError


class GraphPass(InPlacePass):
    """A change of a graph in place; nodes that nothing reads afterwards may be left behind.

    `requires` raises `PreconditionError` with the form that the graph must have, `ensures`
    `PostconditionError` with what the pass left undone. A graph in which a pass finds nothing to do
    stays as it is, so that pieces of graphs can be lowered.
    """

    @abstractmethod
    def change(self, graph: ir.Graph) -> None:
        """Change a graph that `requires` accepted."""

    def call(self, model: ir.Model) -> PassResult:
        """See `onnx_ir.passes.PassBase.call`."""
        self.change(model.graph)
        return PassResult(model, modified=True)


def apply(model: ir.Model, passes: Sequence[GraphPass]) -> None:
    """Run passes in their order, and drop what nothing reads after each.

    Raises:
        BundleError: the graph is of a form that a pass does not know.
    """
    unread = RemoveUnusedNodesPass()
    for one in passes:
        try:
            one.requires(model)
            one.call(model)
            unread(model)
            one.ensures(model)
        except PreconditionError as error:
            raise foreign(str(error)) from error
        except PostconditionError as error:
            raise BundleError(
                f"{type(one).__name__} must leave {error}. This is a fault of nemo-trt: report it."
            ) from error


def foreign(what: str) -> BundleError:
    """The error of a graph that lacks `what`."""
    return BundleError(
        f"The bundle's graph must have {what}, got another form. Export it again with this version."
    )


def nodes_of(graph: ir.Graph, *operators: str) -> Iterator[ir.Node]:
    """The nodes of these operators, in the graph's order; the graph may change meanwhile."""
    yield from [node for node in graph if node.op_type in operators]


def source(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator demands."""
    value = node.inputs[index]
    if value is None:
        raise PreconditionError(f"input {index} of {node.name}")
    return value


def constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer."""
    shape, dtype = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=dtype, const_value=tensor)
    graph.register_initializer(value)
    return value


def integers(name: str, *shape: str) -> ir.Value:
    """A graph input in int64."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT64))


def make(
    op_type: str, inputs: Sequence[ir.Value | None], name: str, **attributes: float | Sequence[int]
) -> ir.Node:
    """A standard operator of one output; node and output have the same name."""
    return ir.node(op_type, inputs, attributes, outputs=[ir.Value(name=name)], name=name)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let whatever read `old` read `new`, which gets its name, type and shape."""
    new.name, new.type, new.shape = old.name, old.type, old.shape
    new.meta.update(old.meta)
    producer = new.producer()
    old.name = f"{old.name if producer is None else producer.name}:before"
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def follow(graph: ir.Graph, value: ir.Value, new: Sequence[ir.Node]) -> None:
    """Put nodes, the first of which reads a computed value, behind it, for all that read it."""
    producer, first = value.producer(), new[0]
    assert producer is not None
    places = [index for index, one in enumerate(first.inputs) if one is value]
    take_over(value, new[-1].outputs[0])
    for index in places:
        first.replace_input_with(index, value)
    graph.insert_after(producer, new)


def substitute(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put nodes in the place of one; the last one's first output is the old one's."""
    graph.insert_before(old, new)
    take_over(old.outputs[0], new[-1].outputs[0])
