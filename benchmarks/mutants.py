"""Mutants of a module: its syntax tree with one place changed, and the statement that must run for it to matter.

Not mutated, since no test should fail on it: docstrings, types, log lines, texts of errors, our own assertions.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COMPARE = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
SPARED_CALLS = {"debug", "info", "warning", "dataclass", "catch_warnings", "getLogger", "setLevel", "cast", "TypeVar"}
SPARED_KEYWORDS = {"strict", "safe", "note"}  # of zip and remove: guards that only a bug elsewhere trips
SYMMETRIC = {"calls", "same_shape", "max", "min", "gcd", "array_equal", "equal"}


@dataclass(frozen=True)
class Mutant:
    """One change: where, what, and the whole changed module."""

    line: int
    column: int
    text: str
    tree: ast.Module
    statement: int = 0  # line of the statement around it; 0: it runs when the module is imported


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    found, statement = [], statements(tree)
    for index, part in enumerate(tree.body):  # one by one: a copy of the whole tree for each mutant takes seconds
        alone = ast.Module([part], [])
        seen = {ast.unparse(alone)}
        for node, change in _changes(alone):
            mutated, place = _copy_with(alone, node)
            before = ast.unparse(place)
            after = change(place)
            changed = _put(mutated, place, after)
            text = ast.unparse(changed)
            if text in seen:
                continue
            seen.add(text)
            shown = "(deleted)" if isinstance(after, ast.Pass) else ast.unparse(after)
            said = f"{_short(before)}  ->  {_short(shown)}"
            whole = ast.Module([*tree.body[:index], *changed.body, *tree.body[index + 1 :]], [])
            found.append(Mutant(node.lineno, node.col_offset + 1, said, whole, statement[id(node)]))
    return sorted(found, key=lambda m: (m.line, m.column))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:97] + "..."


def _copy_with(tree: ast.Module, node: ast.AST) -> tuple[ast.Module, Any]:
    """A deep copy of the tree and the node in it that corresponds to ``node``."""
    memo: dict[int, Any] = {}
    mutated = copy.deepcopy(tree, memo)
    return mutated, memo[id(node)]


def _put(tree: ast.Module, place: ast.AST, new: ast.AST) -> ast.Module:
    class Swap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            if node is place:
                return ast.copy_location(new, place) if new is not place else node
            return self.generic_visit(node)

    result: ast.Module = Swap().visit(tree)
    return ast.fix_missing_locations(result)


def _changes(tree: ast.Module) -> Iterator[tuple[Any, Any]]:
    """Pairs of a node and a function from (the copy of) that node to what takes its place."""
    counts = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and _returns_int(f) for n in ast.walk(f)}
    places = {id(n) for s in ast.walk(tree) if isinstance(s, ast.Subscript) for n in ast.walk(s.slice)}
    for node in _code(tree):
        match node:
            case ast.Compare():
                for index, op in enumerate(node.ops):
                    for other in _other_comparisons(op):
                        yield node, lambda n, i=index, o=other: _with_item(n, "ops", i, o())
            case ast.Constant(value=bool()):
                yield node, lambda n: ast.Constant(not n.value)
            case ast.Constant(value=int() | float()):
                value = node.value
                near = {0: 1, 1: 0}.get(value, value + 1) if isinstance(value, int) else value * 2
                yield node, lambda n, v=near: ast.Constant(v)
                if value and id(node) not in places:  # the second of three is the second from the end, too
                    yield node, lambda n: ast.Constant(-n.value)
            case ast.BoolOp():
                for index in range(len(node.values)):
                    yield node, lambda n, i=index: _without(n, i)
            case ast.BinOp() if type(node.op) in ARITHMETIC:
                yield node, lambda n: ast.BinOp(n.left, ARITHMETIC[type(n.op)](), n.right)
            case ast.If() | ast.While() | ast.IfExp() if not _is_comparison(node.test):
                yield node.test, lambda n: ast.UnaryOp(ast.Not(), n)
            case ast.comprehension():
                for condition in node.ifs:
                    if not _is_comparison(condition):
                        yield condition, lambda n: ast.UnaryOp(ast.Not(), n)
            case ast.Call() if len(node.args) == 2 and not _is_symmetric(node):
                yield node, lambda n: ast.Call(n.func, n.args[::-1], n.keywords)
            case ast.Return() if id(node) in counts and node.value is not None:
                yield node, lambda n: ast.Return(ast.Constant(0))
                yield node, lambda n: ast.Return(ast.BinOp(n.value, ast.Add(), ast.Constant(1)))
            case ast.Expr() | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Delete() | ast.Raise():
                yield node, lambda _: ast.Pass()
            case ast.Assign() if any(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets):
                yield node, lambda _: ast.Pass()


def _is_comparison(node: ast.AST) -> bool:
    """Whether another operator negates it already."""
    return isinstance(node, ast.Compare) and len(node.ops) == 1


def _is_symmetric(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in SYMMETRIC or any(isinstance(a, ast.Starred) for a in node.args)


def _returns_int(function: ast.FunctionDef) -> bool:
    return isinstance(function.returns, ast.Name) and function.returns.id == "int"


def _other_comparisons(op: ast.cmpop) -> list[type[ast.cmpop]]:
    opposite = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt}
    return [table[type(op)] for table in (COMPARE, opposite) if type(op) in table]  # type: ignore[index]


def _with_item(node: Any, field: str, index: int, value: ast.AST) -> Any:
    getattr(node, field)[index] = value
    return node


def _without(node: ast.BoolOp, index: int) -> ast.expr:
    values = node.values[:index] + node.values[index + 1 :]
    return values[0] if len(values) == 1 else ast.BoolOp(node.op, values)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below ``node`` that a test can be expected to notice."""
    for child in ast.iter_child_nodes(node):
        if _is_spared(child):
            continue
        if isinstance(child, ast.Raise):
            yield child  # it may be deleted, but its text is its own
            continue
        yield child
        if isinstance(child, ast.FunctionDef):
            for part in (*child.body, *child.args.defaults, *child.args.kw_defaults, *child.decorator_list):
                if part is not None and not _is_spared(part):
                    yield part
                    yield from _code(part)
        elif isinstance(child, ast.AnnAssign):
            if child.value is not None:
                yield child.value
                yield from _code(child.value)
        elif isinstance(child, ast.Assert):
            continue  # our own invariants
        else:
            yield from _code(child)


