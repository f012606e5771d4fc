"""The corpus of submissions to grade: each is what its template says, and the collector finds what is in it."""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path

import pytest

from lab3.checks import CHECKS
from lab3.grading.arithmetic import read_expression
from lab3.grading.collector import Collected, collect
from lab3.grading.documents import notebook_script
from lab3.grading.python_source import read_python
from lab3.grading.script_checks import SCRIPT_CHECKS
from tests.submissions import STRAIGHT, TEMPLATES, Expected, any_task, write_corpus

ROUNDS = 4
COUNT = ROUNDS * len(TEMPLATES)
ROLES = ("chat", "tools", "serve", "report")
PHRASES = Path(__file__).parents[2] / "tools" / "phrases"
TELLING = 30  # letters, of which two authors do not write the same by chance


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def corpus(out: Path) -> dict[str, Expected]:
    return write_corpus(out, COUNT, seed=11)


@pytest.fixture(scope="module")
def collected(corpus: dict[str, Expected], out: Path) -> dict[str, Collected]:
    return {name: collect(out / name) for name in corpus}


def of(corpus: dict[str, Expected], template: str) -> list[str]:
    """The folders that a template wrote."""
    return [name for name in corpus if name.endswith(f"-{template}")]


def contents(folder: Path) -> dict[str, bytes]:
    """All files below the folder."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def scripts(folder: Path) -> dict[str, str]:
    """The Python of each script and notebook."""
    plain = {file.name: file.read_text(encoding="utf-8") for file in folder.rglob("*.py")}
    return plain | {file.name: notebook_script(file) for file in folder.rglob("*.ipynb")}


def written(folder: Path) -> str:
    return "\n".join(text.decode() for text in contents(folder).values())


# --- what the collector makes of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_scripts_serve_command_and_report_are_found(template: str, corpus, collected):
    for name in of(corpus, template):
        found = collected[name]
        taken = {role: found.pick(role) for role in ROLES}

        names = {role: path and path.relative_to(found.folder).as_posix() for role, path in taken.items()}

        assert names == {role: getattr(corpus[name].handed, role) for role in ROLES}, name
        assert found.pick("model") is None


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "syntax_error"])
def test_each_script_s_server_is_told(template: str, corpus, collected):
    for name in of(corpus, template):
        handed = corpus[name].handed
        asking = [role for role in ("chat", "tools") if getattr(handed, role)]

        assert {role: collected[name].doors(role) for role in asking} == dict.fromkeys(
            asking, ((handed.host, handed.port),)
        ), name


def test_a_script_that_is_no_python_tells_no_server_and_its_fault(corpus, collected):
    for name in of(corpus, "syntax_error"):
        assert "syntax" in {problem.kind for problem in collected[name].problems}
        assert collected[name].doors("tools") == (("0.0.0.0", 23333),)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_serve_command_is_the_lab_s_and_works(template: str, corpus, collected):
    for name in of(corpus, template):
        command = collected[name].serve

        assert command is not None
        assert (command.port, command.kv_bits, command.works) == (corpus[name].handed.port, 4, True), name
        assert 0.2 <= command.cache_ratio <= 0.4


def test_nothing_else_is_wrong_with_them_as_submissions(corpus, collected):
    known = {"no_model", "no_tools", "role", "syntax", "no_endpoint"}
    for name, found in collected.items():
        assert {problem.kind for problem in found.problems} <= known, name
    without_tools = {name for name in corpus if "no_tools" in {p.kind for p in collected[name].problems}}
    assert without_tools == set(of(corpus, "chat_only"))


# --- what they are ----------------------------------------------------------------------------------------------------


def test_scripts_are_python_but_where_that_is_the_fault(corpus, out: Path):
    for name in corpus:
        broken = [script for script, source in scripts(out / name).items() if read_python(source).fault]
        expected = [Path(corpus[name].handed.tools or "").name] if name.endswith("-syntax_error") else []
        assert broken == expected, name


def test_notebooks_can_be_opened(corpus, out: Path):
    notebooks = [file for name in of(corpus, "notebook") for file in (out / name).rglob("*.ipynb")]

    assert notebooks
    for file in notebooks:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        assert {cell["cell_type"] for cell in cells} == {"code", "markdown"}
        for cell in cells:
            if cell["cell_type"] == "code":
                ast.parse("".join(cell["source"]))


def test_what_is_expected_is_of_the_rubric_and_no_check_is_expected_twice(corpus):
    known = {check.id for check in (*CHECKS, *SCRIPT_CHECKS)}
    for name, expected in corpus.items():
        named = [*expected.passing, *expected.failing, *expected.not_passing]
        assert set(named) <= known, name
        assert len(named) == len(set(named)), name


def test_each_of_a_script_s_checks_is_failed_by_some_template_and_passed_by_others(corpus):
    failed = {check for expected in corpus.values() for check in expected.failing}
    passed = {check for expected in corpus.values() for check in expected.passing}

    assert failed == passed - {"tools.nonce"}
    assert passed >= STRAIGHT | {"tools.answer"}
    assert any("tools.nonce" in expected.not_passing for expected in corpus.values())
    assert {expected.status for expected in corpus.values()} == {"graded", "needs_review", "timeout"}


def test_there_are_good_ones_and_bad_ones_of_many_kinds(corpus):
    first = dict(list(corpus.items())[: len(TEMPLATES)])
    good = [name for name, each in first.items() if each.passing >= STRAIGHT and not each.failing | each.not_passing]

    assert len(good) >= 10
    assert len(first) - len(good) >= 15


def test_a_result_stands_in_no_question_so_that_printing_it_tells_something():
    rng = random.Random(0)
    for _ in range(500):
        task = any_task(rng, shapes=("sum_first", "sum_last", "product_first"))
        read = read_expression(task.expression)

        assert read is not None
        assert read.value == task.value
        assert not {task.value, task.first} & set(task.values)
        assert task.value != task.first


# --- how they vary ----------------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_corpus_and_another_seed_another(corpus, out: Path, tmp_path: Path):
    again = write_corpus(tmp_path / "again", COUNT, seed=11)
    other = write_corpus(tmp_path / "other", COUNT, seed=12)

    assert again == corpus
    assert all(contents(tmp_path / "again" / name) == contents(out / name) for name in corpus)
    assert not any(contents(tmp_path / "other" / name) == contents(out / name) for name in other)


def test_a_longer_corpus_begins_with_the_shorter_one(corpus, out: Path, tmp_path: Path):
    shorter = write_corpus(tmp_path, 5, seed=11)

    assert list(shorter.items()) == list(corpus.items())[:5]
    assert all(contents(tmp_path / name) == contents(out / name) for name in shorter)


def test_no_two_folders_hold_the_same_and_no_two_function_scripts(corpus, out: Path):
    folders = [frozenset(contents(out / name).items()) for name in corpus]
    functions = [
        (out / name / expected.handed.tools).read_bytes() for name, expected in corpus.items() if expected.handed.tools
    ]

    assert len(set(folders)) == COUNT
    assert len(set(functions)) == len(functions)


def test_a_corpus_varies_in_all_that_students_vary_in(corpus, out: Path):
    texts = [written(out / name) for name in corpus]
    for habit in (
        '"role": "tool"',
        '"role": "environment"',
        "eval(",
        "json.loads(",
        "import openai",
        "from openai import OpenAI",
        "import requests",
        "import urllib.request",
        "stream=True",
        "AsyncOpenAI",
        "# ask the model",
        "# 向模型提问",
        "[submission]",
        "globals()",
        "argparse",
        '"type": "integer"',
        "temperature=0.8",
    ):
        having = sum(habit in text for text in texts)
        assert 0 < having < len(texts), habit
    assert len({expected.handed.port for expected in corpus.values()}) >= 4
    assert len({expected.handed.host for expected in corpus.values()}) == 3
    assert len({expected.handed.chat for expected in corpus.values()}) >= 6
    assert {expected.handed.serve.endswith(".sh") for expected in corpus.values()} == {True, False}


def test_no_text_is_one_that_the_model_was_trained_on(corpus, out: Path):
    trained = {line.strip() for file in PHRASES.glob("*.txt") for line in file.read_text(encoding="utf-8").splitlines()}
    trained = {line for line in trained if len(line) >= TELLING}
    texts = "\n".join(written(out / name) for name in corpus)

    assert trained
    assert [line for line in trained if line in texts] == []


def test_tools_that_go_through_a_helper_of_the_script_s_are_seen():
    source = (
        "import requests\n"
        "def chat(body):\n"
        "    return requests.post('http://0.0.0.0:23333/v1/chat/completions', json=body).json()\n"
        "messages = []\n"
        "body = {'messages': messages, 'tools': [{'type': 'function'}]}\n"
        "print(chat(body))\n"
    )

    assert [ask.tools for ask in read_python(source).asks] == [True]
