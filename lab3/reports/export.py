"""What a batch of reports is written as: tables, JUnit, Gradescope and summaries, with what people decided in them.

The forms are lab3.grading's; here a report's result is put into its words, and what only reports have is added.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab3.grading.export_text import cell, one_line, write_text
from lab3.grading.exporters import RESERVED as GRADING_RESERVED
from lab3.grading.exporters import write_outputs as write_grading_outputs
from lab3.grading.results import Graded
from lab3.grading.similar import Pair
from lab3.reports.model import GradedReport, Likeness, Place
from lab3.reports.overrides import Final, Override, finals
from lab3.reports.page_words import WORDS, Language

RESULTS_CSV = "results.csv"
SUMMARY_MD = "summary.md"
LIKENESSES = "likenesses.json"
RESERVED = GRADING_RESERVED | {RESULTS_CSV, SUMMARY_MD, LIKENESSES}
_COLUMNS = ("report", "check", "task", "status", "points", "max_points", "lab3_status", "kind", "review", "decided")
_MORE_COLUMNS = ("note", "changed", "reason", "expected", "actual", "where")


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A report with its verdicts as they count."""

    graded: GradedReport
    verdicts: tuple[Final, ...]
    trouble: str = ""  # with what people decided

    @property
    def score(self) -> int:
        return sum(each.points for each in self.verdicts)

    @property
    def max_score(self) -> int:
        return sum(each.judged.max_points for each in self.verdicts)

    @property
    def status(self) -> Any:
        """Nothing is open once a person decided on all that asked for it."""
        if self.graded.status in ("infra_error", "timeout"):
            return self.graded.status
        return "needs_review" if self.trouble or self.reasons else "graded"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not simply graded."""
        if self.graded.status in ("infra_error", "timeout"):
            return self.graded.reasons
        of_checks = {each.judged.review for each in self.verdicts}
        own = [each for each in self.graded.reasons if each not in of_checks]
        changed = [f"{each.judged.id}: {each.told}" for each in self.verdicts if each.changed]
        asked = [each.judged.review for each in self.verdicts if each.open and not each.changed]
        return tuple(dict.fromkeys(filter(None, [self.trouble, *own, *changed, *asked])))


def settled(graded: GradedReport, overrides: Mapping[str, Override], *, trouble: str = "") -> Settled:
    """The report's verdicts, with what a person decided."""
    return Settled(graded=graded, verdicts=finals(graded.judged, overrides), trouble=trouble)


def write_outputs(
    batch: Sequence[Settled], out: Path, *, likenesses: Sequence[Likeness] = (), language: Language = "en"
) -> None:
    """Write lab3.grading's outputs (grades.csv, junit.xml, summary.json and .html, NAME/results.json), and beside
    them results.csv with a row for each verdict, and summary.md. Each is written whole or not at all."""
    ordered = sorted(batch, key=lambda each: each.graded.name)
    pairs = [_as_pair(each) for each in likenesses]
    write_grading_outputs([as_graded(each) for each in ordered], out, similar=pairs)
    write_text(results_csv(ordered), out / RESULTS_CSV)
    write_text(summary_md(ordered, likenesses, language), out / SUMMARY_MD)


def as_graded(settled: Settled) -> Graded:
    """The report as a submission's result, for the exporters."""
    graded = settled.graded
    return Graded(
        name=graded.name,
        student=graded.name,
        status=settled.status,
        reasons=settled.reasons,
        score=settled.score,
        max_score=settled.max_score,
        verdicts=tuple(_as_verdict(each) for each in settled.verdicts),
        collected={},
        runs=(),
        evidence={},
        key=graded.key,
        times=dict(graded.times),
    )


def results_csv(batch: Sequence[Settled]) -> str:
    """A row for each verdict. It begins with the mark by which Excel knows UTF-8."""
    text = io.StringIO()
    table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    table.writerow([*_COLUMNS, *_MORE_COLUMNS])
    for each in batch:
        for verdict in each.verdicts:
            table.writerow([cell(value) for value in _row(each.graded.name, verdict)])
    return "\ufeff" + text.getvalue()


