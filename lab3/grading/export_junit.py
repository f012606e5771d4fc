"""A batch as JUnit XML, as Jenkins and GitLab read it: a suite for each submission, a case for each check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from lab3.grading.export_text import one_line, visible
from lab3.grading.results import Graded

_TAGS = {"fail": "failure", "unknown": "skipped"}
_COUNTED = {"failures": "failure", "errors": "error", "skipped": "skipped"}
_OWN_TROUBLE = {"infra_error": "error", "timeout": "error", "needs_review": "skipped"}


def junit(batch: Sequence[Graded]) -> str:
    """The XML. It has no times: a batch that was resumed would have others."""
    root = ElementTree.Element("testsuites", name="lab3")
    root.extend([_suite(each) for each in batch])
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, 0)) for suite in root)))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _suite(each: Graded) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=one_line(each.name))
    # A schema allows properties for a suite alone.
    properties = ElementTree.SubElement(suite, "properties")
    for name in ("student", "status", "score", "max_score"):
        _property(properties, name, getattr(each, name))
    for verdict in each.verdicts:
        for what in ("points", "max_points"):
            _property(properties, f"{verdict['id']}.{what}", verdict[what])
    for verdict in each.verdicts:
        _case(suite, each, verdict)
    if tag := _OWN_TROUBLE.get(each.status):
        case = _testcase(suite, each, "grading")
        _trouble(case, tag, kind=each.status, message=" ".join(each.reasons) or each.status)
    for name, tag in {"tests": "testcase", **_COUNTED}.items():
        suite.set(name, str(sum(1 for _ in suite.iter(tag))))
    return suite


def _case(suite: ElementTree.Element, each: Graded, verdict: dict[str, Any]) -> None:
    case = _testcase(suite, each, verdict["id"])
    tag = _TAGS.get(verdict["status"])
    if tag == "skipped" and each.status == "infra_error":
        tag = "error"
    if tag:
        blame = verdict.get("blame") or {}
        cause = f"{blame['whose']}: {blame['text']}" if blame else ""
        _trouble(case, tag, kind=blame.get("kind") or verdict["status"], message=verdict["reason"], text=cause)


def _testcase(suite: ElementTree.Element, each: Graded, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", name=one_line(name), classname=one_line(each.name))


def _trouble(case: ElementTree.Element, tag: str, *, kind: str, message: str, text: str = "") -> None:
    trouble = ElementTree.SubElement(case, tag, type=one_line(kind), message=one_line(message))
    trouble.text = visible(text) or None


def _property(properties: ElementTree.Element, name: str, value: Any) -> None:
    ElementTree.SubElement(properties, "property", name=one_line(name), value=one_line(value))
