"""The page of a report in a real browser: it shows the report and its places, takes decisions by key, and runs no
stranger's script."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lab3.grading.export_text import visible
from lab3.reports.model import Block, GradedReport, Judged, Likeness, MemoryReading, Picture, Place, Report
from lab3.reports.overrides import Override, load_overrides, save_override
from lab3.reports.page import report_page, write_report_page
from lab3.reports.page_pictures import previews, save_previews
from lab3.reports.page_server import Desk, address, started
from lab3.reports.page_words import WORDS
from lab3.reports.store import save_report, save_result
from tests.browser import CHROMIUM, Browser, browser
from tests.report_steps import judged
from tests.unit.test_exporters import HOSTILE, Seen

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
DIGEST = "d" * 64


def place(block: int, quote: str, box=None, **more) -> Place:
    return Place(block=block, quote=quote, box=box, picture=DIGEST if box else None, **more)


VERDICTS = (
    judged("report.memory", "pass", [place(2, "11368 / 24566", (20, 10, 120, 30), confidence=0.93)]),
    judged("report.text", "fail", [place(1, "by 2.5 GB")], kind="contradiction", expected="2.1 GB", actual="2.5 GB"),
    judged("report.tools", "unknown", review="the figure is blurred"),
)


def graded(verdicts: tuple[Judged, ...] = VERDICTS, **more) -> GradedReport:
    read = MemoryReading(used_mib=1, total_mib=2, place=place(2, "CPU 3%", (0, 50, 40, 60)))
    return GradedReport(name="one", path="one.md", key="k1", judged=verdicts, readings=(read,), **more)


def written(folder: Path, text: str = "It is smaller by\n2.5 GB now.") -> Report:
    """A report with a picture, its previews in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (200, 100), "navy").save(folder / "source.png")
    picture = Picture(target="images/source.png", path=folder / "source.png", digest=DIGEST)
    blocks = (
        Block(kind="heading", text="Memory", level=2),
        Block(kind="paragraph", text=text),
        Block(kind="image", text="", picture=picture),
        Block(kind="code", text="lmdeploy serve api_server ./m", language="bash"),
        Block(kind="table", text="a b", rows=(("a", "b"), ("1", "2"))),
        Block(kind="image", text="", picture=Picture(target="gone.png", why="it is not in the folder")),
    )
    report = Report(path=folder / "one.md", format="markdown", encoding="utf-8", blocks=blocks)
    save_previews(report.pictures, folder)
    return report


def page_of(folder: Path, **more) -> str:
    return report_page(graded(), written(folder), folder, overrides={}, **more)


# --- what it says -------------------------------------------------------------------------------------------------


def test_the_page_has_the_report_its_verdicts_and_what_is_not_at_hand(tmp_path):
    text = Seen(page_of(tmp_path)).text

    for said in ("lmdeploy serve api_server ./m", "Memory is shown", "the figure is blurred", "gone.png", "2.1 GB"):
        assert said in text
    assert "it is not in the folder" in text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_word_of_the_page_is_a_word(tmp_path, language):
    page = page_of(tmp_path, language=language)

    assert "built-in" not in page
    assert "Undefined" not in page
    assert set(WORDS["en"]) == set(WORDS["zh"])
    assert not set(WORDS["en"]) & set(dir(dict))


def test_the_titles_come_in_either_language(tmp_path):
    assert "检查" in Seen(page_of(tmp_path, language="zh")).text
    assert "检查" not in Seen(page_of(tmp_path)).text


def test_pictures_are_in_the_page_and_written_anew(tmp_path):
    page = page_of(tmp_path)

    assert page.count('src="data:image/png;base64,') == 1
    assert not re.search(r'src="(?!data:)', page)


def test_a_large_picture_is_whole_in_the_page(tmp_path):
    report = written(tmp_path)
    Image.effect_noise((1600, 900), 80).save(tmp_path / "source.png")
    save_previews(report.pictures, tmp_path)

    page = report_page(graded(), report, tmp_path, overrides={})

    (told,) = re.findall(r'src="data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)"', page)
    assert Image.open(io.BytesIO(base64.b64decode(told))).size == (1600, 900)


