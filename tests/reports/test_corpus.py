"""lab3 judges the corpus of reports as a careful person does (tools/report_corpus writes it)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from lab3.reports.model import Recognised
from lab3.reports.reading import read_report
from lab3.reports.work import Plan, Task, judge_one, own_steps
from tests.reports.world import ACCUSING, CORPUS, QUICK, SLUGS, Case, Corpus

FIGURES_READ_RIGHT = 0.98
AGREEMENT = 0.95


def reports(slugs: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "slug", [pytest.param(slug, marks=[] if slug in QUICK else [pytest.mark.corpus]) for slug in slugs]
    )


def asking(key: str) -> pytest.MarkDecorator:
    """The reports whose expected.json tells something under `key`."""
    return reports(slug for slug in SLUGS if Case(slug).told[key])


every_report = reports(SLUGS)


@every_report
def test_verdicts_are_those_of_a_careful_person(case: Case, corpus: Corpus) -> None:
    judged = corpus.judged(case.slug)
    others = [
        f"{check}: {judged[check].status} {judged[check].kind} instead of {'/'.join(accepted)}: {judged[check].reason}"
        for check, accepted in case.expected.items()
        if judged[check].status not in accepted
    ]
    assert not others, f"{case.told['story']}\n" + "\n".join(others)


@every_report
def test_a_fail_is_of_the_kind_that_a_person_sees(case: Case, corpus: Corpus) -> None:
    judged = corpus.judged(case.slug)
    others = [
        f"{check}: {judged[check].kind} instead of {'/'.join(accepted)}: {judged[check].reason}"
        for check, accepted in case.kinds.items()
        if judged[check].status == "fail" and judged[check].kind not in accepted
    ]
    assert not others, f"{case.told['story']}\n" + "\n".join(others)


@every_report
def test_nobody_is_accused_falsely(case: Case, corpus: Corpus) -> None:
    accused = [
        f"{each.id} ({each.kind}): {each.reason}"
        for each in corpus.judged(case.slug).values()
        if each.status == "fail" and each.kind in ACCUSING and "fail" not in case.expected.get(each.id, [])
    ]
    assert not accused, f"{case.told['story']}\n" + "\n".join(accused)


@every_report
def test_a_pass_names_its_places(case: Case, corpus: Corpus) -> None:
    assert [each.id for each in corpus.judged(case.slug).values() if each.status == "pass" and not each.places] == []


@every_report
def test_checks_that_need_no_picture_judge_the_same_without_any(case: Case, corpus: Corpus, tmp_path: Path) -> None:
    def never(path: Path, *, digest: str) -> Recognised:
        raise AssertionError(f"{path} is read")

    task = Task(path=case.folder, name=case.slug, folder=tmp_path)
    steps = replace(own_steps(), recognise=never)
    graded, _ = judge_one(read_report(case.folder), task, Plan(checks=("report.understanding",)), steps)
    assert graded.judged == tuple(each for each in corpus.graded[case.slug].judged if ".understanding." in each.id)
    assert not [each for each in graded.problems if "is read" in each]


@asking("review")
def test_what_cannot_be_decided_is_put_to_a_person(case: Case, corpus: Corpus) -> None:
    judged = corpus.judged(case.slug)
    undecided = [check for check in case.told["review"] if judged[check].status == "unknown"]
    assert [check for check in undecided if not judged[check].review] == []


@asking("alike")
def test_pictures_of_another_report_are_told(case: Case, corpus: Corpus) -> None:
    told = corpus.graded[case.slug].likenesses
    shared = {name for each in told if "picture" in each.kind for name in (each.one, each.other)}
    assert [other for other in case.told["alike"] if not any(other in name for name in shared)] == []


@pytest.mark.corpus
def test_pictures_are_alike_only_where_they_were_taken_over(corpus: Corpus) -> None:
    pairs = {
        tuple(sorted((each.one, each.other)))
        for graded in corpus.graded.values()
        for each in graded.likenesses
        if each.kind in ("same_picture", "like_picture") and each.one != each.other
    }
    taken = {tuple(sorted((slug, other))) for slug in SLUGS for other in Case(slug).told["alike"]}
    assert pairs <= taken


@pytest.mark.corpus
def test_figures_in_readable_pictures_are_read_right(corpus: Corpus) -> None:
    right, wrong = 0, []
    for slug in SLUGS:
        for name, digest, figures in Case(slug).figures():
            missed = Counter(figures) - Counter(corpus.read(slug, digest))
            right += len(figures) - missed.total()
            wrong += [f"{slug}/{name}: {figure}" for figure in missed.elements()]
    share = right / (right + len(wrong))
    assert share >= FIGURES_READ_RIGHT, f"{share:.1%} of {right + len(wrong)}; not read:\n" + "\n".join(wrong)


@every_report
def test_no_figure_of_memory_is_misread_without_a_doubt(case: Case, corpus: Corpus) -> None:
    misread = [
        f"{name}: {figure}"
        for name, digest, figures in case.figures()
        if digest
        for figure in corpus.sure_memory(case.slug, digest)
        if figure not in figures
    ]
    assert not misread


@pytest.mark.corpus
def test_each_check_agrees_with_a_careful_person(corpus: Corpus) -> None:
    agreed: dict[str, list[bool]] = defaultdict(list)
    for slug in SLUGS:
        judged = corpus.judged(slug)
        for check, accepted in Case(slug).expected.items():
            agreed[check].append(judged[check].status in accepted)
    low = {check: f"{sum(each)} of {len(each)}" for check, each in agreed.items() if sum(each) < AGREEMENT * len(each)}
    assert not low


def test_the_corpus_is_as_large_as_the_lab_asks_and_small_enough_to_keep() -> None:
    assert len(SLUGS) >= 32
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) <= 3_300_000
