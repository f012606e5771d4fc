"""What a batch of graded submissions is written as: tables, JUnit, Gradescope and a summary, in the order of names.

Nothing in them depends on when, in which order or how fast the submissions were graded.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab3.errors import UsageError
from lab3.grading.export_gradescope import gradescope
from lab3.grading.export_junit import junit
from lab3.grading.export_summary import summary, summary_page
from lab3.grading.export_text import cell, write_text
from lab3.grading.results import Graded
from lab3.grading.similar import Pair
from lab3.report.json_report import write_report

RESERVED = frozenset({"grades.csv", "junit.xml", "summary.json", "summary.html"})


def write_outputs(graded: Sequence[Graded], out: Path, *, similar: Sequence[Pair] = ()) -> None:
    """Write grades.csv, junit.xml, summary.json and summary.html to `out`, and NAME/results.json for each submission.

    Each file is written whole or not at all. Raises UsageError for names that are no folder's, or that come twice.
    """
    check_names([each.name for each in graded])
    batch = sorted(graded, key=lambda each: each.name)
    for each in batch:
        write_report(gradescope(each), out / each.name / "results.json")
    write_text(grades(batch), out / "grades.csv")
    write_text(junit(batch), out / "junit.xml")
    told = summary(batch, similar)
    write_report(told, out / "summary.json")
    write_text(summary_page(batch, told), out / "summary.html")


def check_names(names: Sequence[str]) -> None:
    """Raises UsageError unless each submission can have a folder of its own among the results."""
    bad = [name for name in names if name in ("", ".", "..") or "/" in name or "\0" in name or name in RESERVED]
    bad += [name for name, count in Counter(names).items() if count > 1]
    if bad:
        raise UsageError(
            f"submissions whose results cannot have a folder of their own: {', '.join(map(repr, bad[:5]))}",
            why="two have the same name, or it is no folder's name, or a result of the batch is called so",
            todo="rename the submissions' folders",
        )


def grades(batch: Sequence[Graded]) -> str:
    """The table for spreadsheets: a row a submission. It begins with the mark by which Excel knows UTF-8."""
    checks = list(dict.fromkeys(verdict["id"] for each in batch for verdict in each.verdicts))
    columns = [f"{check} {what}" for check in checks for what in ("points", "status")]
    text = io.StringIO()
    # All texts in quotes: a spreadsheet of a country that separates by semicolons splits none of them.
    table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    table.writerow([cell(name) for name in ("name", "student", "status", "score", "max_score", *columns, "reasons")])
    for each in batch:
        table.writerow(_row(each, checks))
    return "\ufeff" + text.getvalue()


def _row(each: Graded, checks: Sequence[str]) -> list[Any]:
    verdicts = {verdict["id"]: verdict for verdict in each.verdicts}
    found = [verdicts.get(check, {}) for check in checks]
    middle = [cell(verdict.get(what)) for verdict in found for what in ("points", "status")]
    first = [cell(value) for value in (each.name, each.student, each.status, each.score, each.max_score)]
    return [*first, *middle, cell(" | ".join(each.reasons))]