def test_a_picture_that_was_taken_sideways_is_shown_upright_as_ocr_saw_it(tmp_path):
    made = Image.new("RGB", (200, 100), "navy")
    made.getexif()[0x0112] = 6
    report = written(tmp_path)
    made.save(tmp_path / "source.png", exif=made.getexif())

    save_previews(report.pictures, tmp_path)

    (preview,) = previews(tmp_path).values()
    assert (preview.width, preview.height) == (100, 200)
    shown = Image.open(tmp_path / "pictures" / preview.file)
    assert (shown.size, dict(shown.getexif())) == ((100, 200), {})


def test_likenesses_are_told_with_their_pair(tmp_path):
    alike = Likeness(kind="same_picture", one="one", other="two", what="the same picture as in two", share=1.0)

    assert "the same picture as in two (100%)" in " ".join(Seen(page_of(tmp_path, likenesses=[alike])).text.split())


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile_text_is_text(tmp_path, text):
    verdicts = tuple(
        judged(f"report.{status}", status, [place(1, text)], reason=text, review=text, expected=text, actual=text)
        for status in ("pass", "fail", "unknown")
    )
    bad = GradedReport(name=text, path=text, key=text, judged=verdicts, problems=(text,), reasons=(text,))
    alike = Likeness(kind="same_text", one=text, other=text, what=text)
    overrides = {"report.pass": Override(status="fail", note=text, was_status="pass", was_reason=text)}

    page = report_page(bad, written(tmp_path, text), tmp_path, overrides=overrides, likenesses=[alike])

    seen = Seen(page)
    assert [tag for tag, _ in seen.tags].count("script") == 2
    assert [tag for tag, _ in seen.tags].count("img") == 1
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert not {"iframe", "object", "embed", "link", "base"} & {tag for tag, _ in seen.tags}
    assert visible(text)[:200] in seen.text


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def opened(tab: Browser, folder: Path, **more) -> Browser:
    write_report_page(graded(), written(folder), folder, overrides={}, **more)
    tab.open((folder / "page.html").as_uri())
    return tab


CURRENT = "document.querySelector('.card.current').dataset.id"
SHELF = "JSON.parse(localStorage.getItem('lab3 overrides one') || '{}')"


@needs_browser
def test_the_page_works_without_an_error_and_asks_the_network_for_nothing(tab, tmp_path):
    opened(tab, tmp_path)
    tab.press("j", "Enter", "?")

    assert tab.problems == []
    assert tab.requested == [(tmp_path / "page.html").as_uri()]


@needs_browser
def test_a_verdicts_box_is_drawn_where_it_was_read(tab, tmp_path):
    opened(tab, tmp_path)

    shown = tab.value(
        "(() => { const box = document.querySelector('.mark-box.lit').getBoundingClientRect();"
        " const img = document.querySelector('.picture img').getBoundingClientRect();"
        " return [box.left - img.left, box.top - img.top, box.width, box.height, img.width]"
        ".map((each) => Math.round(each * 200 / img.width)); })()"
    )

    assert shown == [20, 10, 100, 20, 200]


@needs_browser
def test_keys_move_between_verdicts_and_to_those_that_ask(tab, tmp_path):
    opened(tab, tmp_path)
    seen = [tab.value(CURRENT)]
    for key in ("j", "ArrowDown", "k", "ArrowUp", "r"):
        tab.press(key)
        seen.append(tab.value(CURRENT))

    names = {"m": "report.memory", "t": "report.text", "f": "report.tools"}
    assert seen == [names[each] for each in "mtftmf"]


@needs_browser
def test_a_quote_is_marked_in_its_text_across_line_breaks(tab, tmp_path):
    opened(tab, tmp_path)
    tab.press("j")

    marked = "[...CSS.highlights.get('place')][0].toString()"
    assert tab.value(marked).split() == ["by", "2.5", "GB"]
    assert tab.value("document.querySelector('.block.lit').id") == "b1"


