"""The page of a graded submission: one file to read, without network and scripts. Its text is a stranger's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab3.grading.export_text import one_line, visible, write_text
from lab3.grading.results import Graded

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "page.html"  # its name in a submission's folder

_TEMPLATES = [Path(__file__).parent / "templates", Path(__file__).parents[1] / "reports" / "templates"]
_MOST_QUESTIONS = 50  # of a run
_MOST_STEPS = 200  # of a question


def write_page(graded: Graded, path: Path) -> None:
    """Write the page whole or not at all."""
    write_text(page(graded), path)


def page(graded: Graded) -> str:
    """The page as HTML."""
    return render("page.html", graded=graded, conversations=[_conversations(run) for run in graded.runs])


def render(name: str, **values: Any) -> str:
    """One of lab3's pages; whatever is put into it is escaped, and made visible."""
    return _environment().get_template(name).render(**values) + "\n"


@cache
def _environment() -> Environment:
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    # `finalize` sees every value before it is escaped, so a template cannot forget to make one visible. A result of an
    # older lab3 may lack something: then nothing stands there.
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=ChainableUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"one_line": one_line, "plainly": _plainly, "spaces_shown": _spaces_shown}
    return made


def _finalize(value: Any) -> Any:
    from jinja2 import Undefined

    if isinstance(value, Undefined) or hasattr(value, "__html__"):  # what a template made itself
        return value
    return visible(int(value) if isinstance(value, float) and value.is_integer() else value)


def _plainly(value: Any) -> str:
    """A value of a verdict as a person writes it."""
    if value is None or value == "" or isinstance(value, str | int | float):
        return "" if value is None else one_line(value)
    return one_line(json.dumps(value, ensure_ascii=False, default=str))


def _spaces_shown(text: str) -> str:
    """Quoted code with the spaces at its ends as something to see: they may be what is wrong with it."""
    bare = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if bare else 0
    return "␣" * before + bare + "␣" * (len(text) - len(bare) - before)


def _conversations(run: dict[str, Any]) -> dict[str, Any]:
    """Each question with its steps, in the order in which they passed; how many questions are not shown."""
    wire = run.get("wire") or {}
    questions = wire.get("questions") or ()
    talks = []
    for question in questions[:_MOST_QUESTIONS]:
        steps = list(islice(_steps(question, wire), _MOST_STEPS + 1))
        talks.append(
            {
                "question": question.get("text"),
                "tools": question.get("tools") or (),
                "steps": steps[:_MOST_STEPS],
                "goes_on": len(steps) > _MOST_STEPS,
            }
        )
    return {"talks": talks, "left_out": len(questions) - len(talks)}


def _steps(question: dict[str, Any], wire: dict[str, Any]) -> Iterator[dict[str, Any]]:
    turns, calls = question.get("turns") or (), question.get("calls") or ()
    problems = {turn.get("number"): turn.get("problems") or () for turn in wire.get("turns") or ()}
    for at, turn in enumerate(turns):
        for call in calls:
            if (result := call.get("result")) and result.get("turn") == turn:
                yield {"kind": "result", "call": call, "result": result}
        for result in wire.get("unasked_results") or ():
            if result.get("turn") == turn:
                yield {"kind": "unasked", "result": result}
        for told in wire.get("invented") or ():
            if told.get("turn") == turn:
                yield {"kind": "invented", "text": told.get("content"), "what": told.get("kind")}
        said = (question.get("said") or ())[at : at + 1]
        made = [call for call in calls if call.get("turn") == turn]
        if said and said[0]:
            yield {"kind": "said" if made else "answer", "text": said[0]}
        for call in made:
            yield {"kind": "call", "call": call}
        for problem in problems.get(turn, ()):
            yield {"kind": "problem", "problem": problem}
