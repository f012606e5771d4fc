"""The pages against the source: options, variables, errors, and what they name."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab3.grading.settings import _KEYS
from lab3.pytest_plugin import _MARKERS
from tests.docs.blocks import ROOT, pages
from tools.docs import errors, options
from tools.docs.parts import rewritten
from tools.docs.raised import raised
from tools.docs.remedies import PASSED_ON, REMEDIES, SPELLED

TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "lab3").rglob("*.py"))}


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", pages())
def test_what_is_generated_is_up_to_date(name: str):
    assert rewritten(page(name)) == page(name), "type: python -m tools.docs"


@pytest.mark.parametrize("name", pages())
def test_every_path_of_the_repository_that_a_page_names_is_there(name: str):
    folders = "lab3|tests|tools|bench|docs"
    named = set(re.findall(rf"(?<![\w/.\"-])(?:{folders})/[\w./-]*\w", page(name)))
    named |= set(re.findall(r"\]\((?!https?:)([^)#]+)", page(name)))
    here = (ROOT, (ROOT / name).parent)
    assert not [each for each in named if not any((folder / each).exists() for folder in here)]


@pytest.mark.parametrize("name", pages())
def test_every_link_to_a_heading_has_its_heading(name: str):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([\w-]+)\)", page(name)):
        text = page(name) if not target else (ROOT / name).parent.joinpath(target).read_text(encoding="utf-8")
        headings = {_slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.M)}
        assert anchor in headings, f"{target}#{anchor}"


def _slug(heading: str) -> str:
    """GitHub's."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", pages())
def test_every_environment_of_tox_that_a_page_names_is_there(name: str):
    known = set(re.findall(r"^\[testenv:(\w+)\]", page("tox.ini"), re.M))
    assert set(re.findall(r"\btox (?:run )?(?:-r )?-e (\w+)", page(name))) <= known


@pytest.mark.parametrize("name", pages())
def test_every_extra_that_a_page_names_is_there(name: str):
    known = tomllib.loads(page("pyproject.toml"))["project"]["optional-dependencies"]
    named = re.findall(r"'\.\[([\w,]+)\]'", page(name)) + re.findall(r"\.extras=([\w,]+)", page(name))
    assert {extra for each in named for extra in each.split(",")} <= set(known)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readmes_table_names_every_command_and_no_other(name: str):
    told = re.findall(r"^\| `(lab3 (?:vram )?[a-z-]+)", page(name), re.M)
    assert sorted(told) == sorted(options.command_names())


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readmes_table_gives_each_command_options_that_it_has(name: str):
    sections = dict(zip(options.command_names(), re.split(r"^### ", options.commands(), flags=re.M)[1:], strict=True))
    for command, rest in re.findall(r"^\| `(lab3 (?:vram )?[a-z-]+)([^`]*)`", page(name), re.M):
        assert not [each for each in re.findall(r"--[a-z-]+", rest) if f"`{each}" not in sections[command]], command


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_tells_every_exit_code_and_no_other(name: str):
    paragraph = page(name).split("\n## ")[0].rstrip().split("\n\n")[-1]
    assert re.findall(r"(?<![a-z])\d+", paragraph) == re.findall(r"^\| (\d+) \|", errors.of_commands(), re.M)


def test_every_option_has_words():
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", options.commands(), re.M)
    assert len(rows) > 60
    assert not [name for name, says in rows if not says.strip() or says.startswith("(")]


def test_no_words_are_kept_for_an_option_that_is_gone():
    assert not [name for name in options.WORDS if f"`{name}" not in options.commands()]


def test_every_marker_is_on_the_page():
    told = set(re.findall(r"^\| `(\w+)` \|", page("docs/options.md").split("Markers:")[1].split("##")[0], re.M))
    assert told == {*_MARKERS, "docs_slow"}


def test_every_key_of_lab3_toml_is_on_the_page():
    section = page("docs/options.md").split("## lab3.toml")[1]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.M)) == _KEYS


# --- environment variables -------------------------------------------------------------------------------------------


def _read_from_the_environment() -> Iterator[str]:
    """Names by which lab3 asks the environment: literals and constants in `environ[…]` and `environ.get(…)`."""
    for tree in TREES.values():
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            key: ast.AST | None = None
            if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("environ"):
                key = node.slice
            elif (
                isinstance(node, ast.Call)
                and node.args
                and re.search(r"environ\.(get|setdefault|pop)$|getenv$", ast.unparse(node.func))
            ):
                key = node.args[0]
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value
            elif isinstance(key, ast.Name) and isinstance(constants.get(key.id), str):
                yield constants[key.id]


