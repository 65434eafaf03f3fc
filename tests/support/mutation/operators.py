"""Mutants of a source file: copies with one small change each, which a test should notice."""

import ast
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

# Each comparison becomes its neighbour at the boundary, and its opposite.
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}
DECLARING = ("strict", "frozen", "gc", "kw_only")
Place = tuple[int, int, int, int]


class Change(NamedTuple):
    """Replacement of the text at a place (line, column, last line, its column)."""

    operator: str
    place: Place
    text: str


@dataclass(frozen=True)
class Mutant:
    """One changed file. ``was`` and ``now`` are the lines that differ, without indentation."""

    path: str
    line: int
    operator: str
    was: str
    now: str
    source: str

    def order(self, seed: int = 0) -> str:
        """A hash by which a sample is drawn: the same for the same change and seed, wherever it stands."""
        text = f"{seed}\n{self.path}\n{self.was}\n{self.now}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def parses(self) -> bool:
        try:
            ast.parse(self.source)
        except SyntaxError:
            return False
        return True


def mutants(path: str, source: str) -> list[Mutant]:
    """All mutants of a file, in the order of lines; a few don't parse."""
    lines, out = source.splitlines(keepends=True), dict[str, Mutant]()
    for change in sorted(changes(ast.parse(source)), key=lambda change: change.place):
        line, _, end, _ = change.place
        text = replaced(lines, change)
        longer = len(text.splitlines()) - len(lines)
        was, now = lines[line - 1 : end], text.splitlines()[line - 1 : end + longer]
        mutant = Mutant(path, line, change.operator, _joined(was), _joined(now), text)
        if mutant.was != mutant.now:
            out.setdefault(text, mutant)
    return list(out.values())


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def replaced(lines: list[str], change: Change) -> str:
    """The source with one change. Columns of ``ast`` count bytes."""
    line, column, end, end_column = change.place
    before, after = lines[line - 1].encode()[:column], lines[end - 1].encode()[end_column:]
    changed = before.decode() + change.text + after.decode()
    return "".join([*lines[: line - 1], changed, *lines[end:]])


def changes(tree: ast.Module) -> Iterator[Change]:
    """Changes of all nodes that can alter what the program does."""
    for node in _behaviour(tree):
        for operator, other in _variants(node):
            text = ast.unparse(ast.fix_missing_locations(other))
            yield Change(operator, _place(node), f"({text})" if isinstance(node, ast.expr) else text)
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            yield Change("condition", _place(node.test), f"(not ({ast.unparse(node.test)}))")


def _place(node: Any) -> Place:
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _behaviour(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run: no annotations, decorators, docstrings, imports, texts, nor what an error says; no
    declarations of classes and no assertions, such as ``zip(strict=True)``."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "format_spec"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Assert):
                continue
            if isinstance(child, ast.keyword) and child.arg in DECLARING:
                continue
            if isinstance(child, ast.expr | ast.stmt):
                yield child
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise):
                yield from _behaviour(child)


def _variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Names of operators with the changed node."""
    if isinstance(node, ast.Compare):
        for at, operation in enumerate(node.ops):
            for other in COMPARISONS.get(type(operation), ()):
                yield "comparison", _with(node, ops=[*node.ops[:at], other(), *node.ops[at + 1 :]])
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield "arithmetic", _with(node, op=ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield "and or", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "no sign", node.operand
    elif isinstance(node, ast.Constant):
        for value in _near(node.value):
            yield "constant", ast.Constant(value)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SWAPPED:
        yield "min max", _with(node, func=ast.Name(SWAPPED[node.func.id]))
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield "arithmetic", _with(node, op=ARITHMETIC[type(node.op)]())
        yield "no statement", ast.Pass()
    elif (
        (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await))
        or (isinstance(node, ast.Assign) and not all(isinstance(t, ast.Name) for t in node.targets))
        or isinstance(node, ast.Raise | ast.Delete)
    ):
        yield "no statement", ast.Pass()
    elif isinstance(node, ast.Continue):
        yield "jump", ast.Break()
    elif isinstance(node, ast.Break):
        yield "jump", ast.Continue()


def _near(value: object) -> Iterator[bool | int | float]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, float):
        yield from (0.85 * value, 1.15 * value) if value else (1.0,)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other
