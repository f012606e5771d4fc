"""The pages as Sphinx builds them: no warning, all there, and nothing in them that a browser would fetch elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from tests.docs.blocks import ROOT, pages

pytestmark = pytest.mark.docs_slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="of the extra `docs`: tox -e docs")
    out = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-d", str(out / ".doctrees"), "docs", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_built(built: Path):
    wanted = {page.removeprefix("docs/").replace(".md", ".html") for page in pages() if page.startswith("docs/")}
    assert wanted <= {path.relative_to(built).as_posix() for path in built.rglob("*.html")}


def test_a_browser_fetches_nothing_from_elsewhere(built: Path):
    for path in built.rglob("*.html"):
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        fetched = [each.get("src") for each in soup.select("script, img, iframe")]
        fetched += [each.get("href") for each in soup.select("link")]
        assert not [each for each in fetched if each and each.startswith(("http:", "https:", "//"))], path.name
    for path in built.rglob("*.css"):
        assert "url(http" not in path.read_text(encoding="utf-8").replace('"', "").replace("'", ""), path.name


def test_the_functions_of_python_are_described(built: Path):
    text = BeautifulSoup((built / "python.html").read_text(encoding="utf-8"), "html.parser").get_text()
    for name in ("quantize", "ApiServer", "chat", "run_tools", "Meter", "predict", "resolve", "UsageError"):
        assert name in text
    assert "Raises UsageError" in text