@needs_browser
def test_from_a_disk_decisions_are_kept_in_the_browser_and_can_be_taken_away(tab, tmp_path):
    opened(tab, tmp_path)
    tab.press("j", "p")
    assert tab.text("#score") == "10"

    tab.open((tmp_path / "page.html").as_uri())

    kept = tab.value(SHELF)["report.text"]
    assert (kept["status"], kept["was_status"], kept["accepted"]) == ("pass", "fail", False)
    assert tab.text("#score") == "10"
    assert "set to passed (lab3 says: failed)" in tab.text("[data-id='report.text'] .decision")
    tab.press("j", "x")
    assert tab.value(SHELF) == {}
    assert tab.text("#score") == "5"


@needs_browser
def test_what_is_downloaded_is_what_lab3_reads(tab, tmp_path):
    opened(tab, tmp_path)
    tab.press("j", "a")
    told = tab.value(
        "new Promise((resolve) => { const make = URL.createObjectURL;"
        " URL.createObjectURL = (blob) => { blob.text().then(resolve); return make.call(URL, blob); };"
        " document.getElementById('download').click(); })"
    )
    (tmp_path / "override.json").write_text(told)

    found = load_overrides(tmp_path, name="one")["report.text"]

    assert (found.status, found.accepted, found.was_reason) == ("fail", True, "it is fail")
    tab.press("x")


@needs_browser
@pytest.mark.parametrize(
    "text", ["<script>window.bad = 1</script>", "<img src=x onerror='window.bad = 1'>", "</script><script>bad = 1//"]
)
def test_no_stranger_runs_a_script(tab, tmp_path, text):
    report = written(tmp_path, text)
    bad = GradedReport(
        name=text, path="", key="", judged=(judged("report.text", "fail", [place(1, text)], reason=text),)
    )
    write_report_page(bad, report, tmp_path, overrides={"report.text": Override(note=text)})

    tab.open((tmp_path / "page.html").as_uri())

    assert tab.value("window.bad === undefined")
    assert text in tab.text("#b1")
    assert tab.problems == []


@needs_browser
def test_the_policy_stops_a_script_that_got_in(tab, tmp_path):
    write_report_page(graded(), written(tmp_path), tmp_path, overrides={})
    page = (tmp_path / "page.html").read_text()
    (tmp_path / "page.html").write_text(
        page.replace("</article>", "<script>window.bad = 1</script><img src='http://127.0.0.1:9/x.png'></article>")
    )

    tab.open((tmp_path / "page.html").as_uri())

    assert tab.value("window.bad === undefined")
    assert len([each for each in tab.problems if "Content Security Policy" in each]) == 2


# --- served -------------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[tuple[Desk, str]]:
    folder = tmp_path / "one"
    save_report(written(folder), folder / "report.json")
    save_result(graded(), folder / "result.json")
    served = Desk(tmp_path)
    server = started(served)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield served, address(server, served)
    server.shutdown()
    server.server_close()
    thread.join()


@needs_browser
def test_served_decisions_are_kept_beside_the_result_and_count_in_the_tables(tab, desk):
    served, url = desk
    tab.open(url)
    tab.value("document.querySelector('a[href$=\"page.html\"]').click()")
    tab.wait("document.querySelector('.card.current') !== null")

    tab.press("j", "p")
    tab.wait("document.querySelector('#score').textContent === '10'")

    kept = load_overrides(served.out / "one", name="one")["report.text"]
    assert (kept.status, kept.was_status, kept.was_reason) == ("pass", "fail", "it is fail")
    assert tab.problems == []
    table = ask(url, path="/results.csv", **secrets_of(served)).body
    assert '"report.text",1,"pass",5,5,"fail"' in table