def summary_md(batch: Sequence[Settled], likenesses: Sequence[Likeness], language: Language = "en") -> str:
    """The batch in short, for a terminal or a forge."""
    words = WORDS[language]
    return "\n".join(
        [
            f"# {len(batch)} {words['reports']}",
            "",
            f"| {words['report']} | {words['score']} | {words['status']} | {words['fail']} | {words['review']} |",
            "| --- | ---: | --- | --- | --- |",
            *(_line(each, words) for each in batch),
            "",
            f"## {words['checks']}",
            "",
            f"| id | {words['pass']} | {words['fail']} | {words['unknown']} | {words['decided']} |",
            "| --- | ---: | ---: | ---: | ---: |",
            *_check_lines(batch),
            "",
            *_alike_lines(likenesses, words),
        ]
    )


def where(place: Place) -> str:
    """A place in a word or two."""
    parts = [f"block {place.block}", f"line {place.line}" if place.line is not None else ""]
    if place.box is not None:
        parts.append(f"box {','.join(map(str, place.box))}")
    return " ".join(filter(None, parts))


def _as_verdict(final: Final) -> dict[str, Any]:
    judged = final.judged
    reason = f"{judged.reason} ({final.told})" if final.decided else judged.reason
    return {
        "id": judged.id,
        "task": judged.task,
        "title": judged.title,
        "title_zh": judged.title_zh,
        "status": final.status,
        "points": final.points,
        "max_points": judged.max_points,
        "reason": reason,
        "expected": judged.expected or None,
        "actual": judged.actual or None,
        "source": "; ".join(where(place) for place in judged.places[:5]),
        "required": True,
        "blame": None,
    }


def _as_pair(likeness: Likeness) -> Pair:
    return Pair(
        first=likeness.one,
        second=likeness.other,
        similarity=likeness.share,
        measured_on=0,
        common=0.0,
        equal_files=(),
        alike=(),
        text=f"{likeness.kind}: {likeness.what}",
    )


def _row(name: str, final: Final) -> Iterator[Any]:
    judged, override = final.judged, final.override
    yield from (name, judged.id, judged.task, final.status, final.points, judged.max_points, judged.status, judged.kind)
    yield judged.review if final.open else ""
    yield "" if override is None or override.status is None else "accepted" if override.accepted else "overridden"
    yield override.note if override else ""
    yield f"was {override.was_status}" if final.changed and override else ""
    yield from (judged.reason, judged.expected, judged.actual)
    yield "; ".join(f"{where(place)}: {one_line(place.quote, 100)}" for place in judged.places[:5])


def _line(each: Settled, words: Mapping[str, str]) -> str:
    failed = [verdict.judged.id for verdict in each.verdicts if verdict.status == "fail"]
    name, status = _marked(each.graded.name), words[each.status]
    reasons = _marked("; ".join(each.reasons), 300)
    return f"| {name} | {each.score}/{each.max_score} | {status} | {_marked(', '.join(failed))} | {reasons} |"


def _check_lines(batch: Sequence[Settled]) -> Iterator[str]:
    counts: dict[str, Counter[str]] = {}
    for each in batch:
        for verdict in each.verdicts:
            counts.setdefault(verdict.judged.id, Counter()).update([verdict.status])
            counts[verdict.judged.id]["decided"] += verdict.decided
    for check, count in counts.items():
        yield f"| {_marked(check)} | {count['pass']} | {count['fail']} | {count['unknown']} | {count['decided']} |"


def _alike_lines(likenesses: Sequence[Likeness], words: Mapping[str, str]) -> Iterator[str]:
    if likenesses:
        yield from (f"## {words['alike']}", "", words["alike_says"], "")
        for each in likenesses:
            share = "" if each.share is None else f" ({each.share:.0%})"
            yield f"- {_marked(each.one)} ~ {_marked(each.other)}: {_marked(each.what)}{share}"
        yield ""


def _marked(text: str, limit: int = 500) -> str:
    """Text of strangers that Markdown takes for text."""
    plain = one_line(text, limit)
    return "".join(f"\\{each}" if each in "\\`*_{}[]<>|#!~&" else each for each in plain)
