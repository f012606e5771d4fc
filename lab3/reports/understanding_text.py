"""What a text, or a cell of a table, says of the two methods: sentence by sentence, clause by clause."""

from __future__ import annotations

import re

from lab3.reports.understanding_clauses import Method, State, is_label, methods_in, read_clause, remember
from lab3.reports.understanding_facts import Statement, statements_of
from lab3.reports.understanding_words import (
    clauses_of,
    comes_back,
    is_question,
    others_say,
    plain,
    sentences_of,
    tokens,
)

_NAMES = {"W": "W4A16", "K": "KV cache quantization"}
_FORMER = re.compile(r"前者|\bthe former\b|\bthe first one\b", re.I | re.A)
_LATTER = re.compile(r"后者|\bthe latter\b|\bthe second one\b", re.I | re.A)
_YES = ("是", "有", "yes", "√", "✓", "✔", "✅")
_NO = ("否", "无", "no", "none", "x", "×", "✗", "❌")
_ANSWERS = {**dict.fromkeys(_YES, "需要"), **dict.fromkeys(_NO, "不需要")}

__all__ = ["Statement", "cell_statements", "statements_in"]


def statements_in(text: str, *, label: str = "", order: tuple[str, ...] = ()) -> tuple[Statement, ...]:
    """All that a text says on the facts. `label` is the heading above it, `order` the methods as last named."""
    found: list[Statement] = []
    methods = methods_in(tokens(plain(label)))
    above = methods if len(methods) == 1 else frozenset()
    carried: frozenset[Method] = above
    for each in sentences_of(text):
        sentence = each.text
        if is_label(sentence):
            named = methods_in(tokens(sentence))
            carried = above = named if len(named) == 1 else above
        order = named_in_order(sentence) or order
        if is_question(sentence):
            continue
        state = State(methods=carried, explicit=bool(above) and carried == above)
        for part in clauses_of(_resolved(sentence, order)):
            if state.others and comes_back(part):
                state.others = False
            if others_say(part):
                state.others = True
            read = read_clause(part, state)
            if not state.others:
                found += statements_of(read, each.written)
            remember(read, state)
        carried = state.methods or carried
    return tuple(found)


def cell_statements(row: str, column: str, cell: str) -> tuple[Statement, ...]:
    """What a table's cell says, whose row and column are headed so: one is the method, the other the property."""
    heads = [(methods_in(tokens(plain(each))), each) for each in (row, column)]
    named = [(methods, each) for methods, each in heads if len(methods) == 1]
    if len(named) != 1:
        return ()
    property_ = column if named[0][1] == row else row
    answer = plain(cell).strip()
    first = answer.lower().split("(")[0].split(",")[0].split("，")[0].strip(" 。.")
    told = property_.replace("是否", "").replace("?", "").replace("？", "").replace("吗", "")
    if first in _ANSWERS:
        answer = f"{_ANSWERS[first]} {told} {answer[len(first) :]}"
        return statements_in(f"{named[0][1]} {answer}")
    return statements_in(f"{named[0][1]} {told} {answer}")


def named_in_order(sentence: str) -> tuple[str, ...]:
    """Names of the two methods, if a sentence has both: what `the former` and `the latter` mean after it."""
    sentence = plain(sentence)
    tags = [token.tag for token in tokens(sentence) if token.tag in ("W", "K")]
    first = next(iter(tags), "")
    return (_NAMES[first], _NAMES[{"W": "K", "K": "W"}[first]]) if len(set(tags)) == 2 else ()


def _resolved(sentence: str, order: tuple[str, ...]) -> str:
    if not order:
        return sentence
    return _LATTER.sub(f" {order[1]} ", _FORMER.sub(f" {order[0]} ", sentence))
