"""The words of a shell's commands, by tree-sitter's grammar of bash; nothing is run or looked up outside."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Language, Node, Parser

Variables = dict[str, tuple[str, ...]]

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
# To bash all of it is part of a word, and none of a name. tree-sitter-bash asks C's `isalnum` about each character,
# which is defined for the first 256 alone: at others it reads beyond a table, and a grader ended by SIGSEGV.
_PLACEHOLDER = "\N{SECTION SIGN}"
_ENCODING, _BYTES = "utf-16-le", 2  # of each character, the placeholder included: an offset tells a place in the text


@dataclass(frozen=True, kw_only=True)
class Word:
    """`text` as the command gets it; `unknown` if part of it is a variable or the output of a command."""

    text: str
    line: int
    unknown: bool = False


@dataclass(frozen=True, kw_only=True)
class SimpleCommand:
    """One command with its arguments, and the assignments before it."""

    words: tuple[Word, ...]
    environment: tuple[tuple[str, str], ...] = ()


def simple_commands(text: str, *, line: int, variables: Variables) -> tuple[SimpleCommand, ...]:
    """The commands of `text`, wherever they stand in it. Assignments go into `variables`, and are used from there.

    What is no bash is read as plain words.
    """
    root = _parser().parse(_NOT_ASCII.sub(_PLACEHOLDER, text).encode(_ENCODING), encoding="utf16le").root_node
    found = tuple(_commands(root, _Reader(text.encode("utf-8", "replace").decode(), line, variables)))
    if found or not root.has_error:
        return found
    return tuple(_plain_words(text, line))


class _Reader:
    """What the nodes of one text mean."""

    def __init__(self, source: str, line: int, variables: Variables) -> None:
        self._source, self._line, self.variables = source, line, variables

    def words(self, node: Node) -> tuple[Word, ...]:
        """The words that `node` becomes: several for an array or an unquoted variable with spaces."""
        known = self._values(node)
        line = self._line + node.start_point.row
        if known is not None:
            return tuple(Word(text=value, line=line) for value in known)
        text, unknown = self._text(node)
        return (Word(text=text, line=line, unknown=unknown),)

    def assign(self, node: Node) -> tuple[str, str]:
        """Keep the assignment; its name and value."""
        name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        key = self.raw(name) if name is not None else ""
        values: tuple[str, ...] = ("",)
        if value is not None and value.type == "array":
            values = tuple(word.text for child in value.named_children for word in self.words(child))
        elif value is not None:
            text, unknown = self._text(value)
            values = () if unknown else (text,)
        added = any(child.type == "+=" for child in node.children)
        if not values and value is not None and value.type != "array":
            self.variables.pop(key, None)
        elif len(self.variables) < 500:
            self.variables[key] = (*self.variables.get(key, ()), *values) if added else values
        return key, " ".join(values)

    def raw(self, node: Node) -> str:
        return self._source[node.start_byte // _BYTES : node.end_byte // _BYTES]

    def _values(self, node: Node) -> tuple[str, ...] | None:
        """The values of a variable that is a whole word, split as bash does; None for other nodes and names."""
        quoted = node.type == "string"
        inner = [child for child in node.children if child.type in ("simple_expansion", "expansion")]
        if quoted:
            if len(inner) != 1 or any(child.type == "string_content" for child in node.children):
                return None
            node = inner[0]
        if node.type not in ("simple_expansion", "expansion"):
            return None
        is_array = any(child.type == "subscript" for child in node.children)
        values = self.variables.get(self._name(node))
        if values is None or (quoted and not is_array):
            return None
        return (
            values
            if quoted
            else tuple(part for value in values for part in (value.split() if not is_array else [value]))
        )

    def _name(self, node: Node) -> str:
        for child in node.children:
            if child.type in ("variable_name", "special_variable_name"):
                return self.raw(child)
            if child.type == "subscript":
                return self._name(child)
        return ""

    def _text(self, node: Node) -> tuple[str, bool]:
        raw = self.raw(node)
        match node.type:
            case "word" | "string_content":
                return _unescaped(raw, quoted=node.type == "string_content"), False
            case "number" | "variable_name":
                return raw, False
            case "raw_string":
                return raw[1:-1], False
            case "ansi_c_string":
                return raw[2:-1], False
            case "string" | "concatenation" | "translated_string" | "command_name":
                parts = [self._text(child) for child in node.children if child.type not in ('"', "$")]
                return "".join(text for text, _ in parts), any(unknown for _, unknown in parts)
            case "simple_expansion" | "expansion":
                return self._expanded(node, raw)
            case _:
                return raw, not node.is_named or node.type != "array"

    def _expanded(self, node: Node, raw: str) -> tuple[str, bool]:
        before = raw[: len(raw) - len(raw.lstrip())]  # the grammar gives "${" the spaces before it
        values = self.variables.get(self._name(node))
        children = node.children
        operator = next((at for at, child in enumerate(children) if child.type in (":-", "-", ":=", "=")), None)
        if values is None and operator is not None:
            parts = [self._text(child) for child in children[operator + 1 :] if child.type != "}"]
            return before + "".join(text for text, _ in parts), any(unknown for _, unknown in parts)
        if values is None or (operator is None and len(children) > 3):  # ${NAME%x} and the like
            return raw, True
        return before + " ".join(values), False


def _commands(root: Node, reader: _Reader) -> Iterator[SimpleCommand]:
    """Each command below `root` in the order of the text; a loop, since hostile text nests deeply."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.type == "variable_assignment":
            reader.assign(node)
        elif node.type == "command":
            yield _command(node, reader)
        else:
            waiting.extend(reversed(node.children))


