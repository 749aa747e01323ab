"""Where a model's chat template runs: Jinja's sandbox, with fuel.

A template is a program out of a file from somewhere. Jinja's sandbox keeps it away from Python
(CVE-2024-34359), but lets it loop for ever and make texts of any size. Here every turn of a loop, every call
and every value that is made, compared or written costs fuel by its size. Only what templates use is there:
the filters and methods below. All of it is put in by rewriting the template's syntax tree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, Iterable, KeysView, ValuesView
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

FUEL = 100_000
"""For one prompt, besides what its contents weigh: less than a second of a slow machine."""

LONGEST = 128 << 10
"""Characters of a template."""

_MUCH = 1 << 40
_GRAIN = 16  # characters for one unit
_LARGEST = 1 << 256  # integers
_WIDEST = 64  # blanks of an indentation

_LIGHT = ("count", "d", "default", "first", "last", "length")  # whose work does not grow
_FILTERS = (
    *("abs", "capitalize", "dictsort", "e", "escape", "float", "int", "items", "join"),
    *("list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse"),
    *("round", "safe", "select", "selectattr", "sort", "string", "sum", "title", "trim"),
    *("unique", "upper", "indent"),
)
_METHODS: dict[type, set[str]] = {
    str: {
        *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit"),
        *(
            "islower",
            "isnumeric",
            "isspace",
            "isupper",
            "join",
            "lower",
            "lstrip",
            "partition",
            "removeprefix",
        ),
        *(
            "removesuffix",
            "replace",
            "rfind",
            "rindex",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
        ),
        *("startswith", "strip", "title", "upper"),
    },
    dict: {"copy", "get", "items", "keys", "values"},
    list: {"copy", "count", "index"},
    tuple: {"count", "index"},
}
_DATE = re.compile(r"(?:[^%]|%-?[a-zA-Z%])*")


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment of one template. One thread at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        self.fuel = 0
        known = self.filters
        self.filters = {name: known[name] for name in _LIGHT}
        self.filters |= {name: self._weighed(name, known[name]) for name in _FILTERS}
        self.filters |= {"tojson": _fueled(_to_json), "_tick": _tick, "_weigh": _weigh, "_concat": _concat}
        self.tests["in"] = _fueled(lambda value, many: value in many)
        self._functions = (self.globals["range"], dict, Namespace, _refuse, _now)
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _refuse,
            "strftime_now": _now,
        }

    def burn(self, units: int) -> None:
        """Raises TemplateError when there is no fuel left."""
        self.fuel -= units
        if self.fuel < 0:
            raise TemplateError("it takes too long or makes too much text")

    def weight(self, value: Any) -> int:
        """The fuel that it takes to look at a value once."""
        self.fuel = _MUCH
        self.weigh(value)
        return _MUCH - self.fuel

    def weigh(self, value: Any) -> None:
        """Burns for the size of a value, with all that is in it as often as it is there."""
        if isinstance(value, str):
            self.burn(1 + len(value) // _GRAIN)
        elif isinstance(value, dict):
            self.weigh([*value.keys(), *value.values()])
        elif isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
            self.burn(1)
            for item in value:
                if isinstance(item, Namespace):  # its text could be without end
                    raise TemplateError("a namespace is in a list")
                self.weigh(item)
        else:
            self.burn(1 + len(value) // 4 if isinstance(value, range) else 1)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        return _Fueling(self).visit(tree)  # type: ignore[no-any-return]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Checks an operation before it is done, for it may make something very large."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "%" and not numbers:
            raise TemplateError("'%' is for numbers only")
        if operator == "**" and not (numbers and abs(left) < _LARGEST and abs(right) <= 64):
            raise TemplateError("'**' is for small numbers only")
        if operator == "*" and not numbers:
            sequence, times = (left, right) if isinstance(right, int) else (right, left)
            if not isinstance(times, int) or not isinstance(sequence, str | list | tuple):
                raise TemplateError("'*' is for numbers, and a text or list with a number")
            self.burn(max(times, 0) * (1 + len(sequence)))
        if operator == "+" and not numbers:
            self.weigh(left)
            self.weigh(right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and abs(result) > _LARGEST:
            raise TemplateError("a number is too large")
        return result

    def call(self, __context: Any, __obj: Any, *args: Any, **named: Any) -> Any:
        """Calls what a template may call, and refuses everything else."""
        for value in (*args, *named.values()):
            self.weigh(value)
        if __obj in self._functions:
            result = super().call(__context, __obj, *args, **named)
            self.burn(len(result) if isinstance(result, range) else 1)
            return result
        owner: Any = getattr(__obj, "__self__", None)
        name = getattr(__obj, "__name__", "")
        if isinstance(__obj, Macro | LoopContext) or isinstance(owner, LoopContext):
            return super().call(__context, __obj, *args, **named)
        if name not in _METHODS.get(type(owner), ()):
            raise TemplateError(f"it calls {name or type(__obj).__name__!r}, which is not allowed")
        self.weigh(owner)
        if name in ("replace", "join"):
            args = self._foreseen(name, owner, *args)
        return super().call(__context, __obj, *args, **named)

    def _foreseen(self, name: str, text: str, *args: Any) -> tuple[Any, ...]:
        """Burns for what a method is about to make; the arguments to call it with."""
        if name == "join" and args:
            args = (list(args[0]),)
            self.weigh(args[0])
            self.burn(len(args[0]) * (1 + len(text) // _GRAIN))
        elif name == "replace" and len(args) > 1:
            self.burn(text.count(args[0]) * (1 + len(args[1]) // _GRAIN))
        return args

    def _weighed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter of Jinja's that burns for what it is given, and is never run before the template is."""
        kind = str(getattr(function, "jinja_pass_arg", ""))

        @wraps(function)
        def run(context: Any, value: Any, *args: Any, **named: Any) -> Any:
            if name == "join" and not isinstance(value, str):
                value = list(value)
            for given in (value, *args, *named.values()):
                self.weigh(given)
            self._foresee_filter(name, value, (*args, *named.values()))
            first = {"_PassArg.context": (context,), "_PassArg.eval_context": (context.eval_ctx,)}.get(
                kind, ()
            )
            if kind == "_PassArg.environment":
                first = (self,)
            result = function(*first, value, *args, **named)
            self.weigh(result)
            return result

        return pass_context(run)

    def _foresee_filter(self, name: str, value: Any, given: tuple[Any, ...]) -> None:
        """Burns for what a filter is about to make."""
        longest = max((len(item) for item in given if isinstance(item, str)), default=0)
        if name in ("indent", "round") and any(isinstance(item, int) and item > _WIDEST for item in given):
            raise TemplateError("a width is too large")
        if name == "indent":
            self.burn(str(value).count("\n") * (1 + longest))
        elif name == "replace":
            self.burn(str(value).count(str(given[0] if given else "")) * (1 + longest // _GRAIN))
        elif name == "join":
            self.burn(len(value) * (1 + longest // _GRAIN))


class _Fueling(NodeTransformer):
    """Puts the burning of fuel into a template."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's names
        cost = _cost(node)
        self.generic_visit(node)
        if node.test is not None:
            node.test = nodes.And(self._tick(cost), node.test)
        node.body.insert(0, nodes.ExprStmt(self._tick(cost)))
        return node

    def visit_Macro(self, node: Any) -> nodes.Node:  # noqa: N802
        cost = _cost(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._tick(cost)))
        return nodes.Node.set_lineno(node, node.lineno)  # the new nodes get a line

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self.visit_Macro(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._filter(nodes.List(node.nodes), "_concat")

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, nodes.TemplateData) else self._filter(part, "_weigh")
            for part in node.nodes
        ]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = self._filter(node.expr, "_weigh")
        for operand in node.ops:
            operand.expr = self._filter(operand.expr, "_weigh")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._filter(node.node, "_weigh")
        elif not isinstance(node.arg, nodes.Const):
            node.arg = self._filter(node.arg, "_weigh")
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = self._filter(node.key, "_weigh")
        return node

    def _tick(self, cost: int) -> nodes.Expr:
        return self._filter(nodes.Const(cost), "_tick")

    def _filter(self, value: nodes.Expr, name: str) -> nodes.Expr:
        made = nodes.Filter(value, name, [], [], None, None)
        made.set_environment(self._sandbox).set_lineno(getattr(value, "lineno", None) or 1)
        return made


def _cost(node: nodes.Node) -> int:
    """What one turn costs that does nothing special."""
    texts = (len(part.data) // _GRAIN for part in node.find_all(nodes.TemplateData))
    return 1 + sum(1 for _ in node.find_all(nodes.Node)) // 8 + sum(texts)


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for those who train it: nothing, here."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


# What rewritten templates call


@pass_context
def _tick(context: Any, cost: int) -> bool:
    context.environment.burn(cost)
    return True


@pass_context
def _weigh(context: Any, value: Any) -> Any:
    context.environment.weigh(value)
    return value


@pass_context
def _concat(context: Any, values: list[Any]) -> str:
    context.environment.weigh(values)
    return "".join(map(str, values))


def _fueled(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(context: Any, value: Any, *args: Any, **named: Any) -> Any:
        for given in (value, *args):
            context.environment.weigh(given)
        return function(value, *args, **named)

    return pass_context(run)


def _to_json(
    value: Any,
    indent: int | None = None,
    ensure_ascii: bool = False,
    separators: Iterable[str] | None = None,
    **named: Any,
) -> str:
    if isinstance(indent, int) and indent > _WIDEST:
        raise TemplateError("a width is too large")
    marks = tuple(separators) if separators is not None else None
    order = bool(named.get("sort_keys"))
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, separators=marks, sort_keys=order)  # type: ignore[arg-type]


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)


def _now(form: str) -> str:
    """The date and time here, for templates that tell a model the day."""
    if len(form) > _WIDEST or not _DATE.fullmatch(form):
        raise TemplateError("the form of a date is not allowed")
    return datetime.now().astimezone().strftime(form)
