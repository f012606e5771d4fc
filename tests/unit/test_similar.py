"""Likeness of submissions: copies are found, whatever their names; the tutorial's code and numbers are told apart."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from lab3.errors import UsageError
from lab3.grading.similar import (
    LEAST_PIECES,
    MOST_CHARACTERS,
    MOST_KEPT,
    MOST_PAIRS,
    FilePrint,
    Fingerprint,
    Pair,
    fingerprint,
    similar,
)

TUTORIAL = """\
from openai import OpenAI

client = OpenAI(api_key="YOUR_API_KEY", base_url="http://0.0.0.0:23333/v1")
model_name = client.models.list().data[0].id
response = client.chat.completions.create(
    model=model_name,
    messages=[
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Provide three suggestions about time management"},
    ],
    temperature=0.8,
    top_p=0.8,
)
print(response.choices[0].message.content)
"""
OWN = '''
def fold(values, start=0):
    """Adds up."""
    total = start
    for index, value in enumerate(values):
        if value % 2 == 0 and index > 3:
            total += value * 7
        elif value < 100:
            total -= value // 3
        else:
            total = total ^ (value << 2)
    return {"total": total, "mean": total / max(len(values), 1)}

print(fold([3, 5, 2, 19, 40, 41], start=11))
'''
RENAMED = """
# Written all by myself
def summe( zahlen , anfang = 0 ):
    ergebnis = anfang
    for i, z in enumerate( zahlen ):
        if z % 2 == 0 and i > 3:
            ergebnis += z * 7
        elif (z < 100):
            ergebnis -= z // 3
        else:
            ergebnis = ergebnis ^ (z << 2)
    return {'summe': ergebnis, 'mittel': ergebnis / max(len(zahlen), 1)}

print(summe([3, 5, 2, 19, 40, 41], anfang=11))
"""


def made(folder: Path, **files: str | bytes) -> Fingerprint:
    folder.mkdir(parents=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("_", ".", 1)).write_bytes(data)
    return fingerprint(folder)


def own_code(seed: int, *, lines: int = 40) -> str:
    """Some Python that no other seed writes."""
    rng = random.Random(seed)
    made_up = [
        rng.choice(
            (
                "a{0} = {1} + b * {2}",
                "if a > {1}:\n    b -= {2}",
                "for i in range({1}):\n    print(i, {2})",
                "c = [x * {1} for x in d if x < {2}]",
                "while b < {1}:\n    b += {2}",
                "d = {{'k': {1}, 'm': [{2}, {0}]}}",
            )
        ).format(at, rng.randrange(1000), rng.randrange(1000))
        for at in range(lines)
    ]
    return "\n".join(made_up) + "\n"


def batch(tmp_path: Path, count: int, *, common: str = TUTORIAL) -> list[Fingerprint]:
    """Submissions that begin with the tutorial's code and go on with their own."""
    return [made(tmp_path / f"s{at:04}", chat_py=common + own_code(at)) for at in range(count)]


def names(pairs: tuple[Pair, ...]) -> list[tuple[str, str]]:
    return [(pair.first, pair.second) for pair in pairs]


def without_equal_files(prints: Fingerprint) -> Fingerprint:
    files = tuple(FilePrint(path=f.path, digest="", pieces=f.pieces) for f in prints.files)
    return Fingerprint(name=prints.name, files=files, level=prints.level)


# --- what is alike ------------------------------------------------------------------------------------------------


def test_a_copy_with_other_names_comments_texts_and_spaces_is_found(tmp_path):
    one, other = made(tmp_path / "a", chat_py=OWN), made(tmp_path / "b", answer_py=RENAMED)

    (pair,) = similar([one, other])

    assert (pair.first, pair.second, pair.similarity) == ("a", "b", 1.0)
    assert pair.alike == (("chat.py", "answer.py", 1.0),)
    assert pair.equal_files == ()
    assert "100% alike" in pair.text
    assert f"{pair.measured_on} pieces of code" in pair.text


def test_other_numbers_are_another_answer(tmp_path):
    other = OWN.replace("[3, 5, 2, 19, 40, 41]", "[1, 2, 4, 8, 16, 32]").replace("* 7", "* 9").replace("// 3", "// 8")

    assert similar([made(tmp_path / "a", chat_py=OWN), made(tmp_path / "b", chat_py=other)]) == ()


def test_one_script_that_is_alike_is_found_among_others_that_are_not(tmp_path):
    one = made(tmp_path / "a", chat_py=own_code(1, lines=200), func_py=OWN)
    other = made(tmp_path / "b", chat_py=own_code(2, lines=200), calls_py=RENAMED)

    (pair,) = similar([one, other])

    assert pair.alike == (("func.py", "calls.py", 1.0),)
    assert pair.similarity < 0.3
    assert "nearly equal scripts: func.py and calls.py" in pair.text


def test_functions_in_another_order_are_still_alike(tmp_path):
    parts = [own_code(seed) for seed in range(4)]
    one = made(tmp_path / "a", chat_py="".join(parts))
    other = made(tmp_path / "b", chat_py="".join(reversed(parts)))

    (pair,) = similar([one, other])

    assert 0.9 <= pair.similarity < 1


