"""The corpus of students' reports, graded once for a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from lab3.reports.model import GradedReport
from tests.reports.world import CORPUS, QUICK, SLUGS, Case, Corpus


@pytest.fixture
def case(slug: str) -> Case:
    return Case(slug)


@pytest.fixture(scope="session")
def corpus(shared_folder: Path, request: pytest.FixtureRequest) -> Corpus:
    """The reports that are asked for, as lab3 grades them. Workers of pytest-xdist share the results' folder."""
    from lab3.reports.batch import grade_reports

    whole = any(item.get_closest_marker("corpus") for item in request.session.items)
    slugs = SLUGS if whole else QUICK
    with FileLock(shared_folder / "corpus.lock"):
        graded = grade_reports([CORPUS / slug for slug in slugs], shared_folder / "corpus-results", workers=2)
    return Corpus({_slug(each): each for each in graded})


def _slug(graded: GradedReport) -> str:
    return next(part for part in reversed(Path(graded.path).parts) if part in SLUGS)
