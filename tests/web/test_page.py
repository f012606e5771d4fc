"""The page before the real LMDeploy server with the embedded model, W4A16 and an int4 KV cache, in a real browser."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from tests.browser import Browser
from tests.web.conftest import Page, Web, eventually, running

pytestmark = [pytest.mark.slow, pytest.mark.needs_browser, pytest.mark.xdist_group("web")]

SHORT = 24
LONG = "Write a very long story about a king and his three sons."


@pytest.fixture(scope="module")
def web(chromium: Browser, w4a16: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """`lab3 web MODEL`, which starts the server too."""
    log = tmp_path_factory.mktemp("web") / "web.log"
    with running(log, w4a16, "--kv-bits", "4", "--cache-ratio", "0.3") as process:
        yield process


@pytest.fixture
def page(chromium: Browser, web: Web) -> Page:
    chromium.viewport(1400, 900)
    chromium.prefers_dark(False)
    return Page(chromium, web.url).open()


def metric(web: Web, name: str) -> float:
    """What the server tells of itself."""
    with urlopen(web.facts["base_url"].removesuffix("/v1") + "/metrics") as answer:
        text = answer.read().decode()
    return sum(float(each) for each in re.findall(rf"^lmdeploy:{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))


def test_it_prints_where_it_is_and_what_it_serves(web: Web):
    facts = web.facts
    assert facts["url"].startswith("http://127.0.0.1:")
    assert facts["pid"] == web.process.pid
    assert facts["model"]
    assert facts["base_url"].endswith("/v1")
    assert facts["server_pid"] in [each.pid for each in web.family()]
    port = int(facts["url"].rpartition(":")[2])
    listening = [each.laddr.ip for each in psutil.Process(web.process.pid).net_connections() if each.laddr.port == port]
    assert set(listening) == {"127.0.0.1"}


def test_an_answer_is_seen_growing_and_nobody_else_is_asked_anything(page: Page, web: Web, shots: Path):
    page.set_number("temperature", 0)
    page.set_number("max_tokens", 48)
    page.say("介绍一下你自己")
    lengths = set()

    def seen_growing() -> bool:
        lengths.add(len("".join(page.answers())))
        return len(lengths) >= 4

    eventually(seen_growing, what="an answer that grows")
    page.tab.screenshot(shots / "chat-growing.png")
    page.idle()
    answer = page.answers()[0]
    assert len(answer) >= max(lengths)
    assert page.questions() == ["介绍一下你自己"]
    figures = page.tab.text("#figures")
    assert re.search(r"first token\s*[\d.]+ s", figures)
    assert re.search(r"speed\s*[\d.]+ tokens/s", figures)
    page.tab.screenshot(shots / "chat.png")
    assert {url for url in page.tab.requested if not url.startswith(f"{web.url}/")} == set()
    assert page.tab.problems == []


def test_the_panel_shows_the_servers_memory_and_its_kv_pool(page: Page, web: Web):
    page.tab.wait("document.querySelector('#panel').innerText.includes('tokens')", timeout_s=30)
    panel = page.tab.text("#panel")
    used = re.search(r"Memory([\d,]+) of 3,072 MiB", panel)
    assert used, panel
    assert int(used[1].replace(",", "")) > 200
    pool = re.search(r"KV pool([\d,]+) MiB · int4it holds[\d,]+ tokensof it in use[\d.]+%", panel)
    assert pool, panel
    assert 100 < int(pool[1].replace(",", "")) < 3072
    assert "only for a GPU" in panel


def cost_of_an_answer(page: Page, web: Web) -> float:
    """Tokens that the server makes while it answers with `SHORT` at most; one more answer beside it costs as many."""
    before = metric(web, "generation_tokens_total")
    page.set_number("max_tokens", SHORT)
    page.asked(LONG)
    return metric(web, "generation_tokens_total") - before


def test_stop_ends_the_answer_on_the_page_and_at_the_server(page: Page, web: Web, shots: Path):
    page.set_number("max_tokens", 2000)
    page.say(LONG)
    eventually(lambda: len("".join(page.answers())) > 20, what="the beginning of an answer")
    page.tab.press("Escape")
    page.idle(timeout_s=30)
    assert "stopped" in page.answers()[-1]
    page.tab.screenshot(shots / "chat-stopped.png")
    assert cost_of_an_answer(page, web) <= SHORT * 1.5
    assert page.answers()[2:], "nothing after what was said before, and the note that it was stopped"


def test_a_closed_tab_ends_its_request(page: Page, web: Web):
    with page.tab.another() as tab:
        other = Page(tab, web.url).open()
        other.set_number("max_tokens", 2000)
        other.set_number("temperature", 0)  # drawn at random, a story can end early
        other.say(LONG)
        eventually(lambda: other.answers(), what="an answer")
        page.set_number("temperature", 0)
        assert cost_of_an_answer(page, web) > SHORT * 1.5, "both are answered at once"
    eventually(lambda: cost_of_an_answer(page, web) <= SHORT * 1.5, timeout_s=40, what="one request less")


def test_the_settings_come_closed_with_fields_that_keep_what_is_typed_into_them_at_once(page: Page):
    field = "document.querySelector('#max_tokens input[type=number]')"
    page.tab.wait(f"!!{field} && !{field}.offsetParent")  # made before they are opened
    page.set_number("max_tokens", 4)
    for _ in range(20):
        assert page.tab.value(f"{field}.value") == "4"
        time.sleep(0.05)
    page.tab.click("#settings > button")
    page.tab.wait(f"!{field}.offsetParent")
    page.set_number("max_tokens", 5)
    assert page.tab.value(f"{field}.value") == "5"


def test_retry_undo_and_clear(page: Page):
    page.set_number("max_tokens", 4)
    first = page.asked("Say one")
    assert len(first) == 2
    page.asked("Say two")
    page.tab.click("#chat-retry")
    page.begun()
    page.idle()
    assert page.questions() == ["Say one", "Say two"]
    page.tab.click("#chat-undo")
    page.tab.wait("document.querySelectorAll('#chat [data-testid=user]').length === 1")
    assert page.tab.value("document.querySelector('#chat-message textarea').value") == "Say two"
    page.tab.click("#chat-clear")
    page.tab.wait("document.querySelectorAll('#chat [data-testid=user]').length === 0")
    page.tab.wait("document.querySelector('#chat-retry').disabled && document.querySelector('#chat-undo').disabled")


def test_the_models_function_calls_are_seen_with_their_results(page: Page, shots: Path):
    page.set_number("temperature", 0)
    page.go("tools")
    assert page.tab.value("document.querySelectorAll('#functions input:checked').length") == 2
    answers = page.asked("Compute (3+5)*2", "tools")
    calls = [each for each in answers if each.startswith(("add(", "mul("))]
    assert [re.sub(r"\s+", "", each) for each in calls] == ['add({"a":3,"b":5})→8', 'mul({"a":8,"b":2})→16']
    assert "16" in answers[-1]
    page.tab.screenshot(shots / "tools.png")


def test_two_users_at_once_do_not_mix(page: Page, web: Web):
    with page.tab.another() as tab:
        anna, boris = page, Page(tab, web.url).open()
        for user in (anna, boris):
            user.set_number("max_tokens", 60)
        anna.say("My name is Anna.")
        boris.say("My name is Boris.")
        anna.begun()
        boris.begun()
        anna.idle()
        boris.idle()
        assert (anna.questions(), boris.questions()) == (["My name is Anna."], ["My name is Boris."])
        assert "Boris" not in "".join(anna.answers())
        assert "Anna" not in "".join(boris.answers())


def test_a_killed_server_is_a_sentence_in_the_chat_and_comes_back(page: Page, web: Web, shots: Path):
    page.set_number("max_tokens", 4)
    page.language("zh")
    psutil.Process(web.facts["server_pid"]).kill()
    told = page.asked("你好")[-1]
    assert re.search("没有服务应答|断开", told), told
    page.tab.screenshot(shots / "server-killed-zh.png")
    eventually(lambda: "ready" in web.log.read_text().partition("starting the server again")[2], timeout_s=200)
    page.tab.click("#chat-retry")
    page.begun()
    page.idle()
    assert not re.search("没有服务应答|断开", page.answers()[-1])
    page.tab.wait("document.querySelector('#panel').innerText.includes('运行中')", timeout_s=30)


def test_sigterm_ends_the_page_and_its_server(web: Web):
    family = web.family()
    assert len(family) > 1
    web.process.send_signal(signal.SIGTERM)
    assert web.process.wait(60) == 130
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