def test_the_threshold_decides(tmp_path):
    shared = own_code(1, lines=60)
    prints = [made(tmp_path / name, chat_py=shared + own_code(seed, lines=15)) for name, seed in (("a", 2), ("b", 3))]

    assert similar(prints, threshold=0.9) == ()
    assert names(similar(prints, threshold=0.5)) == [("a", "b")]


def test_scripts_of_their_own_are_not_alike(tmp_path):
    assert similar(batch(tmp_path, 12)) == ()


def test_too_little_code_is_not_compared(tmp_path):
    prints = [made(tmp_path / name, chat_py="print(1 + 2)\n") for name in "ab"]

    assert similar(prints) == ()


def test_a_notebook_is_compared_with_a_script(tmp_path):
    import json

    cells = [{"cell_type": "code", "source": OWN}]
    one = made(tmp_path / "a", lab_ipynb=json.dumps({"cells": cells, "nbformat": 4}))

    assert similar([one, made(tmp_path / "b", lab_py=RENAMED)])[0].alike == (("lab.ipynb", "lab.py", 1.0),)


def test_an_equal_report_is_told_although_the_scripts_differ(tmp_path):
    report = "# My report\n" + "I measured the memory and found much. " * 20
    one = made(tmp_path / "a", chat_py=own_code(1), report_md=report)
    other = made(tmp_path / "b", chat_py=own_code(2), words_md=report)

    (pair,) = similar([one, other])

    assert pair.equal_files == (("report.md", "words.md"),)
    assert pair.similarity < 0.5
    assert "report.md and words.md" in pair.text


def test_a_short_equal_file_is_chance(tmp_path):
    prints = [made(tmp_path / name, serve_sh="lmdeploy serve api_server m --quant-policy 4\n") for name in "ab"]

    assert similar(prints) == ()


def test_only_the_scripts_that_are_named_are_compared_as_scripts(tmp_path):
    made(tmp_path / "a", chat_py=OWN, other_py=own_code(1))

    prints = fingerprint(tmp_path / "a", scripts=[tmp_path / "a" / "chat.py"])

    assert [(file.path, len(file.pieces) > 0) for file in prints.files] == [("chat.py", True), ("other.py", False)]


# --- the common source --------------------------------------------------------------------------------------------


def test_what_everybody_has_from_the_tutorial_does_not_count(tmp_path):
    prints = [made(tmp_path / f"s{at}", chat_py=TUTORIAL * 2) for at in range(9)]

    assert similar(prints) == ()


def test_beyond_the_tutorial_a_copy_is_found_and_it_is_told_how_much_was_common(tmp_path):
    prints = batch(tmp_path, 10)
    copied = made(tmp_path / "s9999", chat_py=TUTORIAL + own_code(4))

    (pair,) = similar([*prints, copied])

    assert (pair.first, pair.second, pair.similarity) == ("s0004", "s9999", 1.0)
    assert 0.05 < pair.common < 0.6
    assert f"{pair.common:.0%} of their code is common in this batch" in pair.text


def test_in_a_small_batch_nothing_is_taken_for_common_and_that_is_said(tmp_path):
    pairs = similar([made(tmp_path / f"s{at}", chat_py=TUTORIAL) for at in range(3)])

    assert names(pairs) == [("s0", "s1"), ("s0", "s2"), ("s1", "s2")]
    assert "cannot be told apart" in pairs[0].text
    assert pairs[0].common == 0


def test_a_group_of_a_third_is_not_the_common_source(tmp_path):
    group = [made(tmp_path / f"group{at}", chat_py=own_code(77)) for at in range(2)]
    others = batch(tmp_path, 4)

    assert names(similar([*group, *others])) == [("group0", "group1")]


def test_the_words_do_not_accuse(tmp_path):
    (pair,) = similar([made(tmp_path / name, chat_py=OWN) for name in "ab"])

    assert pair.text.endswith("This is likeness, and says nothing about how it came about.")
    assert not any(word in pair.text.lower() for word in ("cheat", "plagiar", "guilt", "copied"))


# --- order, size, hostility ---------------------------------------------------------------------------------------


def test_the_order_of_the_batch_changes_nothing(tmp_path):
    prints = [*batch(tmp_path, 8), made(tmp_path / "x", chat_py=own_code(3)), made(tmp_path / "y", chat_py=own_code(3))]
    shuffled = random.Random(1).sample(prints, len(prints))

    assert similar(prints)
    assert similar(shuffled) == similar(prints)


def test_an_empty_batch_and_empty_folders_have_no_pairs(tmp_path):
    assert similar([]) == ()
    assert similar([made(tmp_path / f"s{at}") for at in range(8)]) == ()


def test_two_submissions_of_one_name_are_a_mistake_of_the_caller(tmp_path):
    one = made(tmp_path / "a", chat_py=OWN)

    with pytest.raises(UsageError, match="one name"):
        similar([one, one])


