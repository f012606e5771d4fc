"""A batch in short: how many of what, which checks fail most, who is alike; as facts and as a page."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args
from urllib.parse import quote

from lab3.grading.export_text import one_line
from lab3.grading.page import PAGE, render
from lab3.grading.results import Graded, Status
from lab3.grading.similar import MOST_PAIRS, Pair

SCHEMA = "lab3-grades/1"
_BANDS = 10  # of the scores


def summary(batch: Sequence[Graded], similar: Sequence[Pair]) -> dict[str, Any]:
    """The facts as JSON-ready values. Scores are of those submissions whose grading came to its end."""
    counts = Counter(each.status for each in batch)
    done = [each for each in batch if each.status in ("graded", "needs_review")]
    return {
        "schema": SCHEMA,
        "submissions": len(batch),
        "statuses": {status: counts[status] for status in get_args(Status)},
        "scores": _scores(done),
        "checks": _checks(batch),
        "similar": [_plain(pair) for pair in sorted(similar, key=_rank)],
        "similar_cut": len(similar) >= MOST_PAIRS,  # there may be more
    }


def summary_page(batch: Sequence[Graded], told: dict[str, Any]) -> str:
    """The same as a page that links each submission's."""
    links = {each.name: quote(f"./{each.name}/{PAGE}", errors="backslashreplace") for each in batch}
    columns = list(dict.fromkeys(verdict["id"] for each in batch for verdict in each.verdicts))  # as in the rubric
    rows = [(each, {verdict["id"]: verdict for verdict in each.verdicts}) for each in batch]
    return render("summary.html", told=told, rows=rows, links=links, columns=columns)


def _scores(done: Sequence[Graded]) -> dict[str, Any]:
    rates = [each.score / each.max_score for each in done if each.max_score > 0]
    bands = Counter(min(int(rate * _BANDS), _BANDS - 1) for rate in rates)
    scores = [each.score for each in done]
    return {
        "count": len(scores),
        "lowest": min(scores, default=None),
        "median": statistics.median(scores) if scores else None,
        "mean": round(statistics.fmean(scores), 2) if scores else None,
        "highest": max(scores, default=None),
        "percent": [
            {"from": 100 * band // _BANDS, "to": 100 * (band + 1) // _BANDS, "count": bands[band]}
            for band in range(_BANDS)
        ],
    }


def _checks(batch: Sequence[Graded]) -> list[dict[str, Any]]:
    """Those that failed most come first."""
    checks: dict[str, dict[str, Any]] = {}
    for each in batch:
        for verdict in each.verdicts:
            empty = {"id": one_line(verdict["id"]), "title": one_line(verdict["title"])}
            empty["title_zh"] = one_line(verdict["title_zh"])
            known = checks.setdefault(verdict["id"], empty | {"fail": 0, "unknown": 0, "pass": 0})
            known[verdict["status"]] += 1
    return sorted(checks.values(), key=lambda each: (-each["fail"], -each["unknown"], each["id"]))


def _rank(pair: Pair) -> Any:
    return (-max(pair.similarity or 0, *(rate for _, _, rate in pair.alike), 0), pair.first, pair.second)


def _plain(pair: Pair) -> dict[str, Any]:
    told = pair.to_dict()
    return told | {name: one_line(told[name], 1000) for name in ("first", "second", "text")}
