"""The page of a graded report, for who reviews it: the report on the left, verdicts on the right, places marked.

A report is a stranger's: all its text is escaped, its pictures are decoded and written anew, and the page's policy
allows one script, by its hash, and no address but the one that it came from.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup

from lab3.grading.export_text import visible, write_text
from lab3.grading.page import PAGE, render
from lab3.reports.model import Block, Box, GradedReport, Likeness, Place, Report
from lab3.reports.overrides import Final, Override, finals
from lab3.reports.page_pictures import Preview, data_uri, previews
from lab3.reports.page_words import WORDS, Language

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_BLOCKS = 3000
_MOST_READ = 400  # boxes of a picture
_MOST_ROWS = 300  # of a table


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """A box on a picture, in percent of it; `id` is what a place leads to."""

    id: str
    left: float
    top: float
    width: float
    height: float
    title: str
    judged: bool


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A block of the report as the page has it."""

    number: int
    block: Block
    uri: Markup  # lab3's own, and longer than any text that a page shows
    marks: tuple[_Mark, ...] = ()
    section: str = ""


def write_report_page(
    graded: GradedReport,
    report: Report | None,
    folder: Path,
    *,
    overrides: Mapping[str, Override],
    likenesses: Sequence[Likeness] = (),
    language: Language = "en",
) -> None:
    """Write the page of the report whose results lie in `folder`, whole or not at all."""
    text = report_page(graded, report, folder, overrides=overrides, likenesses=likenesses, language=language)
    write_text(text, folder / PAGE)


def report_page(
    graded: GradedReport,
    report: Report | None,
    folder: Path,
    *,
    overrides: Mapping[str, Override],
    likenesses: Sequence[Likeness] = (),
    language: Language = "en",
    token: str = "",
) -> str:
    """The page as HTML. `token`: it is served by lab3, and decisions go back there with it."""
    words = WORDS[language]
    verdicts = finals(graded.judged, overrides)
    marks = _Marks(previews(folder), report.blocks if report else ())
    for verdict in verdicts:
        for place in verdict.judged.places:
            marks.add(place, judged=True)
    for reading in graded.readings:
        marks.add(reading.place, judged=False)
    script = _script()
    return render(
        "report_page.html",
        graded=graded,
        words=words,
        language=language,
        tasks=_by_task(verdicts),
        score=sum(each.points for each in verdicts),
        most=sum(each.judged.max_points for each in verdicts),
        shown=[_shown(number, report, marks, folder) for number in range(_count(report))],
        cut=report is not None and len(report.blocks) > _MOST_BLOCKS,
        most_rows=_MOST_ROWS,
        anchor=marks.anchor,
        likenesses=likenesses,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_data(graded, overrides, words, token),
    )


class _Marks:
    """The boxes of all places, by block: several verdicts that point at one box share it."""

    def __init__(self, found: Mapping[str, Preview], blocks: Sequence[Block]) -> None:
        self.previews, self._blocks = found, blocks
        self._known: dict[tuple[int, Box], _Mark] = {}
        self._by_block: dict[int, list[_Mark]] = {}

    def add(self, place: Place, *, judged: bool) -> None:
        preview = self._preview(place.block)
        if place.box is None or preview is None or (place.block, place.box) in self._known:
            return
        beside = self._by_block.setdefault(place.block, [])
        if len(beside) >= _MOST_READ:
            return
        left, top, right, bottom = place.box
        mark = _Mark(
            id=f"m{len(self._known)}",
            left=_percent(left, preview.width),
            top=_percent(top, preview.height),
            width=_percent(max(right - left, 1), preview.width),
            height=_percent(max(bottom - top, 1), preview.height),
            title=visible(f"{place.quote} ({place.confidence:.0%})", 500),
            judged=judged,
        )
        self._known[place.block, place.box] = mark
        beside.append(mark)

    def of(self, block: int) -> tuple[_Mark, ...]:
        return tuple(self._by_block.get(block, ()))

    def anchor(self, place: Place) -> str:
        """The id of what a place leads to: its box, or its block."""
        mark = self._known.get((place.block, place.box)) if place.box is not None else None
        return mark.id if mark else f"b{place.block}"

    def _preview(self, block: int) -> Preview | None:
        picture = self._blocks[block].picture if 0 <= block < len(self._blocks) else None
        return self.previews.get(picture.digest) if picture is not None else None


def _shown(number: int, report: Report | None, marks: _Marks, folder: Path) -> _Shown:
    block = (report.blocks if report else ())[number]
    preview = marks.previews.get(block.picture.digest) if block.picture is not None else None
    uri = Markup(data_uri(preview, folder) if preview else "")
    return _Shown(number=number, block=block, uri=uri, marks=marks.of(number) if uri else ())


def _count(report: Report | None) -> int:
    return min(len(report.blocks), _MOST_BLOCKS) if report else 0


def _by_task(verdicts: Sequence[Final]) -> list[tuple[int, list[Final]]]:
    """The tasks in their order, what is about the whole last; verdicts in the rubric's order."""
    tasks = sorted({each.judged.task for each in verdicts}, key=lambda task: (task == 0, task))
    return [(task, [each for each in verdicts if each.judged.task == task]) for task in tasks]


def _data(graded: GradedReport, overrides: Mapping[str, Override], words: Mapping[str, str], token: str) -> Markup:
    """What the script needs, as JSON in which nothing ends the element that holds it."""
    told = {
        "report": graded.name,
        "key": graded.key,
        "token": token,
        "words": words,
        "overrides": {name: asdict(each) for name, each in overrides.items()},
    }
    text = json.dumps(told, ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _percent(part: float, whole: int) -> float:
    return round(min(max(100 * part / max(whole, 1), 0.0), 100.0), 3)


@cache
def _script() -> str:
    return (_TEMPLATES / "report_page.js").read_text(encoding="utf-8")
