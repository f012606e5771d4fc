"""Every place of lab3's source where an error is made, with its texts as templates; found by `ast`, nothing is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lab3"
# Base classes; what is derived from them is found. `pytest.UsageError` is pytest's own, with an exit code of its own.
_LAB3 = {"Lab3Error": 3, "UsageError": 2, "InfraError": 3}
_PYTEST, _ARGPARSE = "pytest.UsageError", "argparse.ArgumentTypeError"
FIELDS = ("what", "why", "todo")


@dataclass(frozen=True)
class Raised:
    """One error as the source makes it. What is only known at run time stands in angle brackets: `<folder> exists`.

    `exit_code` is what `lab3` ends with: 2 or 3; 4 for pytest's usage errors, with which pytest ends.
    """

    file: str
    line: int
    kind: str
    exit_code: int
    what: str
    why: str
    todo: str

    @property
    def passed_on(self) -> bool:
        """Whether it only repeats another error's words."""
        return not any(char.isalpha() for char in _literal(self.what))


@cache
def raised() -> tuple[Raised, ...]:
    """All of lab3's errors, by file and line."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    kinds = _kinds(trees.values())
    constants = _constants(trees.values())
    found = [each for path, tree in trees.items() for each in _in_file(path, tree, kinds, constants)]
    return tuple(sorted(found, key=lambda each: (each.file, each.line)))


def _constants(trees: Iterable[ast.Module]) -> dict[str, ast.expr]:
    """Constants of modules, which others may import; those of one name in several modules are left out."""
    found: dict[str, list[ast.expr]] = {}
    for tree in trees:
        for node in tree.body:
            for targets, value in _assigned(node):
                for target in targets:
                    if isinstance(target, ast.Name) and target.id.isupper() and not target.id.startswith("_"):
                        found.setdefault(target.id, []).append(value)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def _kinds(trees: Iterable[ast.Module]) -> dict[str, int]:
    """Names of lab3's error classes, and the exit code of each."""
    kinds = dict(_LAB3)
    classes = [
        (node.name, [base.id for base in node.bases if isinstance(base, ast.Name)])
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    while new := {
        name: kinds[base] for name, bases in classes for base in bases if base in kinds and name not in kinds
    }:
        kinds |= new
    return kinds


def _in_file(
    path: Path, tree: ast.Module, kinds: Mapping[str, int], constants: Mapping[str, ast.expr]
) -> Iterator[Raised]:
    texts = _Texts(tree, constants)
    own = {  # a class that says its own words
        id(call): node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name in kinds and node.name not in _LAB3
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__"
    }
    for call, scope in texts.calls():
        name = own.get(id(call)) or ast.unparse(call.func)
        exit_code = 4 if name == _PYTEST else 2 if name == _ARGPARSE else kinds.get(name.rpartition(".")[2])
        if exit_code is None or (name.rpartition(".")[2] == "UsageError" and name not in ("UsageError", _PYTEST)):
            continue
        given = dict(zip(FIELDS, call.args, strict=False)) | {
            word.arg: word.value for word in call.keywords if word.arg
        }
        for told in texts.told(given, scope):
            found = Raised(path.relative_to(ROOT).as_posix(), call.lineno, name.rpartition(".")[2], exit_code, *told)
            # A class's constructor that hands its texts on, and a call of one that has its words itself.
            if found.what and not (id(call) in own and found.passed_on):
                yield found


@dataclass
class _Texts:
    """Turns a file's expressions into templates; names are looked up where they are assigned."""

    tree: ast.Module
    constants: Mapping[str, ast.expr]

    def calls(self) -> Iterator[tuple[ast.Call, ast.AST]]:
        """Every call, with the innermost function (or module) around it."""

        def below(node: ast.AST, scope: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
            for child in ast.iter_child_nodes(node):
                inner = child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else scope
                if isinstance(child, ast.Call):
                    yield child, inner
                yield from below(child, inner)

        return below(self.tree, self.tree)

    def told(self, given: dict[str, ast.expr], scope: ast.AST) -> Iterator[tuple[str, str, str]]:
        """(what, why, todo). Where `what` is the enclosing function's parameter, that of each call of the function."""
        what = given.get("what")
        names = _parameters(scope)
        rest = [self.text(given.get(field), scope) for field in FIELDS[1:]]
        if isinstance(what, ast.Name) and what.id in names:
            place = names.index(what.id)
            handed = [
                (call.args[place], where)
                for call, where in self.calls()
                if ast.unparse(call.func).rpartition(".")[2] == getattr(scope, "name", "") and len(call.args) > place
            ]
            yield from ((self.text(argument, where), rest[0], rest[1]) for argument, where in handed)
            if handed:
                return
        yield self.text(what, scope), rest[0], rest[1]

    def text(self, node: ast.AST | None, scope: ast.AST, depth: int = 0) -> str:
        match node:
            case None:
                return ""
            case ast.Constant(value=str() as value):
                return value
            case ast.Constant(value=value):
                return str(value)
            case ast.JoinedStr(values=values):
                return "".join(self.text(value, scope, depth) for value in values)
            case ast.FormattedValue(value=ast.Name() as name):
                return self._looked_up(name, scope, depth) or f"<{name.id}>"
            case ast.FormattedValue(value=value):
                inner = self.text(value, scope, depth) if isinstance(value, ast.IfExp | ast.Constant) else ""
                return inner or f"<{_name(value)}>"
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self.text(left, scope, depth) + self.text(right, scope, depth)
            case ast.IfExp(body=body, orelse=orelse):
                both = [self.text(each, scope, depth) for each in (body, orelse)]
                return " / ".join(dict.fromkeys(each for each in both if each))
            case ast.BoolOp(values=values):
                return " / ".join(dict.fromkeys(self.text(each, scope, depth) for each in values))
            case ast.Name() as name:
                return self._looked_up(name, scope, depth) or f"<{name.id}>"
            case _:
                return f"<{_name(node)}>"

    def _looked_up(self, name: ast.Name, scope: ast.AST, depth: int) -> str:
        """The texts that are assigned to a name, if nothing but texts are; "" else."""
        if depth > 3:
            return ""
        for where in (scope, self.tree):
            values = [
                value
                for node in ast.walk(where)
                for targets, value in _assigned(node)
                if any(isinstance(target, ast.Name) and target.id == name.id for target in targets)
                and (where is scope or node in self.tree.body)
            ]
            texts = [
                value for value in values if isinstance(value, ast.Constant | ast.JoinedStr | ast.IfExp | ast.BinOp)
            ]
            if values and len(values) == len(texts):
                found = [self.text(value, scope, depth + 1) for value in texts]
                return " / ".join(dict.fromkeys(each for each in found if each and each != "None"))
        elsewhere = self.constants.get(name.id)
        return self.text(elsewhere, scope, depth + 1) if isinstance(elsewhere, ast.Constant | ast.JoinedStr) else ""


def _assigned(node: ast.AST) -> Iterator[tuple[Sequence[ast.expr], ast.expr]]:
    if isinstance(node, ast.Assign):
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from (([one], two) for one, two in zip(node.targets[0].elts, node.value.elts, strict=False))
        else:
            yield node.targets, node.value
    elif isinstance(node, ast.AugAssign | ast.AnnAssign) and node.value is not None:
        yield [node.target], node.value


def _parameters(scope: ast.AST) -> list[str]:
    if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    return [each.arg for each in scope.args.args if each.arg not in ("self", "cls")]


def _name(node: ast.AST) -> str:
    """A word for a value: its name, or that of what it is made of."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_")
        case ast.Call(func=ast.Attribute(attr="join"), args=[argument]):
            return f"{_name(argument)}, …"
        case ast.Call(args=[argument, *_]) if not isinstance(argument, ast.Constant):
            return _name(argument)
        case ast.Call(func=ast.Attribute(value=value)) | ast.Subscript(value=value):
            return _name(value)
        case ast.Call(func=func):
            return _name(func)
        case ast.GeneratorExp(elt=value) | ast.ListComp(elt=value) | ast.Starred(value=value):
            return _name(value)
        case ast.BinOp(left=left, right=right):
            return _name(left) if not isinstance(left, ast.Constant) else _name(right)
        case ast.BoolOp(values=[value, *_]) | ast.IfExp(body=value) | ast.UnaryOp(operand=value):
            return _name(value)
        case ast.BoolOp() | ast.Compare() | ast.JoinedStr():
            return "…"
        case _:
            return "…"


def _literal(template: str) -> str:
    return re.sub(r"<[^<>]*>", "", template)
