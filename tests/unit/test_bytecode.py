"""Python's bytecode is kept where it would be lost, and nothing is meddled with where it is not."""

import os
import py_compile
import subprocess
import sys

import pytest

from lab3 import bytecode

FORBIDDEN = {"PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in lmdeploy's place; returns its first module."""
    module = tmp_path / "site" / "heavy_package" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.write_text("print('imported')\n")
    monkeypatch.syspath_prepend(module.parents[1])
    monkeypatch.setattr(bytecode, "PACKAGES", ("heavy_package",))
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setenv("LAB3_CACHE", str(tmp_path / "cache"))
    return module


def run(module, environ):
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(module.parents[1])} | environ
    done = subprocess.run(
        [sys.executable, "-c", "import heavy_package"], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == "imported\n"


def test_where_python_may_not_write_it_the_cache_of_lab3_has_it(package, tmp_path):
    run(package, FORBIDDEN)
    assert not list(tmp_path.rglob("*.pyc"))
    run(package, FORBIDDEN | bytecode.kept(FORBIDDEN))
    (kept,) = [path for path in tmp_path.rglob("*.pyc") if "heavy_package" in path.parts]
    assert kept.is_relative_to(tmp_path / "cache" / "bytecode")


def test_packages_that_are_compiled_are_taken_as_they_are(package):
    py_compile.compile(str(package))
    assert bytecode.kept(FORBIDDEN) == {}


def test_python_does_it_by_itself_where_it_may(package, tmp_path):
    assert bytecode.kept({}) == {}
    run(package, bytecode.kept({}))
    assert bytecode.kept({}) == {}
    assert list(package.parent.rglob("*.pyc"))


def test_a_folder_of_somebody_else_is_not_written(package, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert bytecode.kept({})["PYTHONPYCACHEPREFIX"].endswith("cache/bytecode")


def test_a_place_that_the_user_chose_stays(package):
    assert bytecode.kept(FORBIDDEN | {"PYTHONPYCACHEPREFIX": "/somewhere"}) == {}


def test_a_package_that_there_is_not_is_no_trouble(package, monkeypatch):
    monkeypatch.setattr(bytecode, "PACKAGES", ("no_such_package_at_all",))
    assert bytecode.kept(FORBIDDEN) == {}