def _is_spared(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.JoinedStr() | ast.Assert():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Call() as call):
            return _is_spared(call)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in SPARED_CALLS
        case ast.keyword(arg=name):
            return name in SPARED_KEYWORDS
    return False


# --- which statements a test reaches ---------------------------------------------------------------------------------


def statements(tree: ast.Module) -> dict[int, int]:
    """By ``id`` of a node, the line of the innermost statement around it inside a function; 0 where there is none.

    A function that caches its results counts as part of the import: the test that reaches it says nothing of others.
    """
    lines: dict[int, int] = {}

    def visit(node: ast.AST, line: int, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            below = inside
            if isinstance(node, ast.FunctionDef) and child in node.body:
                below = not any("cache" in ast.unparse(decorator) for decorator in node.decorator_list)
            lines[id(child)] = child.lineno if isinstance(child, ast.stmt) and below else line if below else 0
            visit(child, lines[id(child)], below)

    visit(tree, 0, False)
    return lines


def probed(source: str, probe: str) -> ast.Module:
    """The module with ``probe(line)`` before each statement of each function."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node): node for function in functions for node in ast.walk(function)}.values()
    for node in list(inside):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                setattr(node, field, [part for statement in block for part in _behind(probe, statement)])
    return ast.fix_missing_locations(tree)


def _behind(probe: str, statement: ast.stmt) -> list[ast.stmt]:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return [statement]  # a docstring stays the first
    return [ast.parse(f"{probe}({statement.lineno})").body[0], statement]
