"""Figures that a student typed into a table: which step each is of, and that telling is not showing."""

import pytest

from lab3.reports.commands import commands_in
from lab3.reports.facts import gather
from lab3.reports.model import Block, Report
from lab3.reports.rubric import judge_report
from lab3.reports.screens import read_text
from tests.report_literals import Draft, whole_report

SERVE = "lmdeploy serve api_server /m/internlm2_5-7b-awq --model-format awq --quant-policy 4"
DOWN = (
    ("阶段", "显存", "备注"),
    ("量化前 (lmdeploy chat)", "33005MiB / 40536MiB", "fp16"),
    ("W4A16, lmdeploy chat", "19102MiB / 40536MiB", "量化前是 33005"),
    ("W4A16 + KV int4, api_server", "18677MiB / 40536MiB", ""),
)
ACROSS = (
    ("", "unquantized model", "quantized, lmdeploy chat", "quantized, api_server"),
    ("used / total", "33005MiB / 40536MiB", "19102MiB / 40536MiB", "18677MiB / 40536MiB"),
    ("context", "2048", "2048", "8192"),
)


def facts_of(rows, *, line=7):
    text = "\n".join(" | ".join(row) for row in rows)
    blocks = (
        Block(kind="code", text=SERVE, line=1),
        Block(kind="table", text=text, rows=tuple(rows), line=line),
    )
    report = Report(path="report.md", format="markdown", encoding="utf-8", blocks=blocks)
    readings = (*commands_in(report), *read_text(text, block=1, line=line))
    return gather(report, readings)


@pytest.mark.parametrize("rows", [DOWN, ACROSS])
@pytest.mark.parametrize("line", [7, None])
def test_each_figure_of_a_table_is_of_its_own_row_or_column(rows, line):
    found = {each.step: each.reading.used_mib for each in facts_of(rows, line=line).memory}
    assert found == {"baseline": 33005, "w4a16_chat": 19102, "server": 18677}


def test_of_equal_figures_each_is_of_the_row_that_it_stands_in():
    rows = (DOWN[0], DOWN[1], *((head, "19102MiB / 40536MiB", "") for head, *_ in DOWN[2:]))
    assert [each.step for each in facts_of(rows).memory] == ["baseline", "w4a16_chat", "server"]


def test_what_is_only_typed_into_a_table_is_put_to_a_person():
    judged = {each.id: each for each in judge_report(facts_of(DOWN))}
    for check in ("baseline_memory", "w4a16_memory", "server_memory"):
        found = judged[f"report.{check}"]
        assert (found.status, bool(found.review), len(found.places)) == ("unknown", True, 1)


def test_a_table_beside_pictures_takes_nothing_from_them():
    draft = whole_report()
    draft.table(("step", "memory"), ("before quantization", "20616MiB / 24566MiB")).memory(20616)
    assert draft.judged()["baseline_memory"].status == "pass"


def test_a_table_that_repeats_its_own_figures_claims_nothing():
    judged = {each.id: each for each in judge_report(facts_of(DOWN))}
    assert judged["report.prose_claims"].status == "unknown"


# --- what did not work ------------------------------------------------------------------------------------------------


def test_a_sentence_on_function_calls_tells_of_them_wherever_it_stands():
    draft = Draft().heading("Notes").text("The chat works. My function calls failed with a connection error.")
    judged = draft.judged()
    assert (judged["tool_calls"].status, judged["tool_calls"].kind) == ("fail", "not_achieved")
    assert judged["conversation"].kind == "missing"


def test_a_failure_of_the_server_is_none_of_the_function_calls():
    draft = Draft().heading("Notes").text("The api_server failed to start on my card, out of memory.")
    assert draft.judged()["tool_calls"].kind == "missing"