def test_a_long_script_is_kept_as_a_sample_and_found_again(tmp_path):
    code = own_code(5, lines=2500)
    one, other = made(tmp_path / "a", chat_py=code), made(tmp_path / "b", chat_py=code + own_code(6, lines=20))
    assert all(each.level > 0 and len(each.files[0].pieces) <= MOST_KEPT for each in (one, other))

    (pair,) = similar([one, other])

    assert pair.similarity > 0.97
    assert "a sample of" in pair.text


def test_a_long_and_a_short_script_are_compared_by_what_both_kept(tmp_path):
    code, renamed = own_code(5, lines=500), own_code(5, lines=500).replace("a", "a1")
    shorter, longer = (
        made(tmp_path / "a", chat_py=code),
        made(tmp_path / "b", chat_py=renamed, more_py=own_code(6, lines=2500)),
    )
    assert shorter.level < longer.level

    (pair,) = similar([shorter, longer])

    assert pair.alike == (("chat.py", "chat.py", 1.0),)
    assert pair.similarity < 0.5


@pytest.mark.parametrize(
    "code",
    [
        "(" * 50_000,
        "-" * 50_000 + "1",
        "x = " + "[" * 3000 + "]" * 3000,
        "a" + ".b" * 50_000,
        "if 1:\n" + "".join(" " * at + "if 1:\n" for at in range(1, 500)),
        "x = '" + "\\\\" * 50_000,
        '"' * 100_001,
        "x = " + "9" * 50_000,
        "x = 0x" + "f" * 50_000,
        "\x00" * 1000,
        "def",
        "﻿\u202e\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
        "1" + "+1" * 60_000,
    ],
    ids=lambda code: repr(code[:12]),
)
def test_hostile_sources_are_only_compared(tmp_path, code):
    one, other = made(tmp_path / "a", chat_py=code), made(tmp_path / "b", chat_py=code)

    for pair in similar([one, other]):
        assert (pair.first, pair.second) == ("a", "b")


def test_bytes_that_are_no_text_and_files_without_end_are_compared_as_files(tmp_path):
    noise, endless = random.Random(1).randbytes(5000), "x = 1\n" * MOST_CHARACTERS
    one, other = (made(tmp_path / name, chat_py=noise, more_py=endless) for name in "ab")

    (pair,) = similar([one, other])

    assert pair.equal_files == (("chat.py", "chat.py"), ("more.py", "more.py"))
    assert all(len(file.pieces) <= MOST_KEPT for file in one.files)


def test_code_that_does_not_parse_is_compared_by_its_words(tmp_path):
    broken, renamed = OWN + "\nprint 'done'\n", RENAMED + "\nprint 'fertig'\n"

    (pair,) = similar([made(tmp_path / "a", chat_py=broken), made(tmp_path / "b", chat_py=renamed)], threshold=0.6)

    assert pair.equal_files == ()
    assert pair.measured_on >= LEAST_PIECES


def test_a_folder_that_is_gone_is_like_no_other(tmp_path):
    gone = fingerprint(tmp_path / "gone")

    assert gone.files == ()
    assert similar([gone, made(tmp_path / "a", chat_py=OWN)]) == ()


def test_a_link_is_not_followed(tmp_path):
    made(tmp_path / "victim", chat_py=OWN)
    (tmp_path / "thief").mkdir()
    (tmp_path / "thief" / "chat.py").symlink_to(tmp_path / "victim" / "chat.py")

    assert fingerprint(tmp_path / "thief").files == ()


def test_a_file_name_is_printable_in_what_is_told(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x\n\u202e<b>.py").write_text(OWN)

    (pair,) = similar([fingerprint(tmp_path / name) for name in "ab"])

    assert pair.text.isprintable()
    assert "\\u202e<b>.py" in pair.text


def test_many_pairs_are_cut_at_the_most_alike(tmp_path):
    one = without_equal_files(made(tmp_path / "a", chat_py=OWN))
    groups = [
        Fingerprint(name=f"{group}-{at}", files=tuple(shifted(file, group) for file in one.files))
        for group in range(4)
        for at in range(50)
    ]

    assert len(similar(groups)) == MOST_PAIRS


def shifted(file: FilePrint, by: int) -> FilePrint:
    return FilePrint(path=file.path, digest="", pieces=file.pieces + by)


def test_in_a_thousand_submissions_the_two_that_are_alike_are_found():
    rng = np.random.default_rng(1)
    tutorial = rng.integers(0, 1 << 63, 300).astype(np.uint64)
    own = [np.union1d(tutorial, rng.integers(0, 1 << 63, 1500).astype(np.uint64)) for _ in range(1000)]
    own[999] = own[123]
    prints = [
        Fingerprint(name=f"s{at:03}", files=(FilePrint(path="a.py", digest="", pieces=pieces),))
        for at, pieces in enumerate(own)
    ]

    (pair,) = similar(prints)

    assert (pair.first, pair.second, pair.similarity, pair.common) == ("s123", "s999", 1.0, round(300 / 1800, 3))
