"""The small changes that are made: each a piece of the source, and what replaces it."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
}

Change: TypeAlias = "tuple[str, ast.expr | ast.stmt, ast.expr | ast.stmt]"
"""What it is; what is replaced; and by what."""


@dataclass(frozen=True)
class Mutation:
    """A change; the positions are in bytes of the source's UTF-8."""

    what: str
    line: int
    last_line: int
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        """The source with it."""
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()


def mutations(source: str) -> list[Mutation]:
    """All that can be made of a module, in the order of their places."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = set()
    for node in running(ast.parse(source)):
        for mutator in MUTATORS:
            for what, place, new in mutator(node):
                text = ast.unparse(ast.fix_missing_locations(new))
                if isinstance(place, ast.expr):
                    text = f"({text})"  # it may be part of something that binds more strongly
                last_line, column = place.end_lineno or 0, place.end_col_offset or 0
                start = starts[place.lineno - 1] + place.col_offset
                end = starts[last_line - 1] + column
                found.add(Mutation(what, place.lineno, last_line, start, end, text))
    return sorted(found, key=lambda one: (one.start, one.end, one.what, one.text))


def chosen(source: str, line: int | None, each: int, seed: str) -> list[Mutation]:
    """All mutations of a line, or so many of the whole: of each kind about as many."""
    every = mutations(source)
    if line is not None:
        return [one for one in every if one.line <= line <= one.last_line]
    rng = random.Random(seed)
    kinds: dict[str, list[Mutation]] = {}
    for one in rng.sample(every, len(every)):
        kinds.setdefault(one.what, []).append(one)
    found: list[Mutation] = []
    while kinds and len(found) < each:
        kind = rng.choice(list(kinds))
        found.append(kinds[kind].pop())
        if not kinds[kind]:
            del kinds[kind]
    return sorted(found, key=lambda one: one.start)


def running(node: ast.AST) -> Iterator[ast.AST]:
    """A node and those below, without what is there for people and type checkers only."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not is_silent(child):
                yield from running(child)


def is_silent(node: ast.AST) -> bool:
    """Whether no test is to notice a change; or the places are wrong, as in f-strings (3.11)."""
    if isinstance(node, ast.Assert | ast.JoinedStr):
        return True
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.annotation) == "TypeAlias"
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).split(".")[0] in {"_log", "TypeVar", "cast"}
    return isinstance(node, ast.Expr) and (
        isinstance(node.value, ast.Constant) or is_silent(node.value)
    )


def compared(node: ast.AST) -> Iterator[Change]:
    """Another comparison."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = COMPARISONS[type(node.ops[0])]()
        yield "comparison", node, ast.Compare(node.left, [other], node.comparators)


def negated(node: ast.AST) -> Iterator[Change]:
    """The other way of a branch."""
    tests = []
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        tests = [node.test]
    elif isinstance(node, ast.comprehension):
        tests = node.ifs
    for test in tests:
        # The others have a mutator that comes to the same.
        if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.BoolOp | ast.NamedExpr):
            yield "condition", test, ast.UnaryOp(ast.Not(), test)


def logical(node: ast.AST) -> Iterator[Change]:
    """And for or, the operand for its negation."""
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and, or", node, ast.BoolOp(other, node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not", node, node.operand


def constant(node: ast.AST) -> Iterator[Change]:
    """A number next to it, or the other truth value."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "truth value", node, ast.Constant(not node.value)
        elif isinstance(node.value, int):
            yield "number", node, ast.Constant(node.value + 1)
            yield "number", node, ast.Constant(node.value - 1)


def operator(node: ast.AST) -> Iterator[Change]:
    """Another operator."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        other = OPERATORS[type(node.op)]()
        if isinstance(node, ast.BinOp):
            yield "operator", node, ast.BinOp(node.left, other, node.right)
        else:
            yield "operator", node, ast.AugAssign(node.target, other, node.value)


def dropped(node: ast.AST) -> Iterator[Change]:
    """Without a statement. A local name needs a value, or everything would notice."""
    simple = ast.AugAssign | ast.Raise | ast.Continue | ast.Break | ast.Expr
    if isinstance(node, ast.Assign | ast.Delete):
        goes = all(isinstance(one, ast.Attribute | ast.Subscript) for one in node.targets)
    elif isinstance(node, ast.AnnAssign):
        goes = isinstance(node.target, ast.Attribute)
    elif isinstance(node, ast.Return):
        goes = node.value is None
    else:
        goes = isinstance(node, simple)
    if goes and isinstance(node, ast.stmt):
        yield "statement", node, ast.Pass()


def returned(node: ast.AST) -> Iterator[Change]:
    """None for what a function returns."""
    if isinstance(node, ast.Return) and node.value and ast.unparse(node.value) != "None":
        yield "result", node.value, ast.Constant(None)


def swapped(node: ast.AST) -> Iterator[Change]:
    """Two arguments next to each other, the other way round."""
    if isinstance(node, ast.Call):
        for number, (one, two) in enumerate(pairwise(node.args)):
            if ast.Starred not in {type(one), type(two)} and ast.dump(one) != ast.dump(two):
                args = [*node.args[:number], two, one, *node.args[number + 2 :]]
                yield "arguments", node, ast.Call(node.func, args, node.keywords)


MUTATORS: list[Callable[[ast.AST], Iterator[Change]]] = [
    compared, negated, logical, constant, operator, dropped, returned, swapped,
]  # fmt: skip
