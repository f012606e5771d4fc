"""tox installs from the index that pip is set to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toxfile import index_of_pip

_FILE = """[global]
index-url = http://127.0.0.1:9/simple
trusted-host = 127.0.0.1
    mirror.example
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which pip has this file and nothing else says an index."""
    (tmp_path / "pip.conf").write_text(_FILE)
    others = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    return others | {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}


def test_a_mirror_in_pip_s_file_is_uv_s_index(environ: dict[str, str]) -> None:
    assert index_of_pip(environ) == {
        "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
        "UV_INSECURE_HOST": "127.0.0.1 mirror.example",
    }


def test_pip_s_variable_counts_more_than_its_file(environ: dict[str, str]) -> None:
    assert index_of_pip(environ | {"PIP_INDEX_URL": "http://127.0.0.1:9/of-a-variable"})["UV_DEFAULT_INDEX"] == (
        "http://127.0.0.1:9/of-a-variable"
    )


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"])
def test_what_uv_is_told_stays(environ: dict[str, str], variable: str) -> None:
    assert index_of_pip(environ | {variable: "http://127.0.0.1:9/of-uv"}) == {
        "UV_INSECURE_HOST": "127.0.0.1 mirror.example"
    }


def test_of_another_command_s_section_nothing_is_taken(environ: dict[str, str]) -> None:
    Path(environ["PIP_CONFIG_FILE"]).write_text("[wheel]\nindex-url = http://127.0.0.1:9/of-wheel\n")
    assert index_of_pip(environ) == {}
