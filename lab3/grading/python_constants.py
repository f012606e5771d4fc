"""What an expression of a Python script is worth, as far as its syntax tree tells; nothing of it is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator

UNKNOWN = "\0"  # in a text: a piece that only running tells
_DEEPEST = 40
_MOST_STEPS = 5000  # for one expression: names that double each other would go on for ever
_MOST_STEPS_OF_ALL = 300_000
_LONGEST = 4096

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]


class Unknown(Exception):
    """Only running tells."""


class Constants:
    """Names, attributes and options that are given one value in the whole script."""

    def __init__(self, tree: ast.AST) -> None:
        self._given: dict[str, ast.expr | None] = {}  # None: several values
        self._grown: set[str] = set()  # lists and the like that something is added to
        self._items: dict[str, list[tuple[str, ast.expr]]] = {}  # name → what is put into it by subscript
        self._functions: dict[str, list[ast.FunctionDef | ast.AsyncFunctionDef]] = {}
        self._steps = self._all_steps = 0
        for node in ast.walk(tree):
            self._note(node)

    def grows(self, name: str) -> bool:
        """Whether the script adds something to what the name stands for."""
        return name in self._grown

    def given(self, name: str) -> ast.expr | None:
        """The one expression that the name is given, None if there is none or several."""
        return self._given.get(name)

    def value(self, node: ast.expr | None, depth: int = 0) -> Value:
        """Raises Unknown. A text may have UNKNOWN in it."""
        if node is None or not self._may_go_on(depth):
            raise Unknown
        match node:
            case ast.Constant(value=int() as number) if number.bit_length() > 64:  # Python refuses to print such
                raise Unknown
            case ast.Constant(value=str() | int() | float() | bool() | None as constant):
                return constant
            case ast.JoinedStr(values=parts):
                return "".join(self._piece(part, depth) for part in parts)[:_LONGEST]
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return self.value(self._given.get(name), depth + 1)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._sum(left, right, depth)
            case ast.BinOp(left=left, op=ast.Mod(), right=right):
                return self._formatted(left, right, depth)
            case ast.BoolOp(op=ast.Or(), values=choices):
                return self._first(choices, depth)
            case ast.IfExp(body=body, orelse=otherwise):
                return self._first([body, otherwise], depth)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [self._loose(element, depth) for element in elements[:500]]
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys[:500], values, strict=False)
                return {
                    str(self._loose(key, depth)): self._loose(value, depth) for key, value in pairs if key is not None
                }
            case ast.Subscript(value=holder, slice=key):
                return self._item(holder, key, depth)
            case ast.Call():
                return self._call(node, depth)
        raise Unknown

    def text(self, node: ast.expr | None) -> str | None:
        """The text that the expression is, with UNKNOWN for pieces that only running tells; None for anything else."""
        try:
            value = self.value(node)
        except (Unknown, RecursionError):
            return None
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None

    def words(self, node: ast.expr | None, depth: int = 0) -> list[tuple[str, int]] | None:
        """The texts of a list and the lines they stand in; None for anything else."""
        if not self._may_go_on(depth):
            return None
        match node:
            case ast.Name(id=name):
                return self.words(self._given.get(name), depth + 1)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                one, other = self.words(left, depth + 1), self.words(right, depth + 1)
                return None if one is None or other is None else (one + other)[:_MOST_STEPS]
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                found: list[tuple[str, int]] = []
                for element in elements[:500]:
                    inner = self.words(element.value, depth + 1) if isinstance(element, ast.Starred) else None
                    found += inner if inner is not None else [(self._piece(element, depth), element.lineno)]
                return found[:_MOST_STEPS]
        return None

    def keys(self, node: ast.expr | None, depth: int = 0) -> dict[str, ast.expr]:
        """The keys of the dict that the expression is, as far as they are known, and their values."""
        found: dict[str, ast.expr] = {}
        if not self._may_go_on(depth):
            return found
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found |= self.keys(self._given.get(name), depth + 1)
                found |= dict(self._items.get(name, ()))
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if key is None:
                        found |= self.keys(value, depth + 1)
                    elif isinstance(key, ast.Constant) and isinstance(key.value, str):
                        found[key.value] = value
            case ast.BinOp(left=left, right=right):
                found |= self.keys(left, depth + 1) | self.keys(right, depth + 1)
            case ast.Call(func=ast.Name(id="dict"), keywords=keywords):
                for keyword in keywords:
                    found |= {keyword.arg: keyword.value} if keyword.arg else self.keys(keyword.value, depth + 1)
            case ast.Call(
                func=ast.Attribute(attr="dumps" | "copy" | "deepcopy" | "encode", value=holder), args=arguments
            ):
                found |= self.keys(arguments[0] if arguments else holder, depth + 1)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                for function in self._functions.get(name, ())[:1]:
                    returned = [each for each in ast.walk(function) if isinstance(each, ast.Return)]
                    found |= self.keys(returned[0].value, depth + 1) if len(returned) == 1 else {}
        return found

    def _may_go_on(self, depth: int) -> bool:
        self._steps = self._steps + 1 if depth else 0
        self._all_steps += 1
        return depth <= _DEEPEST and self._steps <= _MOST_STEPS and self._all_steps <= _MOST_STEPS_OF_ALL

    # --- the parts of a value ----------------------------------------------------------------------------------------

    def _piece(self, node: ast.expr, depth: int) -> str:
        if isinstance(node, ast.FormattedValue):
            node = node.value
        try:
            value = self.value(node, depth + 1)
        except Unknown:
            return UNKNOWN
        return str(value) if isinstance(value, str | int | float) else UNKNOWN

    def _loose(self, node: ast.expr, depth: int) -> Value:
        try:
            return self.value(node, depth + 1)
        except Unknown:
            return UNKNOWN

    def _first(self, choices: list[ast.expr], depth: int) -> Value:
        for choice in choices:
            try:
                if (value := self.value(choice, depth + 1)) not in (None, ""):
                    return value
            except Unknown:
                continue
        raise Unknown

    def _sum(self, left: ast.expr, right: ast.expr, depth: int) -> Value:
        one, other = self._loose(left, depth), self._loose(right, depth)
        if isinstance(one, list) and isinstance(other, list):
            return one + other
        if isinstance(one, str) and isinstance(other, str):
            return (one + other)[:_LONGEST]
        if isinstance(one, int) and isinstance(other, int):
            return one + other
        raise Unknown

    def _formatted(self, left: ast.expr, right: ast.expr, depth: int) -> Value:
        """`"http://%s:%d" % (host, port)`: only the plainest."""
        pattern, values = self.value(left, depth + 1), self._loose(right, depth)
        if not isinstance(pattern, str):
            raise Unknown
        for value in values if isinstance(values, list) else [values]:
            at = min((place for place in (pattern.find("%s"), pattern.find("%d")) if place >= 0), default=-1)
            if at >= 0:
                pattern = pattern[:at] + (str(value) if isinstance(value, str | int) else UNKNOWN) + pattern[at + 2 :]
        return pattern[:_LONGEST]

    def _item(self, holder: ast.expr, key: ast.expr, depth: int) -> Value:
        name = self._loose(key, depth)
        if isinstance(name, str) and (known := self.keys(holder, depth + 1).get(name)) is not None:
            return self.value(known, depth + 1)
        raise Unknown

    def _call(self, call: ast.Call, depth: int) -> Value:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        holder = call.func.value if isinstance(call.func, ast.Attribute) else None
        arguments = call.args
        match name:
            case "get" | "getenv" | "setdefault" | "pop" if len(arguments) == 2:  # os.environ.get(NAME, default)
                return self.value(arguments[1], depth + 1)
            case "str" | "int" | "strip" | "rstrip" | "URL" | "split":
                return self.value(
                    arguments[0] if arguments and (holder is None or name == "split") else holder, depth + 1
                )
            case "format" if holder is not None:
                return self._format(holder, call, depth)
            case "join" if holder is not None and arguments:
                separator, parts = self.value(holder, depth + 1), self.value(arguments[0], depth + 1)
                if isinstance(separator, str) and isinstance(parts, list):
                    return separator.join(str(part) for part in parts)[:_LONGEST]
        raise Unknown

    def _format(self, holder: ast.expr, call: ast.Call, depth: int) -> Value:
        pattern = self.value(holder, depth + 1)
        if not isinstance(pattern, str):
            raise Unknown
        for number, argument in enumerate(call.args):
            value = self._piece(argument, depth)
            for field in ("{}", f"{{{number}}}"):
                pattern = pattern.replace(field, value, 1 if field == "{}" else -1)
        for keyword in call.keywords:
            pattern = pattern.replace(f"{{{keyword.arg}}}", self._piece(keyword.value, depth))
        return pattern[:_LONGEST]

    # --- what the script gives to its names --------------------------------------------------------------------------

    def _note(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._target(target, value)
            case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value):
                self._target(target, value)
            case ast.AugAssign(target=ast.Name(id=name) | ast.Attribute(attr=name)):
                self._grown.add(name)
            case ast.For(target=target) | ast.comprehension(target=target):
                self._target(target, None)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._functions.setdefault(node.name, []).append(node)
                for name, default in _defaults(node.args):
                    self._give(name, default)
            case ast.Call(func=ast.Attribute(attr="append" | "extend" | "insert", value=ast.Name(id=name))):
                self._grown.add(name)
            case ast.Call(func=ast.Attribute(attr="update", value=ast.Name(id=name) | ast.Attribute(attr=name))):
                items = [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
                for argument in node.args:
                    items += [] if isinstance(argument, ast.Name) and argument.id == name else list(_literal(argument))
                self._items.setdefault(name, []).extend(items)
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=[*names]):
                self._option(names, node)

    def _target(self, target: ast.expr, value: ast.expr | None) -> None:
        match target:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                self._give(name, value)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                values = value.elts if isinstance(value, ast.Tuple | ast.List) else []
                same = len(values) == len(elements)
                for number, element in enumerate(elements):
                    self._target(element, values[number] if same else None)
            case ast.Subscript(
                value=ast.Name(id=name) | ast.Attribute(attr=name), slice=ast.Constant(value=str() as key)
            ):
                if value is not None:
                    self._items.setdefault(name, []).append((key, value))

    def _give(self, name: str, value: ast.expr | None) -> None:
        if isinstance(value, ast.Name) and value.id == name:  # self.base_url = base_url
            return
        known = self._given.get(name, value)
        same = known is value or (
            isinstance(known, ast.Constant) and isinstance(value, ast.Constant) and known.value == value.value
        )
        self._given[name] = value if same else None

    def _option(self, names: list[ast.expr], call: ast.Call) -> None:
        """`add_argument("--base-url", default=…)`: the attribute `base_url` of what the parser returns."""
        texts = [each.value for each in names if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        long = next((text for text in texts if text.startswith("--")), texts[0] if texts else "")
        stored = next((word.value for word in call.keywords if word.arg == "dest"), None)
        name = stored.value if isinstance(stored, ast.Constant) else long.lstrip("-").replace("-", "_")
        default = next((word.value for word in call.keywords if word.arg == "default"), None)
        if isinstance(name, str) and name and default is not None and self._given.get(name) is None:
            self._given[name] = default


def _defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr | None]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for argument, default in zip(positional, [*missing, *arguments.defaults], strict=True):
        yield argument.arg, default
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield argument.arg, default


def _literal(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, value
