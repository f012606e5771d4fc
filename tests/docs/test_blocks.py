"""Every command block of README and docs is run by a test, or says by what else; its twin in Chinese is the same."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import (
    ROOT,
    SHELL,
    SHOWN,
    Command,
    alike,
    commands,
    fences,
    pages,
    python_blocks,
    without_comment,
)
from tests.docs.tables import ELSEWHERE, EXIT_CODES, SLOW, SLOW_PYTHON, STAYING, TWINS

EVERY = [command for page in pages() for command in commands(page)]
TEXTS = {command.text for command in EVERY}


def test_the_pages_are_read_and_have_commands():
    assert {"README.md", "README.zh.md", "docs/ci.md"} <= set(pages())
    assert len(TEXTS) > 20


@pytest.mark.parametrize("page", pages())
def test_a_block_is_typed_or_run_or_shown(page: str):
    known = {*SHELL, *SHOWN, "python"}
    assert not [f"{each.place}: {each.language!r}" for each in fences(page) if each.language not in known]


@pytest.mark.parametrize("page", pages())
def test_a_console_block_begins_with_a_prompt(page: str):
    """Else its lines would be taken for output of nothing."""
    consoles = [each for each in fences(page) if each.language == "console"]
    assert not [each.place for each in consoles if not each.text.startswith("$ ")]


@pytest.mark.parametrize("table", [ELSEWHERE, SLOW, EXIT_CODES], ids=["ELSEWHERE", "SLOW", "EXIT_CODES"])
def test_no_entry_is_of_a_command_that_is_on_no_page(table: dict[str, object]):
    assert not set(table) - TEXTS


def test_no_page_is_named_that_has_no_python():
    assert not [page for page in SLOW_PYTHON if not python_blocks(page)]


def test_no_kind_of_staying_command_is_on_no_page():
    assert not [each for each in STAYING if not any(text.startswith(each) for text in TEXTS)]


@pytest.mark.parametrize("text", ELSEWHERE)
def test_what_is_run_elsewhere_is_there(text: str):
    told = ELSEWHERE[text]
    assert told.says in (ROOT / told.where).read_text(encoding="utf-8")
    assert told.reason


@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_has_the_same_commands(twin: str):
    """So that it is enough to run those of the English page."""
    own, theirs = ([each.text for each in commands(page)] for page in (twin, TWINS[twin]))
    assert own == theirs
    assert not python_blocks(twin) or [b.text for b in python_blocks(twin)] == [
        b.text for b in python_blocks(TWINS[twin])
    ]


def test_the_readmes_have_the_same_sections_and_blocks_in_the_same_order():
    """A heading counts by its level: its words differ."""
    english, chinese = (re.findall(r"^##+ |^```\w+$", _text(page), re.M) for page in ("README.md", "README.zh.md"))
    assert chinese == english
    english, chinese = (
        [each.text for each in fences(page) if each.language == "json"] for page in ("README.md", "README.zh.md")
    )
    assert chinese == english


def test_the_readmes_name_the_same_environments_of_tox():
    english, chinese = (set(re.findall(r"\btox -e (\w+)", _text(page))) for page in ("README.md", "README.zh.md"))
    assert chinese == english


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# --- the harness's own parts -----------------------------------------------------------------------------------------


PAGE = """
* in a list

  ```console
  $ lab3 chat "#1 # not a comment" --model X    # a comment
  An answer
  of two lines
  $ one \\
      --two
  ```

```sh
# what follows
make it
```
"""


def test_commands_are_read_with_their_output_and_without_their_comments():
    assert commands("a.md", PAGE) == [
        Command("a.md", 5, 'lab3 chat "#1 # not a comment" --model X', "An answer\nof two lines"),
        Command("a.md", 8, "one --two", ""),
        Command("a.md", 14, "make it", ""),
    ]


def test_a_hash_within_a_word_is_no_comment():
    assert without_comment("open http://a/#b 'c # d' # e") == "open http://a/#b 'c # d'"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [("a\n…\nc", "a\nb\nb\nc\n", True), ("a\nc", "a\nb\nc", False), ("1…", "21", False), ("(a.c)", "(abc)", False)],
)
def test_output_is_compared_to_the_letter_but_for_an_ellipsis(shown: str, printed: str, same: bool):
    assert alike(shown, printed) is same