@needs_browser
def test_a_note_is_written_and_shown(tab, desk):
    served, url = desk
    tab.open(url)
    tab.open(url.split("?")[0] + "one/page.html")
    tab.press("j", "n")
    tab.value("document.getElementById('note-text').value = '问过了 <b>'")
    tab.value("document.querySelector('#note button[value=keep]').click()")
    tab.wait("!document.querySelector('[data-id=\"report.text\"] .decision').hidden")

    assert load_overrides(served.out / "one")["report.text"].note == "问过了 <b>"
    assert tab.text("[data-id='report.text'] .decision") == "note: 问过了 <b>"


def ask(url: str, *, path: str = "/one/override", body=None, **headers):
    import http.client
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    given = json.dumps(body) if body is not None else None
    connection.request("POST" if body is not None else "GET", path, given, headers)
    answer = connection.getresponse()
    answer.body = answer.read().decode()
    connection.close()
    return answer


def secrets_of(desk) -> dict[str, str]:
    return {"Cookie": f"lab3_review={desk.token}", "X-Lab3-Token": desk.token}


GOOD = {"id": "report.text", "status": "pass"}


def test_a_decision_with_its_secrets_is_kept(desk):
    served, url = desk
    assert ask(url, body=GOOD, **secrets_of(served)).status == 200
    assert load_overrides(served.out / "one")["report.text"].status == "pass"


@pytest.mark.parametrize("lacking", ["Cookie", "X-Lab3-Token"])
def test_a_decision_without_a_secret_is_refused(desk, lacking):
    served, url = desk
    headers = {name: value for name, value in secrets_of(served).items() if name != lacking}

    assert ask(url, body=GOOD, **headers).status == 403
    assert not (served.out / "one" / "override.json").exists()


def test_another_hosts_name_is_refused(desk):
    served, url = desk
    assert ask(url, body=GOOD, Host="evil.example", **secrets_of(served)).status == 403


def test_pages_are_shown_to_nobody_without_the_secret(desk):
    served, url = desk
    for path in ("/", "/one/page.html", "/results.csv", "/?token=wrong"):
        answer = ask(url, path=path)
        assert answer.status == 403
        assert served.token not in answer.body


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/one/result.json", "/..%2f..%2fetc/page.html", "/two/page.html", "/%2e%2e/page.html"]
)
def test_nothing_but_pages_and_tables_is_served(desk, path):
    served, url = desk
    assert ask(url, path=path, **secrets_of(served)).status == 404


@pytest.mark.parametrize(
    "body", [{}, [], {"id": "no.such"}, {"id": "report.text", "status": "good"}, {"id": "report.text", "note": 5}]
)
def test_a_decision_that_is_none_is_refused(desk, body):
    served, url = desk
    assert ask(url, body=body, **secrets_of(served)).status == 400
    assert not (served.out / "one" / "override.json").exists()


def test_a_decision_on_another_report_is_refused(desk):
    served, url = desk
    assert ask(url, path="/../override", body=GOOD, **secrets_of(served)).status == 400


def test_two_decisions_at_once_are_both_kept(desk):
    served, url = desk
    threads = [
        threading.Thread(
            target=ask,
            args=(url,),
            kwargs={"body": {"id": each.id, "status": "unknown"}, **secrets_of(served)},
        )
        for each in VERDICTS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(load_overrides(served.out / "one")) == {each.id for each in VERDICTS}


def test_a_note_alone_decides_nothing(tmp_path):
    verdict = judged("report.text", "fail")
    save_override(tmp_path, name="one", judged=verdict, override=Override(note="ask her"))

    assert load_overrides(tmp_path)["report.text"].status is None


@pytest.mark.parametrize(("status", "accepted"), [("fail", True), ("pass", False)])
def test_only_the_verdict_that_stands_can_be_accepted(tmp_path, status, accepted):
    save_override(
        tmp_path, name="one", judged=judged("report.text", "fail"), override=Override(status=status, accepted=True)
    )

    assert load_overrides(tmp_path)["report.text"].accepted is accepted
