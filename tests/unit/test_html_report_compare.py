"""Two runs on one page: what is different is seen, and a check that no longer passes is an exit code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lab3.cli import main
from lab3.evidence import Evidence
from lab3.report.compare import compare, comparison_page
from tests.run_literals import HOSTILE, evidence, read, run_folder, seen, server, stored, verdict


def other(**changes) -> Evidence:
    """The same lab on another card with another LMDeploy."""
    told = {
        "environment": {"lab3": "0.1.0", "lmdeploy": "0.19.0", "device": "NVIDIA Even 8"},
        "quantized": server(used_mib=30011),
    }
    return evidence(**(told | changes))


def rows(text: str, section: str) -> dict[str, list[str]]:
    """First cell → the others."""
    found = [
        [cell.get_text(" ", strip=True) for cell in row.find_all(["th", "td"])]
        for row in read(text).select(f"#{section} > .wide tr")
    ]
    return {first: rest for first, *rest in found}


def test_each_figure_has_both_values_and_its_change():
    told = rows(comparison_page(compare(stored(), stored(other()))), "figures")

    assert told["quantized.used_mib"] == ["34,613", "30,011", "-13.3%", "MiB"]
    assert told["baseline.used_mib"] == ["66,451", "66,451", "=", "MiB"]


def test_a_figure_that_one_run_lacks_is_a_dash():
    told = rows(comparison_page(compare(stored(), stored(other(chat=None)))), "figures")

    assert told["chat.ttft_s"] == ["0.137", "–", "–", "s"]


def test_what_is_different_around_them_is_marked():
    told = rows(comparison_page(compare(stored(), stored(other()))), "environment")

    assert told["lmdeploy differs"] == ["0.18.0", "0.19.0"]
    assert told["lab3"] == ["0.1.0", "0.1.0"]


def test_bars_stand_side_by_side_on_one_scale():
    picture = read(comparison_page(compare(stored(), stored(other())))).find("figure", string=None, class_="chart")
    widths = [float(each["width"]) for each in picture.select(".c-before, .c-after")]

    assert widths[1] == widths[0] == 440
    assert widths[3] / widths[2] == pytest.approx(30011 / 34613, abs=0.005)


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        ("pass", "fail", True),
        ("pass", "unknown", True),
        ("fail", "fail", False),
        ("fail", "pass", False),
        ("unknown", "fail", False),
    ],
)
def test_a_check_is_worse_if_it_no_longer_passes(before, after, worse):
    found = compare(stored(None, verdict("a", before)), stored(None, verdict("a", after)))

    assert bool(found.worse) == worse


def test_a_check_that_does_not_decide_is_not_worse():
    optional = verdict("a", required=False)

    assert not compare(stored(None, optional), stored(None, replace(optional, status="fail"))).worse


def test_a_check_of_one_run_only_is_shown_and_is_not_worse():
    found = compare(stored(None, verdict("a")), stored(None, verdict("b")))

    assert not found.worse
    assert rows(comparison_page(found), "verdicts")["Title of a differs"] == ["✓ passed the reason", "–"]


def test_the_command_writes_beside_the_second_run_and_exits_1_if_it_is_worse(tmp_path, capsys):
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", other(), verdict(status="fail"))

    assert main(["report", "--compare", str(a), str(b)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        str(b / "compare.html"),
        "1 required check passed in A and does not in B.",
    ]
    assert main(["report", "--compare", str(b), str(a), "--out", str(tmp_path / "c.html")]) == 0


def test_for_programs_it_is_json(tmp_path, capsys):
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b", other(), verdict(status="fail"))

    main(["report", "--compare", str(a), str(b), "--json"])

    told = json.loads(capsys.readouterr().out)
    assert told["worse"] == ["chat.answer"]
    assert told["scores"] == [[13, 13], [0, 13]]
    assert {"name": "quantized.used_mib", "unit": "MiB", "a": 34613, "b": 30011} in told["figures"]


def test_a_run_without_a_report_is_wrong_usage(tmp_path, capsys):
    assert main(["report", "--compare", str(run_folder(tmp_path / "a")), str(tmp_path)]) == 2
    assert "has no report.json" in capsys.readouterr().err


def test_two_runs_are_no_homework(tmp_path):
    a = str(run_folder(tmp_path / "a"))

    assert main(["report", "--compare", a, a, "--markdown"]) == 2


@pytest.mark.parametrize("arguments", [[], ["x", "--compare", "a", "b"]])
def test_it_is_one_run_or_two(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(["report", *arguments])


def test_nothing_that_was_said_becomes_markup():
    hostile = other(model=HOSTILE, environment={HOSTILE: HOSTILE})
    text = comparison_page(compare(stored(), stored(hostile, verdict(reason=HOSTILE, status="fail"))))

    assert not read(text).select("script, img, [onerror]")
    assert "\x1b" not in text


def test_it_speaks_chinese():
    text = comparison_page(compare(stored(), stored(other())), language="zh")

    assert "两次运行的比较" in seen(text)
    assert "chat.answer 的标题" in seen(text)
