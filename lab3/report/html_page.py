"""The page of a run: one file in place of the homework's screenshots. It needs no network and no script."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab3.errors import InfraError
from lab3.evidence import Evidence
from lab3.grading.export_text import one_line, visible, write_text
from lab3.report import charts_lab
from lab3.report.charts import Chart, css
from lab3.report.charts_figures import change, figure, grouped, megabytes, memory_name, servers
from lab3.report.html_commands import commands
from lab3.report.html_words import Language, Words
from lab3.report.stored import Stored
from lab3.verdicts import Verdict, exit_code

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "report.html"  # its name in a run's folder

_TEMPLATES = [Path(__file__).parent / "templates", Path(__file__).parents[1] / "grading" / "templates"]
_MOST_ASKED = 5  # questions with tools that are drawn
_MOST_ROWS = 50  # of a table


@dataclass(frozen=True)
class Tile:
    """A figure that is seen first."""

    value: str
    label: str
    note: str = ""


def write_page(stored: Stored, path: Path, *, language: Language = "en") -> None:
    """Write the page whole or not at all. Raises InfraError if it cannot be written."""
    save(page(stored, language=language), path)


def save(text: str, path: Path) -> None:
    """Write a text whole or not at all. Raises InfraError if it cannot be written."""
    try:
        write_text(text, path)
    except OSError as error:
        raise InfraError(
            f"{path} cannot be written", why=str(error), todo="pass another --out, or make room", kind="disk"
        ) from error


def page(stored: Stored, *, language: Language = "en") -> str:
    """The page as HTML."""
    words = Words(language)
    evidence = stored.evidence
    return render(
        "report.html",
        words,
        run=stored,
        evidence=evidence,
        tasks=tasks(stored.verdicts),
        outcome=outcome(stored.verdicts, words),
        tiles=tiles(evidence, words),
        charts=charts(evidence, words),
        timed=bool(evidence.memory),
        calls=call_charts(evidence, words),
        commands=commands(evidence),
        most_rows=_MOST_ROWS,
    )


def charts(evidence: Evidence, words: Words) -> list[Chart]:
    """All charts but the calls', in the order of the lab; without those that the evidence has nothing for."""
    q = evidence.quantization
    drawn = [
        charts_lab.size_chart(q, words) if q else None,
        charts_lab.perplexity_chart(q, words) if q else None,
        *charts_lab.time_charts(evidence, words),
        charts_lab.peak_chart(evidence, words),
        charts_lab.capacity_chart(evidence, words),
    ]
    return [each for each in drawn if each is not None]


def call_charts(evidence: Evidence, words: Words) -> list[Chart]:
    """One for each question that needs calls, up to a few."""
    return [charts_lab.call_chart(each, number, words) for number, each in enumerate(evidence.tools[:_MOST_ASKED], 1)]


def tasks(verdicts: Iterable[Verdict]) -> list[tuple[int, list[tuple[int, Verdict]]]]:
    """Task → its verdicts with their numbers on the page; what no task asks for comes last."""
    numbered = list(enumerate(sorted(verdicts, key=lambda each: each.task or 99), 1))
    return [(task, list(found)) for task, found in groupby(numbered, key=lambda each: each[1].task)]


def outcome(verdicts: Iterable[Verdict], words: Words) -> tuple[str, str]:
    """(pass, fail or unknown, a sentence), as `lab3 run`'s exit code tells it."""
    known = list(verdicts)
    if not known:
        return "unknown", words("no_verdicts")
    status = {0: "pass", 1: "fail", 3: "unknown"}[exit_code(known)]
    count = sum(each.status == status for each in known if each.required)
    if status == "pass":
        return status, words("all_passed")
    name = "some_unknown" if status == "unknown" else "one_failed" if count == 1 else "some_failed"
    return status, words(name, count=count)


def tiles(evidence: Evidence, words: Words) -> list[Tile]:
    """What the lab is about, in a handful of figures."""
    found = []
    q, chat = evidence.quantization, evidence.chat
    if q is not None:
        sizes = f"{megabytes(q.weight_bytes_before)} → {megabytes(q.weight_bytes_after)}"
        found.append(Tile(change(q.weight_bytes_before, q.weight_bytes_after) or "–", words("weights"), sizes))
    known = servers(evidence)
    if known:
        peaks = " → ".join(grouped(each.facts.used_mib) for each in known)
        fall = change(known[0].facts.used_mib, known[-1].facts.used_mib) if len(known) > 1 else ""
        name = words("memory_tile", memory=memory_name(evidence, words))
        found.append(Tile(fall or f"{peaks} MiB", name, f"{peaks} MiB" if fall else ""))
    if evidence.quantized is not None and evidence.quantized.kv_tokens is not None:
        before = evidence.baseline.kv_tokens if evidence.baseline else None
        note = f"{grouped(before)} → {grouped(evidence.quantized.kv_tokens)}" if before is not None else ""
        found.append(Tile(grouped(evidence.quantized.kv_tokens), words("tokens_tile"), note))
    if q is not None and q.perplexity_before is not None and q.perplexity_after is not None:
        note = f"{figure(q.perplexity_before, 2)} → {figure(q.perplexity_after, 2)}"
        rise = change(q.perplexity_before, q.perplexity_after)
        found.append(Tile(rise or note, words("perplexity_short"), note if rise else ""))
    if chat is not None and chat.tokens_per_second is not None:
        note = words("first_token", seconds=figure(chat.ttft_s, 2)) if chat.ttft_s is not None else ""
        found.append(Tile(figure(chat.tokens_per_second, 1), words("speed_tile"), note))
    return found


def render(name: str, words: Words, **values: Any) -> str:
    """One of the pages; whatever is put into it is escaped, and made visible."""
    return _environment().get_template(name).render(w=words, **values) + "\n"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if hasattr(value, "__html__") else visible(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"chart_css": Markup(css())}
    made.filters |= {"one_line": one_line, "plainly": _plainly, "figure": figure, "grouped": grouped}
    # A chart is built by an XML library, which escapes what is put into it.
    made.filters["drawn"] = lambda chart: Markup(chart.svg)
    return made


def _plainly(value: Any) -> str:
    """A value of a verdict as a person writes it."""
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str), 600)