def _own_names() -> set[str]:
    """Texts of the source that are a name of lab3's own variables."""
    texts = {node.value for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {text for text in texts if isinstance(text, str) and re.fullmatch(r"LAB3_[A-Z0-9_]+", text)}


NO_VARIABLES = {"LAB3_LANGUAGE"}  # a place in the web page's script


def test_every_environment_variable_is_on_the_page():
    section = page("docs/options.md").split("## Environment variables")[1].split("\n## ")[0]
    told = set(re.findall(r"`([A-Za-z][A-Za-z0-9_]*[A-Za-z0-9])(?:=[A-Z]+)?`", section))
    asked = {name.lower() if name.lower() == "no_proxy" else name for name in _read_from_the_environment()}
    own = _own_names() - NO_VARIABLES
    assert {"LAB3_CACHE", "LAB3_CPU_MEMORY"} <= own
    assert own | asked <= told
    assert {name for name in told if name.startswith("LAB3_")} == own


# --- errors ----------------------------------------------------------------------------------------------------------

MESSAGE = re.compile(r"^\| (?:``? ?)(.+?)(?: ?``?) \| ", re.M)


def test_every_error_has_a_remedy():
    assert not [f"{each.file}:{each.line}: {each.what}" for each in raised() if _told(each) and not errors.remedy(each)]


def _told(error) -> bool:
    return (error.file, error.what) not in PASSED_ON


def test_no_remedy_is_kept_for_an_error_that_is_gone():
    known = {each.what for each in raised()}
    assert set(REMEDIES) <= known
    assert set(SPELLED) <= known
    assert set(PASSED_ON) <= {(each.file, each.what) for each in raised()}


def test_a_message_without_words_of_its_own_is_spelled_out():
    mute = [each for each in raised() if each.passed_on and _told(each)]
    assert {each.what for each in mute} <= set(SPELLED)


def _error_calls() -> Iterator[tuple[Path, ast.Call]]:
    """By other means than tools.docs.raised: every call whose name ends as lab3's errors do, and that has a text."""
    names = re.compile(r"(^|\.)(UsageError|InfraError|ServerError|NoDriver|BrokenAnswer|MalformedAnswer)$")
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and names.search(ast.unparse(node.func)) and node.args:
                yield path, node


def _longest_literal(node: ast.AST) -> str:
    parts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return max((" ".join(part.split()) for part in parts), key=len, default="")


def test_every_error_of_the_source_is_on_the_page():
    text = re.sub(r"\\([|*\[\]])", r"\1", page("docs/errors.md"))
    calls = list(_error_calls())
    assert len(calls) > 200
    missing = [
        f"{path.name}:{call.lineno}: {literal}"
        for path, call in calls
        if len(literal := _longest_literal(call.args[0])) > 3 and literal not in text
    ]
    assert not missing


def test_every_error_on_the_page_is_in_the_source():
    texts = {
        " ".join(node.value.split())
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    section = page("docs/errors.md").split("## Exit code 2")[1].split("## A server that died")[0]
    messages = [each.replace("\\|", "|") for each in MESSAGE.findall(section) if each not in ("message", "---")]
    assert len(messages) > 200
    for message in messages:
        parts = re.split(r"<[^<>]*>| / ", message)
        longest = max((part.strip() for part in parts), key=len)
        assert any(longest in text for text in texts) or _is_of(longest, texts), message


def _is_of(message: str, texts: set[str]) -> bool:
    """Whether the source's texts make up most of it; a constant's value, such as a file's name, may stand between."""
    rest = message
    for text in sorted((text for text in texts if len(text) > 4 and text in message), key=len, reverse=True):
        rest = rest.replace(text, "")
    return len(rest) <= len(message) / 2


def test_every_cause_of_a_servers_death_is_on_the_page():
    from lab3.diagnose import _CAUSES

    section = page("docs/errors.md").split("## A server that died")[1]
    kinds = set(re.findall(r"^\| `(\w+)` \|", section, re.M))
    tree = ast.parse(page("lab3/diagnose.py"))
    by_code = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "Diagnosis"
        and isinstance(node.args[0], ast.Constant)
    }
    assert kinds == {each.kind for each in _CAUSES} | by_code
