"""Screens that are no terminals: a cloud studio's bar, a chat in a browser, a script in an editor."""

from __future__ import annotations

import html
import keyword
import re
from collections.abc import Sequence

from tools.report_corpus.lab import percent

_SANS = '"Liberation Sans", "WenQuanYi Micro Hei", sans-serif'


def bar(
    used: int,
    total: int,
    *,
    card: str = "30% Nvidia A100",
    shown: str = "",
    dark: bool = True,
    size: int = 13,
    moment: int = 0,
) -> str:
    """A studio's bar of the machine's use, in a layout of our own. `shown`: the percentage, if it is not to fit.

    `moment` decides over what changes from one to another: the CPU's load, the memory of the machine.
    """
    paper, ink, edge = ("#15161c", "#e8e8ee", "#3b3d4a") if dark else ("#f6f7fb", "#23242b", "#c9cbd6")
    held = 3 + moment % 900 / 100
    cells = (
        ("CPU", "", f"{moment % 4000 / 100 + 1:.2f}%", "#2fae62"),
        ("GPU-1:", card, f"{moment % 7}%", "#4a7df0"),
        ("内存", f"{held:.2f} / 72 GB", f"{held / 0.72:.2f}%", "#e59a3c"),
        ("显存", f"{used} / {total} MiB", shown or percent(used, total), "#a06be0"),
    )
    drawn = "".join(
        f'<div>{name} {html.escape(value)} <b style="color:{colour}">{share}</b></div>'
        for name, value, share, colour in cells
    )
    return f"""<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }}
#shot {{ display: inline-grid; grid-template-columns: auto auto; gap: 3px 22px; padding: 9px 14px; background: {paper};
  color: {ink}; font: {size}px/1.25 {_SANS}; border: 1px solid {edge}; border-radius: 5px }}
b {{ margin-left: 9px }}</style><div id="shot">{drawn}</div>"""


def chat(
    model: str, turns: Sequence[tuple[str, str]], *, dark: bool = False, title: str = "Local LLM chat", width: int = 900
) -> str:
    """A browser's page with a conversation: questions on the right, answers on the left."""
    paper, ink, mine, theirs = (
        ("#1b1e25", "#e6e6e6", "#2c4a7a", "#2a2d35") if dark else ("#fafafa", "#222", "#d9eaff", "#fff")
    )
    said = "".join(
        f'<p class="me">{html.escape(question)}</p><p class="it">{html.escape(answer)}</p>'
        for question, answer in turns
    )
    return f"""<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }}
#shot {{ width: {width}px; background: {paper}; color: {ink}; font: 15px/1.5 {_SANS}; padding: 18px;
  display: inline-block }}
h1 {{ font-size: 19px; margin: 0 0 8px }} .model {{ font: 13px "DejaVu Sans Mono"; color: #6b8fd6 }}
p {{ padding: 8px 12px; border-radius: 8px; max-width: 76%; width: fit-content; white-space: pre-wrap }}
.me {{ background: {mine}; margin: 12px 0 12px auto }} .it {{ background: {theirs}; border: 1px solid #8884 }}
.ask {{ border: 1px solid #8886; padding: 9px; color: #999; border-radius: 6px; max-width: none; width: auto }}
</style><div id="shot"><h1>{html.escape(title)}</h1><div class="model">{html.escape(model)}</div>{said}
<p class="ask">Type a message and press Enter…</p></div>"""


def editor(code: str, *, first: int = 1, dark: bool = True, size: int = 14) -> str:
    """Python in an editor, with line numbers from `first`."""
    paper, ink, word, text, number = (
        ("#1f1f1f", "#d4d4d4", "#c586c0", "#ce9178", "#6e7681")
        if dark
        else ("#fff", "#222", "#a626a4", "#50a14f", "#999")
    )
    token = re.compile(r"('(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")|\b(\w+)\b")

    def coloured(found: re.Match[str]) -> str:
        if found[1]:
            return f'<span style="color:{text}">{html.escape(found[1])}</span>'
        return f'<span style="color:{word}">{found[2]}</span>' if keyword.iskeyword(found[2]) else found[0]

    pieces = []
    for at, line in enumerate(code.rstrip("\n").split("\n"), first):
        pieces.append(f"<div><i>{at}</i>{token.sub(coloured, html.escape(line, quote=False))}</div>")
    return f"""<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }}
#shot {{ background: {paper}; color: {ink}; font: {size}px/1.35 "DejaVu Sans Mono", "WenQuanYi Micro Hei Mono";
  display: inline-block;
  padding: 6px 24px 6px 6px; white-space: pre }}
i {{ display: inline-block; width: 34px; margin-right: 20px; text-align: right; font-style: normal; color: {number} }}
</style><div id="shot">{"".join(pieces)}</div>"""
