"""The page with a login, behind dead proxies, on a phone, by keyboard, and before servers that fail or mean harm.

The servers are scripted: a real one cannot be made to show these faults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from lab3.ports import reserve
from tests import fake_openai as fake
from tests.browser import Browser
from tests.fake_openai import Answer, FakeOpenAI, delta, fake_openai, sse
from tests.web.conftest import Page, Web, eventually, running

pytestmark = [pytest.mark.slow, pytest.mark.needs_browser, pytest.mark.xdist_group("web")]

DEAD = "http://127.0.0.1:9"  # nobody listens on the discard port
PROXIES = {"http_proxy": DEAD, "HTTPS_PROXY": DEAD, "ALL_PROXY": "socks5://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
TOOLS = '''
def area(width: float, height: float) -> float:
    """The area of a rectangle.

    Args:
        width: In metres.
        height: In metres.
    """
    return width * height
'''
HOSTILE = (
    'Look: <img src=x onerror="window.hacked=1"><script>window.hacked=2</script>'
    '<svg onload="window.hacked=3"></svg><iframe srcdoc="<script>parent.hacked=4</script>"></iframe>'
    "<details open ontoggle=window.hacked=5>x</details> [link](javascript:window.hacked=6) ![p]({spy}/pixel.png)"
)


def told(text: str) -> Answer:
    return sse(delta(content=text), delta("stop"), fake.USAGE_CHUNK)


def called(name: str, arguments: str) -> Answer:
    return sse(delta(tool_calls=[{"index": 0, **fake.call(name, arguments)}]), delta("tool_calls"), fake.USAGE_CHUNK)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeOpenAI]:
    with fake_openai() as one:
        yield one


@pytest.fixture(scope="module")
def baseline() -> Iterator[FakeOpenAI]:
    with fake_openai() as other:
        yield other


@pytest.fixture(scope="module")
def web(
    chromium: Browser, server: FakeOpenAI, baseline: FakeOpenAI, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("trouble")
    (folder / "mine.py").write_text(TOOLS)
    arguments = ["--base-url", server.url, "--compare-url", baseline.url, "--language", "zh"]
    with running(
        folder / "web.log", *arguments, "--tools", folder / "mine.py", LAB3_WEB_LOGIN="lab:s3:cret", **PROXIES
    ) as process:
        yield process


@pytest.fixture(scope="module")
def logged_in(chromium: Browser, web: Web, shots: Path) -> Browser:
    """By the form, as a user does it: wrong first, then right."""
    chromium.open(web.url)
    chromium.wait("!!document.querySelector('input[type=password]')", timeout_s=60)
    for password in ("wrong", "s3:cret"):
        chromium.click("input:not([type=password])")
        chromium.value("document.activeElement.select()")
        chromium.write("lab")
        chromium.click("input[type=password]")
        chromium.value("document.activeElement.select()")
        chromium.write(password)
        chromium.screenshot(shots / "login-zh.png")
        chromium.press("Enter") if password == "wrong" else chromium.click(
            "button.primary, button[type=submit], button"
        )
        if password == "wrong":
            chromium.wait("document.body.innerText.toLowerCase().includes('incorrect')", timeout_s=30)
    chromium.wait("!!document.querySelector('#chat-message textarea')", timeout_s=60)
    return chromium


@pytest.fixture
def page(logged_in: Browser, web: Web, server: FakeOpenAI, baseline: FakeOpenAI) -> Iterator[Page]:
    logged_in.viewport(1400, 900)
    logged_in.prefers_dark(False)
    yield Page(logged_in, web.url).open()
    for each in (server, baseline):
        each.answers.clear()


def test_a_server_that_does_not_answer_is_told_where_the_page_was_started(tmp_path: Path):
    with reserve("127.0.0.1") as held:  # nobody listens there
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with running(tmp_path / "web.log", "--base-url", url) as dead:
            eventually(lambda: f"no server answers at {url} yet" in dead.log.read_text())


# --- who may come in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/config", "/gradio_api/info", "/gradio_api/queue/join", "/file=/etc/passwd", "/docs"]
)
def test_without_the_login_nothing_is_told(web: Web, path: str):
    asked = Request(web.url + path, data=b"{}" if "join" in path else None)
    with pytest.raises(HTTPError) as refused:
        urlopen(asked)
    assert refused.value.code in (401, 403, 404)
    assert web.facts["login"] is True


def test_the_page_may_load_nothing_from_elsewhere(page: Page, web: Web):
    with urlopen(web.url) as answer:
        policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert {url for url in page.tab.requested if not url.startswith(f"{web.url}/")} == set()
    assert page.tab.problems == []


def test_no_proxy_stands_between_the_page_and_its_server(page: Page, server: FakeOpenAI):
    for path in ("/v1/models", "/metrics", "/distserve/engine_info"):
        eventually(lambda path=path: any(each["path"] == path for each in server.requests), what=path)


# --- trouble ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            fake.as_json(
                {"message": "Input length (9000) must be smaller than the model context length (8192)."}, status=400
            ),
            "上下文窗口（9000 / 8192",
        ),
        (fake.as_json({"message": "CUDA out of memory. Tried to allocate 2.00 GiB"}, status=500), "内存（显存）不足"),
        (fake.as_json({"message": "no free memory blocks"}, status=503), "内存（显存）不足"),
        (fake.as_json({"message": "boom <b>bold</b>"}, status=500), "boom <b>bold</b>"),
        (sse(delta(content="从前"), done=False, cut=True), "连接断开"),
        (Answer((b"<html>proxy</html>",), content_type="text/html"), "不是 OpenAI API 服务"),
    ],
    ids=["too-long", "out-of-memory", "no-blocks", "other", "cut-off", "no-api"],
)
def test_trouble_is_a_sentence_in_the_pages_language_and_the_next_message_works(
    page: Page, server: FakeOpenAI, answer: Answer, said: str
):
    server.will(answer)
    assert said in page.asked("你好")[-1]
    server.will(told("好的"))
    assert page.asked("再说一次")[-1] == "好的"
    assert [each["content"] for each in server.bodies[-1]["messages"]] == ["再说一次"]


def test_what_a_model_writes_runs_no_script_and_fetches_nothing(page: Page, server: FakeOpenAI, baseline: FakeOpenAI):
    with fake_openai() as spy:
        hostile = HOSTILE.replace("{spy}", spy.url)
        server.will(told(hostile))
        assert "Look:" in page.asked(hostile)[-1]
        page.go("tools")
        server.will(called(hostile, json.dumps({"a": hostile})), told(hostile))
        page.asked("x", "tools")
        page.go("compare")
        server.will(told(hostile))
        baseline.will(told(hostile))
        page.say("x", "compare")
        page.tab.wait("document.querySelector('#compare-before').innerText.includes('Look')", timeout_s=60)
        page.idle("compare")
        assert page.tab.value("window.hacked ?? 'no'") == "no"
        assert (
            page.tab.value("document.querySelectorAll('a[href^=javascript], iframe, [onerror], [onload]').length") == 0
        )
        assert spy.requests == []


# --- functions and the other server -------------------------------------------------------------------------------


def test_a_function_of_the_users_own_is_offered_and_run(page: Page, server: FakeOpenAI, shots: Path):
    page.go("tools")
    page.tab.wait("document.querySelectorAll('#functions input:checked').length === 3")
    server.will(called("area", '{"width": 3, "height": 4.5}'), told("13.5 m²"))
    answers = page.asked("How large is it?", "tools")
    assert answers[-1] == "13.5 m²"
    assert 'area({"width": 3, "height": 4.5})' in answers[0]
    assert "→ 13.5" in answers[0]
    page.tab.screenshot(shots / "own-function-zh.png")
    page.tab.click("#functions label:nth-of-type(2)")
    page.tab.wait("document.querySelectorAll('#functions input:checked').length === 2")
    server.will(told("ok"))
    page.asked("And now?", "tools")
    assert [each["function"]["name"] for each in server.bodies[-1]["tools"]] == ["add", "area"]


def test_both_servers_are_asked_the_same_and_stand_side_by_side(
    page: Page, server: FakeOpenAI, baseline: FakeOpenAI, shots: Path
):
    page.go("compare")
    server.will(told("I am **smaller**."))
    baseline.will(told("I am large."))
    page.say("介绍一下你自己", "compare")
    page.tab.wait("document.querySelector('#compare-after').innerText.includes('smaller')", timeout_s=60)
    page.tab.wait("document.querySelector('#compare-before').innerText.includes('large')", timeout_s=60)
    page.idle("compare")
    for each in (server, baseline):
        assert each.bodies[-1]["messages"] == [{"role": "user", "content": "介绍一下你自己"}]
    left, right = page.tab.value(
        "['before', 'after'].map((side) => document.querySelector('#compare-' + side).getBoundingClientRect().x)"
    )
    assert left < right
    page.tab.screenshot(shots / "compare-zh.png")


def test_a_baseline_that_fails_does_not_keep_the_other_from_answering(
    page: Page, server: FakeOpenAI, baseline: FakeOpenAI
):
    page.go("compare")
    server.will(told("fine"))
    baseline.will(fake.as_json({"message": "CUDA out of memory"}, status=500))
    page.say("你好", "compare")
    page.tab.wait("document.querySelector('#compare-after').innerText.includes('fine')", timeout_s=60)
    page.tab.wait("document.querySelector('#compare-before').innerText.includes('不足')", timeout_s=60)
    page.idle("compare")


def test_what_two_users_say_stays_apart(page: Page, web: Web, server: FakeOpenAI):
    with page.tab.another() as tab:
        users = {"Anna": page, "Boris": Page(tab, web.url).open()}
        server.always = lambda body: told("你好 " + " ".join(each["content"] for each in body["messages"]))
        for number, said in enumerate(("one", "two"), start=1):
            for name, user in users.items():
                user.say(f"{name} {said}")
            for user in users.values():
                count = "document.querySelectorAll('#chat [data-testid=user]').length"
                user.tab.wait(f"{count} === {number}", timeout_s=60)
                user.idle()
        server.always = None
        for name, user in users.items():
            assert user.questions() == [f"{name} one", f"{name} two"]
        for body in server.bodies[-4:]:
            said = [each["content"] for each in body["messages"] if each["role"] == "user"]
            name = said[0].split()[0]
            assert said in ([f"{name} one"], [f"{name} one", f"{name} two"])
        assert [len(body["messages"]) for body in server.bodies[-4:]] == [1, 1, 3, 3]


# --- keyboard, phone, languages -----------------------------------------------------------------------------------


def focused(page: Page) -> str:
    """What has the focus: the id of the nearest element that has one."""
    return page.tab.value("document.activeElement.closest('[id]')?.id ?? ''")


def test_the_keyboard_is_enough(page: Page, server: FakeOpenAI):
    page.tab.wait("document.activeElement.closest('#chat-message') !== null")
    assert page.tab.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.tab.write("第一行")
    page.tab.press("Enter", shift=True)
    page.tab.write("第二行")
    assert page.tab.value("document.activeElement.value") == "第一行\n第二行"
    before = len(server.bodies)
    server.will(Answer((b"",), content_type="text/event-stream", hang=True))
    page.tab.press("Enter")
    page.begun()
    eventually(lambda: len(server.bodies) > before, what="a request")
    assert server.bodies[-1]["messages"][-1]["content"] == "第一行\n第二行"
    page.tab.press("Escape")
    page.idle(timeout_s=20)
    assert "已停止" in page.answers()[-1]
    page.tab.click("#chat-message textarea")
    order = []
    for _ in range(4):
        page.tab.press("Tab")
        order.append(focused(page))
    assert order == ["chat-send", "chat-retry", "chat-undo", "chat-clear"]
    assert page.tab.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.tab.press("Enter")
    page.tab.wait("document.querySelectorAll('#chat [data-testid=user]').length === 0")


def test_every_control_has_a_name(page: Page):
    page.tab.click("#settings > button")
    page.tab.ask("Accessibility.enable")
    for place in ("chat", "tools", "compare"):
        page.go(place)
        nodes = page.tab.ask("Accessibility.getFullAXTree")["nodes"]
        roles = ("button", "textbox", "combobox", "listbox", "slider", "spinbutton", "radio", "checkbox", "tab")
        controls = [each for each in nodes if each.get("role", {}).get("value") in roles and not each.get("ignored")]
        assert len(controls) > 12
        nameless = [each["role"]["value"] for each in controls if not each.get("name", {}).get("value", "").strip()]
        assert nameless == [], place
    page.tab.ask("Accessibility.disable")


@pytest.mark.parametrize(("language", "dark"), [("en", False), ("zh", True)])
def test_it_fits_a_phone(page: Page, server: FakeOpenAI, baseline: FakeOpenAI, shots: Path, language: str, dark: bool):
    page.tab.viewport(390, 844, phone=True)
    page.tab.prefers_dark(dark)
    page.open()
    page.language(language)
    assert page.tab.value("document.documentElement.lang") == language
    wide = told(
        f"https://{'x' * 120}\n\n`{'x' * 200}`\n\n```python\n{'print(1) ' * 30}\n```\n\n|a|b|\n|-|-|\n|1|{'2' * 60}|\n"
    )
    server.always = baseline.always = lambda body: wide
    for place in ("chat", "tools", "compare"):
        page.go(place)
        page.say("介绍一下你自己", place)
        page.tab.wait("document.querySelector('main').innerText.includes('print(1)')", timeout_s=60)
        page.idle(place)
        assert page.tab.value("document.documentElement.scrollWidth <= innerWidth"), place
        text = "[...document.querySelectorAll('main .prose :is(p, :not(pre) > code, table)')]"
        wide_ones = f"{text}.filter((each) => each.getBoundingClientRect().right > innerWidth).length"
        assert page.tab.value(wide_ones) == 0, place
        page.tab.screenshot(shots / f"phone-{place}-{language}-{'dark' if dark else 'light'}.png", whole=True)
    server.always = baseline.always = None


@pytest.mark.parametrize(("language", "dark"), [("en", True), ("zh", False)])
def test_the_whole_page_speaks_one_language(page: Page, server: FakeOpenAI, shots: Path, language: str, dark: bool):
    page.tab.prefers_dark(dark)
    page.open()
    page.tab.click("#chat-message textarea")
    page.tab.write("half written")
    page.language({"en": "zh", "zh": "en"}[language])
    page.language(language)
    assert page.tab.value("document.querySelector('#chat-message textarea').value") == "half written"
    server.will(fake.as_json({"message": "CUDA out of memory"}, status=500))
    page.asked("介绍一下你自己")
    page.language(language)
    expected = {
        "en": ("out of memory", "Send", "Server", "Last answer"),
        "zh": ("不足", "发送", "服务", "最近一次回答"),
    }
    other = {"en": "[\\u4e00-\\u9fff]", "zh": "Send|Stop|Server|Settings|Model|Conversation"}[language]
    page.tab.wait(f"document.body.innerText.includes({json.dumps(expected[language][0])})", timeout_s=30)
    page.tab.click("#settings > button")
    page.tab.wait("!!document.querySelector('#top_p')?.offsetParent")
    page.tab.wait(f"document.querySelector('#panel').innerText.includes({json.dumps(expected[language][2])})")
    text = page.tab.value("document.querySelector('main').innerText")
    for known in ("介绍一下你自己", "中文", "Language / 语言", "English"):
        text = text.replace(known, "")
    for said in expected[language]:
        assert said in text

    assert re.findall(other, text) == []
    page.tab.screenshot(shots / f"desktop-{language}-{'dark' if dark else 'light'}.png")


def test_the_clock_of_the_panel_goes_on_without_a_request_to_the_model(page: Page, server: FakeOpenAI):
    asked = len(server.bodies)
    seen = len([each for each in server.requests if each["path"] == "/metrics"])
    eventually(lambda: len([each for each in server.requests if each["path"] == "/metrics"]) >= seen + 2, timeout_s=30)
    assert len(server.bodies) == asked