def _command(node: Node, reader: _Reader) -> SimpleCommand:
    words: list[Word] = []
    for child in node.children:
        if (
            child.is_named
            and not child.is_error
            and "redirect" not in child.type
            and child.type != "variable_assignment"
        ):
            words.extend(reader.words(child))
    own = dict(reader.variables)
    environment = [reader.assign(child) for child in node.children if child.type == "variable_assignment"]
    reader.variables.clear()
    reader.variables.update(own)  # an assignment before a command is for that command alone, and not for its words
    around = node.parent
    if around is not None and around.type == "redirected_statement":
        for redirect in around.children:
            if redirect.type == "file_redirect":  # bash takes words after a redirection as the command's
                words.extend(
                    word
                    for late in redirect.named_children[1:]
                    if late.prev_sibling is not None
                    and late.prev_sibling.is_named
                    and late.prev_sibling.type != "file_descriptor"
                    for word in reader.words(late)
                )
    return SimpleCommand(words=tuple(words), environment=tuple(environment))


def _plain_words(text: str, line: int) -> Iterator[SimpleCommand]:
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[Word] = []
    try:
        for token in lexer:
            if token and set(token) <= set("();<>|&"):
                yield SimpleCommand(words=tuple(words))
                words = []
            else:
                words.append(Word(text=token, line=line))
    except ValueError:  # a quote without its partner
        words = [Word(text=word, line=line) for word in text.split()]
    yield SimpleCommand(words=tuple(words))


def _unescaped(text: str, *, quoted: bool) -> str:
    kept: list[str] = []
    escaped = False
    for each in text:
        if escaped:
            escaped = False
            if each != "\n":
                kept.append(each if not quoted or each in '"\\$`' else f"\\{each}")
        elif each == "\\":
            escaped = True
        else:
            kept.append(each)
    return "".join(kept)


def _parser() -> Parser:
    """One for each text: threads may not share one."""
    from tree_sitter import Parser

    return Parser(_language())


@lru_cache(maxsize=1)
def _language() -> Language:
    import tree_sitter_bash
    from tree_sitter import Language

    return Language(tree_sitter_bash.language())
