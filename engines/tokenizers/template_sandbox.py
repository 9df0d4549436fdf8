"""The Jinja in which chat templates run: what transformers gives them, at a bounded cost.

A template is rewritten when it is compiled, so that loops, texts and values made in it pass the
budget; filters, tests, operators and calls pass it in `template_operations`.
"""

import datetime
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes as nodes
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .template_budget import CHARACTERS, STEP, active
from .template_operations import OPERATORS, call, counted_filter, counted_test, operate

# A space keeps these filters out of reach of templates.
_CHARGE, _MADE, _JOIN, _SLICE, _COMPARED, _EACH = (
    f"of budget: {name}" for name in ("charge", "made", "join", "slice", "compared", "each")
)


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks answers for training; here its body stands for itself."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the body, which has a scope of its own, as a called block's has."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Renders templates that anybody may have written; rendering needs a budget (`spending`)."""

    intercepted_binops = OPERATORS

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, jinja2.ext.loopcontrols],
            finalize=_finalize,
        )
        self.filters["tojson"] = _to_json
        self.filters = {name: counted_filter(name, one) for name, one in self.filters.items()}
        tests: dict[str, Any] = self.tests
        self.tests = {name: counted_test(name, one) for name, one in tests.items()}
        self.filters |= {
            _CHARGE: _charge,
            _MADE: _made,
            _JOIN: _join,
            _SLICE: _slice,
            _COMPARED: _compared,
            _EACH: _each,
        }
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": _strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See `template_operations.operate`."""
        return operate(operator, left, right, self.binop_table[operator])

    def getitem(self, obj: Any, argument: Any) -> Any:
        """As Jinja has it; a key that must be walked to be hashed is measured."""
        if not isinstance(argument, str | int):
            active().size(argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """See `template_operations.call`."""
        run = super().call
        return call(lambda: run(__context, __obj, *args, **kwargs), __obj, args, kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Rewriter().visit(tree)
        tree.set_environment(self)
        return tree


class _Rewriter(NodeTransformer):
    """Puts the budget's filters around what Jinja would do without asking its environment."""

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        literal = sum(len(one.data) for one in node.nodes if isinstance(one, nodes.TemplateData))
        node.nodes.insert(0, _filter(nodes.Const(STEP + literal // CHARACTERS), _CHARGE))
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_filter(nodes.Const(STEP), _CHARGE)]))
        if node.test is not None:  # rounds that are left out count as well
            node.iter = _filter(node.iter, _EACH)
        return node

    def _visit_value(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load" or not node.items:
            return node  # (a, b) that is assigned to
        return _filter(node, _MADE)

    visit_List = visit_Tuple = visit_Dict = _visit_value

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes), _JOIN)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filter(node.expr, _COMPARED)
        for operand in node.ops:
            operand.expr = _filter(operand.expr, _COMPARED)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        given = [nodes.Const(None) if bound is None else bound for bound in bounds]
        return _filter(node.node, _SLICE, *given)


def _filter(value: Any, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(arguments), [], None, None, lineno=value.lineno or 1)


def _charge(units: int) -> str:
    active().charge(units)
    return ""


def _finalize(value: Any) -> Any:
    """Every value that is printed."""
    budget = active()
    budget.copy(budget.size(value))
    return value


def _made(value: Any) -> Any:
    return active().made(value)


def _compared(value: Any) -> Any:
    if not isinstance(value, str):
        budget = active()
        budget.copy(budget.size(value))
    return value


def _join(values: list[Any]) -> str:
    budget = active()
    budget.copy(sum(budget.size(value) for value in values))
    return "".join(map(str, values))


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return active().made(value[start:stop:step])


def _each(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        active().charge(STEP)
        yield value


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' templates have it: no HTML escapes, no ASCII escapes."""
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


class _Dict:
    """`dict` without the attributes of a class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace`, whose attributes may not begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _require_public(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"  # its values may be shared, and long


def _require_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"Names in a namespace must not begin with an underscore, got {name!r}."
        )
