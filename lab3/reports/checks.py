"""What a check of a report is, and how checks speak: a finding with its places, neutral in its words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lab3.reports.facts import ReportFacts
from lab3.reports.facts_commands import LabCommand
from lab3.reports.facts_words import failing, speaks_of_tools
from lab3.reports.model import FailKind, Judged, LogLine, Place, Status

LEGIBLE = 0.6  # confidence of OCR below which a person looks again


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found; a pass has places."""

    status: Status
    reason: str
    kind: FailKind = ""
    expected: str = ""
    actual: str = ""
    places: tuple[Place, ...] = ()
    review: str = ""
    legible: float = LEGIBLE  # confidence that its places need


@dataclass(frozen=True)
class Check:
    """One line of the rubric for reports."""

    id: str
    task: int
    title: str
    title_zh: str
    points: int
    find: Callable[[ReportFacts], Finding]
    pictures: bool = True  # it is found by what pictures say, too


def judged(check: Check, facts: ReportFacts) -> Judged:
    """The check's verdict. A pass without a place, or read with little confidence, is none."""
    found = check.find(facts)
    if found.status == "pass" and not found.places:
        found = unsure(found.reason, "nothing of the report can be quoted for it")
    elif found.status == "pass" and (dim := [each for each in found.places if each.confidence < found.legible]):
        found = unsure(found.reason, f"it was read with little confidence: {dim[0].quote[:80]}", dim)
    return Judged(
        id=check.id,
        task=check.task,
        title=check.title,
        title_zh=check.title_zh,
        status=found.status,
        points=check.points if found.status == "pass" else 0,
        max_points=check.points,
        reason=found.reason,
        kind=found.kind if found.status == "fail" or found.kind == "missing" else "",
        expected=found.expected,
        actual=found.actual,
        places=found.places,
        review=found.review,
    )


def passed(reason: str, places: Iterable[Place], *, expected: str = "", actual: str = "", review: str = "") -> Finding:
    return Finding(status="pass", reason=reason, places=_each(places), expected=expected, actual=actual, review=review)


def failed(
    kind: FailKind, reason: str, places: Iterable[Place] = (), *, expected: str = "", actual: str = ""
) -> Finding:
    return Finding(status="fail", kind=kind, reason=reason, places=_each(places), expected=expected, actual=actual)


def unsure(
    reason: str, review: str = "", places: Iterable[Place] = (), *, expected: str = "", actual: str = ""
) -> Finding:
    """Unknown; with `review` a person is asked to look, and told why."""
    return Finding(
        status="unknown", reason=reason, review=review, places=_each(places), expected=expected, actual=actual
    )


def against(
    kind: FailKind, reason: str, places: Sequence[Place], *, expected: str = "", actual: str = "", sure: bool = True
) -> Finding:
    """A fail that accuses: only from what was read without doubt, else a person is asked."""
    if sure and all(each.confidence >= 0.8 for each in places):
        return failed(kind, reason, places, expected=expected, actual=actual)
    return unsure(reason, "the figures may be misread", places, expected=expected, actual=actual)


def not_shown(
    facts: ReportFacts,
    what: str,
    *,
    topics: Iterable[str],
    tools: bool | None = None,
    quantized: bool | None = None,
    program: str = "",
) -> Finding:
    """A step of which nothing was read: unreadable, honestly not working, or missing.

    `topics`, `tools`, `quantized` and `program` say which pictures without a reading may show it.
    """
    wanted = frozenset(topics)
    maybe = [
        each
        for each in facts.hidden
        if (tools is None or each.tools == tools)
        and each.topics & wanted
        and (quantized is None or each.quantized in (None, quantized))
        and (not program or not each.program or each.program == program)
    ]
    if maybe:
        why = f"{what}: the picture under these words cannot be read"
        line = maybe[0].place.line
        which = f"picture in line {line}: " if line else ""
        return unsure(why, f"{which}{maybe[0].why}: please look at it", [each.place for each in maybe])
    if broken := _told_failure(facts, wanted, tools):
        return failed("not_achieved", f"{what}: the report says itself that it did not work", [broken])
    if unread := [each for each in facts.hidden if not each.partly]:
        return unsure(
            f"{what} was not found",
            "pictures of this report cannot be read, and one may show it",
            [each.place for each in unread],
        )
    return failed("missing", f"{what} is not shown", ())


def refusal(command: LabCommand) -> str:
    """What LMDeploy does not take of a command that is written as text; OCR may have misread one in a picture."""
    return "" if command.read else command.refused


def errors_in(facts: ReportFacts, *, tools: bool) -> tuple[LogLine, ...]:
    """The errors that programs printed in one of the tasks."""
    return tuple(
        each
        for each in facts.of(LogLine)
        if each.event in ("error", "killed", "out_of_memory") and (each.place.block in facts.tools_blocks) == tools
    )


def came_up(facts: ReportFacts, *, tools: bool) -> tuple[LogLine, ...]:
    """The lines that show that a model's server listens.

    Hints and `Application startup complete` are printed before uvicorn takes the port, and count without an error only.
    """
    mine = [
        each for each in facts.of(LogLine)
        if (each.place.block in facts.tools_blocks) == tools and not _of_web(facts, each)
    ]  # fmt: skip
    listening = [each for each in mine if each.event == "listening"]
    broken = {each.place.block for each in errors_in(facts, tools=tools)}
    started = [each for each in mine if each.event == "started" and each.place.block not in broken]
    return (*listening, *(each for each in started if "HINT" not in each.place.quote))


def _of_web(facts: ReportFacts, line: LogLine) -> bool:
    """Whether it is Gradio that listens, and not the model's server."""
    quote = line.place.quote.lower()
    if "local url" in quote or "mount on" in quote or "gradio" in quote:
        return True
    kinds = {each.kind for each in facts.commands if each.place.block == line.place.block}
    return "web" in kinds and "serve" not in kinds


def _told_failure(facts: ReportFacts, wanted: frozenset[str], tools: bool | None) -> Place | None:
    for number, text in facts.prose():
        sentence = failing(text)
        if not sentence:
            continue
        of_tools = number in facts.tools_blocks or speaks_of_tools(sentence)
        if tools is not None and of_tools != tools:
            continue
        if wanted & facts.around(number).topics or (tools and of_tools):
            return facts.place(number, sentence)
    return None


def _each(places: Iterable[Place]) -> tuple[Place, ...]:
    found: list[Place] = []
    for place in places:
        if place not in found:
            found.append(place)
    return tuple(found)
