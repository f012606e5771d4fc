"""The pages as a reader follows them: each page's commands, typed one after the other, and its Python, run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lab3.hub import RunningServer
from tests.docs.blocks import Command, commands, pages, python_blocks
from tests.docs.session import Session, lay_out
from tests.docs.tables import ELSEWHERE, SLOW, SLOW_PYTHON, TWINS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docs")]

ORIGINALS = [page for page in pages() if page not in TWINS]
# The README's Python quantizes, which takes a minute: but for `tox -e docs` it gets the folder that lies in the cache.
CACHED = """
import lab3.quantize, lab3.quantize_cache, lab3.progress
lab3.quantize.quantize = lambda folder, out, **options: lab3.quantize_cache.quantize_cached(
    folder, options, progress=lab3.progress.silent)
"""


def own_commands(page: str) -> list[Command]:
    """Those to run: none that an earlier page has, none that something else runs."""
    earlier = {command.text for each in ORIGINALS[: ORIGINALS.index(page)] for command in commands(each)}
    return [each for each in commands(page) if each.text not in ELSEWHERE and each.text not in earlier]


SHORT = [page for page in ORIGINALS if any(each.text not in SLOW for each in own_commands(page))]
LONG = [page for page in ORIGINALS if any(each.text in SLOW for each in own_commands(page))]
PYTHON = [page for page in ORIGINALS if python_blocks(page)]
QUANTIZING = [page for page in PYTHON if any("quantize(" in block.text for block in python_blocks(page))]


@pytest.fixture
def session(
    embedded_model: Path,
    w4a16: Path,
    tmp_path: Path,
    api_server: Callable[..., RunningServer],
    request: pytest.FixtureRequest,
) -> Session:
    slow = request.node.get_closest_marker("docs_slow") is not None
    folder = tmp_path / "reader"
    folder.mkdir()
    lay_out(folder, model=embedded_model, w4a16=w4a16, slow=slow)

    def port() -> int:
        return urlsplit(api_server(weights="w4a16", kv_bits=4, cache_ratio=0.3).base_url).port or 0

    return Session(folder, port, slow=slow)


@pytest.mark.parametrize("page", SHORT)
def test_the_commands_of_a_page_do_what_it_says(page: str, session: Session):
    session.write_files(python_blocks(page))
    with session:
        for command in own_commands(page):
            session.type(command)


@pytest.mark.parametrize("page", [page for page in PYTHON if page not in SLOW_PYTHON])
def test_the_python_of_a_page_runs(page: str, session: Session):
    session.run_python(python_blocks(page), prelude=CACHED)


@pytest.mark.docs_slow
@pytest.mark.parametrize("page", LONG)
def test_the_commands_of_a_page_do_what_it_says_with_nothing_laid_ready(page: str, session: Session):
    session.write_files(python_blocks(page))
    with session:
        for command in own_commands(page):
            session.type(command)


@pytest.mark.docs_slow
@pytest.mark.parametrize("page", sorted({*QUANTIZING, *SLOW_PYTHON}))
def test_the_python_of_a_page_runs_with_nothing_cached(page: str, session: Session):
    session.run_python(python_blocks(page), prelude="")
