"""The page of a run: what a reader sees is in the evidence, whatever the model said, and it needs nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lab3.cli import main
from lab3.errors import UsageError
from lab3.evidence import Evidence, MemoryFacts, Trouble
from lab3.protocol_facts import Exchange, ProtocolFacts
from lab3.report import build_report
from lab3.report.html_page import page
from lab3.report.stored import as_stored, read_report
from lab3.verdicts import Blame
from tests.run_literals import HOSTILE, call, evidence, read, run_folder, seen, server, stored, tools, verdict

KV = "What the KV cache holds, by policy"
CURVE = "GPU memory over time: W4A16, KV 4 bits, ratio 0.4"


# --- what is on the page ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "figure",
    [
        *("3,777,777,771", "1,543,210,987", "1,543,210,003", "3,781,770,388", "1,570,551,421"),
        *("66,451", "34,613", "81,559", "700,352", "302,144"),
        *("7.1371", "7.5393", "7.9177"),
        *("31 + 7 = 38 tokens", "0.14 s", "173.3 tokens/s"),
        *("NVIDIA Oddity 7", "0.18.0", "odd-model"),
    ],
)
def test_the_evidences_figures_are_on_the_page(figure):
    assert figure in seen(page(stored()))


def test_the_score_is_the_sum_of_the_verdicts():
    text = seen(page(stored(None, verdict("a"), verdict("b", "fail"), verdict("c", "unknown"))))

    assert "13 of 39 points" in text


@pytest.mark.parametrize(
    ("statuses", "sentence"),
    [
        (("pass", "pass"), "All required checks passed."),
        (("pass", "fail"), "1 required check failed."),
        (("fail", "fail"), "2 required checks failed."),
        (("pass", "unknown"), "No required check failed, and 1 could not be judged."),
    ],
)
def test_the_outcome_is_said_in_a_sentence(statuses, sentence):
    verdicts = [verdict(str(number), status) for number, status in enumerate(statuses)]

    assert sentence in seen(page(stored(None, *verdicts)))


def test_each_verdict_at_a_glance_leads_to_its_details():
    told = read(page(stored(None, verdict("a"), verdict("b", "fail", reason="it fell over"))))

    links = told.select(".checks a")
    assert [told.find(id=link["href"][1:]).select_one(".title").text for link in links] == [
        "Title of a",
        "Title of b",
    ]
    assert "it fell over" in told.find(id=links[1]["href"][1:]).text


def test_a_verdict_says_its_status_in_words_and_not_by_colour_alone():
    assert "Title of b : failed" in seen(page(stored(None, verdict("b", "fail"))))


def test_whose_failure_it_is_stands_beside_it():
    blame = Blame(
        whose="machine", kind="disk", text="The disk is full.", command="df -h /odd", log_tail=("last words",)
    )
    text = seen(page(stored(None, verdict("b", "unknown", blame=blame))))

    assert "the machine’s, not the model’s. The disk is full." in text
    assert "df -h /odd" in text
    assert "last words" in text


def test_what_could_not_be_shown_says_why():
    trouble = {"chat": Trouble(fault="machine", kind="gpu", text="The card fell off the bus.", command="nvidia-smi -q")}
    text = seen(page(stored(evidence(chat=None, trouble=trouble))))

    assert "What could not be shown chat The card fell off the bus. To see it again nvidia-smi -q" in text


def test_the_conversation_is_shown_in_turns():
    turns = [turn.get_text(" ", strip=True) for turn in read(page(stored())).select(".talk > li")]

    assert turns[:2] == ["you Who are you?", "model I am odd."]
    assert turns[3:] == ["you And else?", "model Still odd."]


def test_the_commands_are_those_that_were_run():
    commands = [each.text for each in read(page(stored())).select("#reproduce pre")]

    assert "lab3 run --model odd-model --out lab3-out --engine turbomind" in commands
    assert "lmdeploy serve one" in commands
    assert "lmdeploy serve api_server /models/odd --quant-policy 4" in commands


def test_a_question_cannot_break_out_of_its_command():
    chat = replace(evidence().chat, question="it's; rm -rf / $(x)")
    commands = [each.text for each in read(page(stored(evidence(chat=chat)))).select("#reproduce pre")]

    assert any("lab3 chat 'it'\"'\"'s; rm -rf / $(x)' --base-url" in command for command in commands)


def test_a_run_that_showed_nothing_still_has_a_page():
    text = seen(page(stored(Evidence(subject="reference", model="m"))))

    assert "Figures" not in text
    assert "Title of chat.answer" in text


# --- charts -----------------------------------------------------------------------------------------------------------


def charts(facts: Evidence | None = None) -> dict[str, Any]:
    return {each.figcaption.text: each for each in read(page(stored(facts))).select("figure")}


def bars(figure: Any) -> list[float]:
    """The widths of the bars, without their grounds and marks."""
    kinds = ("c-before", "c-after", "c-third")
    return [float(each["width"]) for each in figure.select("rect") if each.get("class", [""])[0] in kinds]


def test_every_lab_figure_has_a_picture():
    assert list(charts()) == [
        "Size before and after",
        "Perplexity before and after",
        "GPU memory over time: unquantized, KV 16 bits, ratio 0.8",
        "GPU memory over time: W4A16, KV 4 bits, ratio 0.4",
        "GPU memory before and after",
        "What the KV cache holds, by policy",
        "Who said what: Compute (3+5)*2",
    ]


def test_every_picture_has_a_title_a_text_and_a_table():
    for title, figure in charts().items():
        picture = figure.svg
        named = [picture.find(id=name) for name in picture["aria-labelledby"].split()]
        assert [each.name for each in named] == ["title", "desc"]
        assert named[0].text == title
        assert named[1].text
        assert figure.select("tbody tr")


def test_bars_are_as_long_as_their_figures():
    before, after, *_ = bars(charts()["Size before and after"])

    assert after / before == pytest.approx(1_543_210_987 / 3_777_777_771, abs=0.001)


def test_the_memory_bars_are_parts_of_the_card():
    before, after = bars(charts()["GPU memory before and after"])

    assert before / 440 == pytest.approx(66451 / 81559, abs=0.001)
    assert after / 440 == pytest.approx(34613 / 81559, abs=0.001)


def test_capacity_is_the_servers_own_figure_and_what_follows_from_it():
    rows = [[cell.text for cell in row.find_all(["th", "td"])] for row in charts()[KV].select("tbody tr")]

    assert rows == [
        ["--quant-policy 0 (16 bits)", "98,304", "186,031", "computed"],
        ["--quant-policy 8 (8 bits)", "50,688", "360,787", "computed"],
        ["--quant-policy 4 (4 bits)", "26,112", "700,352", "told by the server"],
    ]


def test_a_server_that_tells_no_capacity_has_the_bytes_of_a_token():
    figure = charts(evidence(quantized=server(kv_tokens=None)))[KV]

    assert "98,304 B" in figure.svg.text
    assert "does not tell" in figure.text


def test_the_curve_shows_the_moments_the_card_and_the_ceiling():
    figure = charts()["GPU memory over time: W4A16, KV 4 bits, ratio 0.4"]
    words = [each.text for each in figure.select("text")]

    assert {"start", "ready", "chat", "calls", "stopped", "card: 81,559 MiB"} <= set(words)
    assert any(re.fullmatch(r"predicted: [\d,]+ MiB", word) for word in words)
    assert [row.get_text("|", strip=True) for row in figure.select("tbody tr")][1:3] == [
        "ready|23.75|34,596",
        "chat|24.5|34,613",
    ]


def test_the_ceiling_is_vram_predicts():
    from lab3.vram_predict import predict

    told = predict(
        total_mib=81559,
        ratio=0.4,
        kv_bits=4,
        engine="turbomind",
        weights_mib=1_543_210_987 / 2**20,
        lmdeploy="0.18.0",
    )

    assert f"{round(told.used.high):,}" in charts()["GPU memory before and after"].tbody.text


def test_an_unknown_version_has_a_range_for_a_ceiling():
    facts = evidence(environment={"lmdeploy": "0.99.0"})

    assert re.search(r"predicted: [\d,]+–[\d,]+ MiB", charts(facts)[CURVE].svg.text)


def test_on_the_cpu_the_budget_is_the_card_and_nothing_is_predicted():
    cpu = {"engine": "cpu", "total_mib": 6026}
    facts = evidence(
        baseline=server(kv_bits=16, cache_ratio=0.8, used_mib=4994, **cpu), quantized=server(used_mib=3307, **cpu)
    )
    figures = charts(facts)

    assert "budget: 81,559 MiB" in figures["Process memory over time: W4A16, KV 4 bits, ratio 0.4"].svg.text
    assert "predicted:" not in figures["Process memory over time: W4A16, KV 4 bits, ratio 0.4"].svg.text


def test_an_old_report_without_memory_over_time_has_the_peaks_and_says_so():
    text = page(stored(evidence(memory=())))

    assert "Memory over time was not recorded in this run; its peaks are." in seen(text)
    assert "GPU memory before and after" in seen(text)


def test_the_calls_are_drawn_in_their_order():
    figure = charts()["Who said what: Compute (3+5)*2"]

    assert [each.text for each in figure.select(".c-code")] == [
        *("Compute (3+5)*2", 'add({"a": 3, "b": 5})', "8", 'mul({"a": 8, "b": 2})', "16", "It is 16.")
    ]


def test_a_failed_call_is_marked():
    failed = replace(call("add", "{oops", None), outcome="not_json")
    figure = charts(evidence(tools=(tools(calls=(failed,), answer="", outcome="no_valid_call"),)))

    assert [each.text for each in figure["Who said what: Compute (3+5)*2"].select(".c-bad")] == [
        *("add({oops)", "not_json", "no_valid_call")
    ]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_perplexity_that_is_no_number_has_no_bar(value):
    q = replace(evidence().quantization, perplexity_after=value)
    figure = charts(evidence(quantization=q))["Perplexity before and after"]

    assert len(bars(figure)) == 2
    assert "nan" not in str(figure.svg).replace("NaN", "")


def test_figures_of_nothing_break_nothing():
    q = replace(
        evidence().quantization,
        weight_bytes_before=0,
        weight_bytes_after=0,
        folder_bytes_before=0,
        folder_bytes_after=0,
        kv_bytes_per_token={"16": 0, "4": 0},
        perplexity_before=0.0,
    )
    nothing = MemoryFacts(kv_bits=4, cache_ratio=0.4, total_mib=0, method="", points=((0.0, 0, "start"),))
    facts = evidence(quantization=q, quantized=server(total_mib=0, used_mib=0, kv_tokens=0), memory=(nothing,))

    assert "0.0 kB" in seen(page(stored(facts)))


# --- safe, whole, for everyone ----------------------------------------------------------------------------------------


def hostile() -> Evidence:
    """Everything that a model or a server can say, said by one that means harm."""
    chat = replace(evidence().chat, question=HOSTILE, text=HOSTILE, other_text=HOSTILE, finish_reason=HOSTILE)
    return evidence(
        model=HOSTILE,
        environment={HOSTILE: HOSTILE},
        chat=chat,
        tools=(tools(question=HOSTILE, answer=HOSTILE, calls=(call(HOSTILE, HOSTILE, HOSTILE),)),),
        trouble={"x": Trouble(fault="machine", kind=HOSTILE, text=HOSTILE, command=HOSTILE, log_tail=(HOSTILE,))},
    )


@pytest.mark.parametrize("language", ["en", "zh"])
def test_nothing_that_was_said_becomes_markup(language):
    text = page(stored(hostile(), verdict(reason=HOSTILE, status="fail", actual=[HOSTILE])), language=language)
    told = read(text)

    assert not told.select("script, img, iframe, object, embed, link, form, [onerror], [onload], [src]")
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "{{ 7*7 }}" in told.text


def test_the_page_asks_the_network_for_nothing():
    text = page(stored())

    policy = read(text).find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert policy.startswith("default-src 'none'")
    assert {each["href"][0] for each in read(text).select("[href]")} == {"#"}
    assert "url(" not in text
    assert "@import" not in text


def test_every_id_is_there_once_and_every_link_has_its_target():
    told = read(page(stored(hostile(), verdict("a"), verdict("b"))))
    ids = [each["id"] for each in told.select("[id]")]

    assert sorted(ids) == sorted(set(ids))
    assert {each["href"][1:] for each in told.select("a")} <= set(ids)


def test_it_follows_light_and_dark_and_prints():
    style = read(page(stored())).style.text

    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


def test_headings_do_not_skip_a_level():
    levels = [int(each.name[1]) for each in read(page(stored())).select("h1, h2, h3, h4")]

    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("text", ["no end " * 300, "没有尽头" * 400, "half 一半 " * 300, "x" * 1_000], ids=range(4))
@pytest.mark.parametrize("room", [5.0, 60.0, 333.0])
def test_a_label_holds_as_much_as_fits(text: str, room: float):
    from lab3.report.charts import shortened, width_of

    label = shortened(text, room)
    assert label.endswith("…")
    assert width_of(label) <= room or label == "…"
    kept = len(label) - 1
    assert text.startswith(label[:-1])
    assert width_of(text[: kept + 1] + "…") > room


def test_endless_talk_leaves_the_page_below_a_megabyte():
    endless = "no end " * 1_000_000
    chat = replace(evidence().chat, text=endless, other_text=endless)
    asked = tools(answer=endless, calls=tuple(call("add", endless, 8) for _ in range(500)))
    verdicts = [verdict(str(number), "fail", reason=endless, actual=endless) for number in range(90)]

    assert len(page(stored(evidence(chat=chat, tools=(asked,)), *verdicts)).encode()) < 1_000_000


def test_in_chinese_titles_and_headings_are_chinese():
    text = page(stored(), language="zh")

    assert read(text).html["lang"] == "zh-Hans"
    assert "chat.answer 的标题" in seen(text)
    assert "量化前后的体积" in seen(text)
    assert "Title of" not in seen(text)


def test_both_languages_have_the_same_figures():
    numbers = re.compile(r"\d[\d,.]*\d")
    english, chinese = (
        sorted(set(numbers.findall(seen(page(stored(), language=language))))) for language in ("en", "zh")
    )

    assert english == chinese


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_into_the_runs_folder(tmp_path, capsys):
    assert main(["report", str(run_folder(tmp_path / "run"))]) == 0

    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "report.html")
    assert "34,613" in seen((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))


def test_a_failed_run_has_a_page_too(tmp_path):
    assert main(["report", str(run_folder(tmp_path, None, verdict(status="fail")))]) == 0


def test_the_report_itself_may_be_named(tmp_path):
    folder = run_folder(tmp_path / "run")

    assert main(["report", str(folder / "report.json"), "--out", str(tmp_path / "page.html"), "--language", "zh"]) == 0
    assert "任务 1" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_for_programs_the_files_are_json(tmp_path, capsys):
    main(["report", str(run_folder(tmp_path)), "--json"])

    assert json.loads(capsys.readouterr().out) == {
        "files": [str(tmp_path / "report.html")],
        "score": 13,
        "max_score": 13,
    }


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "has no report.json"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"n": 1' + "0" * 5000 + "}", "is not lab3's report"),
        ("[1]", "is not lab3's report"),
        ('{"schema": 7}', "is not lab3's report"),
        ('{"name": "a package"}', "is not lab3's report"),
        ('{"schema": "lab3/2"}', "has the schema lab3/2"),
        ('{"schema": "lab3/1", "subject": "reference"}', "is damaged"),
        ('{"schema": "lab3/1", "subject": "r", "evidence": {"model": "m", "chat": {}}}', "is damaged"),
        ('{"schema": "lab3/1", "subject": "r", "evidence": {"model": "m"}, "verdicts": [{"id": "a"}]}', "is damaged"),
    ],
)
def test_what_is_no_report_is_wrong_usage_and_says_what_to_do(tmp_path, capsys, content, what):
    if content is not None:
        (tmp_path / "report.json").write_text(content)

    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert what in said
    assert "what to do:" in said
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_not_there_is_wrong_usage(tmp_path, capsys):
    assert main(["report", str(tmp_path / "gone")]) == 2
    assert "there is no" in capsys.readouterr().err


@pytest.mark.parametrize(
    "place",
    ["file/page.html", "folder", "folder/" + "x" * 300],
    ids=["below a file", "a folder", "too long"],
)
@pytest.mark.parametrize("compared", [False, True])
def test_a_page_where_none_can_be_is_wrong_usage(tmp_path, capsys, place, compared):
    folder = str(run_folder(tmp_path / "run"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()

    asked = ["--compare", folder, folder] if compared else [folder]
    assert main(["report", *asked, "--out", str(tmp_path / place), "--json"]) == 2
    told, said = capsys.readouterr()
    assert str(tmp_path / place) in json.loads(told)["error"]["what"]
    assert "--out" in json.loads(told)["error"]["todo"]
    assert "Traceback" not in said
    assert not list((tmp_path / "folder").iterdir())


def test_a_page_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    folder = run_folder(tmp_path)
    (folder / "report.html").write_text("old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))

    assert main(["report", str(folder)]) == 3
    assert (folder / "report.html").read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]


def test_a_report_is_read_back_as_it_was_written(tmp_path):
    told = read_report(run_folder(tmp_path, None, verdict(blame=Blame(whose="model", kind="k", text="t"))))

    assert told.evidence == evidence()
    assert told.verdicts == (verdict(blame=Blame(whose="model", kind="k", text="t")),)


def test_a_newer_lab3s_further_facts_are_left_out():
    report = build_report(evidence(), [])
    report["evidence"]["brand_new"] = {"x": 1}

    assert as_stored(report, Path("report.json")).evidence == evidence()


def test_half_a_letter_from_a_server_does_not_keep_the_page_from_being_written(tmp_path):
    chat = replace(evidence().chat, text="half \ud83d a smile")

    assert main(["report", str(run_folder(tmp_path, evidence(chat=chat)))]) == 0
    assert "a smile" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_report_of_the_acceptance_suite_has_a_page_too(tmp_path):
    answer = Exchange(
        request={}, status=200, body={"n": 10**50}, events=({"a": 1},), done=True, content_type="x", error=None
    )
    facts = evidence(protocol=ProtocolFacts(model="m", capabilities=("stream",), exchanges={"models": (answer,)}))
    beyond = verdict("protocol.stream", task=0, points=0, max_points=0)
    folder = run_folder(tmp_path, facts, beyond, verdict())

    assert main(["report", str(folder)]) == 0
    text = seen((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Task 1 ✓ Title of chat.answer : passed Beyond the lab ✓ Title of protocol.stream : passed" in text


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_run_ends_with_its_page(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.setattr("lab3.lab.run_lab", lambda model, out, **_: evidence())

    main(["run", "--out", str(tmp_path), "--quiet", *arguments])

    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "34,613" in seen(text)
    assert ("report.html" in capsys.readouterr().out) == (not arguments)


def test_every_tag_that_opens_is_closed():
    class Balance(HTMLParser):
        """Complains of what a browser would mend."""

        void = frozenset({"meta", "br"})

        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            names = [name for name, _ in attrs]
            assert len(names) == len(set(names))
            if tag not in self.void:
                self.open.append(tag)

        def handle_startendtag(self, tag: str, attrs: Any) -> None:
            assert "svg" in self.open or tag in self.void

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    balance = Balance()
    balance.feed(page(stored(hostile(), verdict(status="fail", reason=HOSTILE, actual=HOSTILE))))
    assert balance.open == []


def test_stored_raises_usage_errors(tmp_path):
    with pytest.raises(UsageError, match=r"report\.json"):
        read_report(tmp_path)
