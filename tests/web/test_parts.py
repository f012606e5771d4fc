"""The page's parts, each alone: its words, what becomes of errors, who may see it, what it knows of a server."""

from __future__ import annotations

import html
import os
import re
import string
from pathlib import Path
from textwrap import dedent

import pytest

from lab3.chat import RawCall
from lab3.cli import main
from lab3.errors import InfraError, UsageError
from lab3.funcall import Call
from lab3.vram import Reading
from lab3.vram_predict import Range, predict
from lab3.web import panel as panel_module
from lab3.web import render
from lab3.web.command import LIVED_S, Keeper
from lab3.web.faults import failed_answer, fault_of, quoted
from lab3.web.local import of_command
from lab3.web.panel import Metrics, Status, Watch, metrics_of
from lab3.web.serving import reach_local, unproxied
from lab3.web.settings import Login, check_reach, login_of
from lab3.web.talk import Conversation, Figures, Turn
from lab3.web.toolbox import toolbox
from lab3.web.wire import Endpoint
from lab3.web.words import WORDS, word

WEB = Path(render.__file__).parent
URL = "http://127.0.0.1:23333"


# --- words --------------------------------------------------------------------------------------------------------


def test_each_word_has_both_languages_with_the_same_places():
    def places(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for key, (english, chinese) in WORDS.items():
        assert english, key
        assert places(english) == places(chinese), key
        assert re.search("[\u4e00-\u9fff]", chinese) or key in ("mib", "used_of", "per_second", "tools_example"), key


def test_each_word_is_used():
    sources = "".join(path.read_text() for path in WEB.glob("*.py") if path.name != "words.py")
    said = set(re.findall(r"""["'](\w+)["']""", sources))
    assert [key for key in WORDS if key not in said and not key.startswith(("fault_", "empty_"))] == []


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (InfraError(f"No server answers at {URL}", why="[Errno 111]", kind="network"), "down"),
        (InfraError(f"{URL} broke off the connection.", why="peer closed", kind="network"), "broke_off"),
        (InfraError("The streamed answer ended without saying why (no finish_reason)."), "broke_off"),
        (InfraError("did not answer within 120 s.", kind="timeout"), "timeout"),
        (UsageError("refused (400): Input length (9) must be smaller than the model context length (8)."), "too_long"),
        (InfraError("failed (500): CUDA out of memory. Tried to allocate"), "out_of_memory"),
        (InfraError("failed (503): No enough gpu memory for kv cache"), "out_of_memory"),
        (UsageError("refused (400): Please launch the api_server with --tool-call-parser if"), "no_tool_parser"),
        (UsageError("refused the API key (401).", kind="api_key"), "api_key"),
        (UsageError("is not an OpenAI API (404).", kind="not_an_api"), "not_an_api"),
        (UsageError("The server at x does not serve that model."), "no_such_model"),
        (UsageError("refused the request (422): top_p"), "refused"),
        (InfraError("failed (500): boom"), "server_failed"),
        (ZeroDivisionError("x"), "other"),
    ],
)
def test_an_error_becomes_a_sentence_in_both_languages(error: Exception, key: str):
    fault = fault_of(error, URL)
    assert fault.key == key
    english, chinese = fault.sentence("en"), fault.sentence("zh")
    assert english.endswith(".")
    assert chinese.endswith("。")
    assert "{" not in english + chinese


def test_a_context_that_is_too_long_is_told_with_its_numbers():
    error = UsageError("Input length (9000) must be smaller than the model context length (8192).")
    assert "(9000 of 8192 tokens)" in fault_of(error, URL).sentence("en")
    assert "（9000 / 8192 个 token）" in fault_of(error, URL).sentence("zh")


def test_an_answer_that_ended_in_an_error_says_what_the_server_said():
    assert failed_answer("internal error: CUDA out of memory").key == "out_of_memory"
    assert "`ran into a wall`" in failed_answer("ran into a wall").sentence("en")


@pytest.mark.parametrize("text", ["plain", "with `ticks`", "``` fence ```", "<b>x</b>\n\n# h", ""])
def test_what_a_server_says_is_quoted_as_code(text: str):
    from markdown_it import MarkdownIt

    shown = MarkdownIt().render(quoted(text))
    assert shown == f"<p><code>{html.escape(' '.join(text.split())) or ' '}</code></p>\n"


# --- who may see it -----------------------------------------------------------------------------------------------


def test_a_login_comes_from_the_command_a_file_or_the_environment(tmp_path: Path):
    file = tmp_path / "login"
    file.write_text("lab:p:w\n")
    environ = {"LAB3_WEB_LOGIN": "env:secret"}
    assert login_of("me:here", file, environ) == Login("me", "here")
    assert login_of(None, file, environ) == Login("lab", "p:w")
    assert login_of(None, None, environ) == Login("env", "secret")
    assert login_of(None, None, {}) is None
    assert "here" not in repr(Login("me", "here"))


@pytest.mark.parametrize("text", ["", "user", "user:", ":password", " :x"])
def test_a_login_has_a_user_and_a_password(text: str):
    with pytest.raises(UsageError, match="USER:PASSWORD"):
        login_of(text, None, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu-box"])
def test_others_reach_the_page_only_with_a_login(host: str):
    with pytest.raises(UsageError, match="--host"):
        check_reach(host, share=False, login=None)
    check_reach(host, share=False, login=Login("a", "b"))


def test_a_share_link_wants_a_login_and_this_machine_none():
    with pytest.raises(UsageError, match="internet"):
        check_reach("127.0.0.1", share=True, login=None)
    for host in ("127.0.0.1", "::1", "localhost"):
        check_reach(host, share=False, login=None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base-url", URL, "--share"], "LAB3_WEB_LOGIN"),
        (["--base-url", URL, "--host", "0.0.0.0"], "--login-file"),
        (["--base-url", URL, "--compare", "embedded"], "--compare-url"),
        (["--base-url", "nonsense"], "http://127.0.0.1:23333"),
        (["--base-url", URL, "--tools", "nowhere.py"], "no such file"),
        (["--base-url", URL, "--login-file", "nowhere"], "USER:PASSWORD"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_started(arguments, said, capsys, monkeypatch):
    monkeypatch.delenv("LAB3_WEB_LOGIN", raising=False)
    assert main(["web", *arguments]) == 2
    assert said in capsys.readouterr().err


# --- tools --------------------------------------------------------------------------------------------------------

AREA = '''
def area(width: float, height: float) -> float:
    """The area of a rectangle."""
    return width * height
'''


def tools_file(folder: Path, text: str) -> Path:
    file = folder / "mine.py"
    file.write_text(dedent(text))
    return file


def test_functions_of_a_file_come_beside_add_and_mul(tmp_path: Path):
    file = tools_file(tmp_path, "import math\nfrom textwrap import dedent\ndef _hidden(): pass\n" + AREA)
    functions = toolbox(file)
    assert list(functions) == ["add", "mul", "area"]
    assert functions["area"](2, 3) == 6
    assert list(toolbox()) == ["add", "mul"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(x):\n  'Doc.'\n  return x", "no type annotation"),
        ("def f(x: int) -> int:\n  return x", "no docstring"),
        ("def add(a: int) -> int:\n  'Doc.'\n  return a", "there is a function add already"),
        ("async def f(a: int) -> int:\n  'Doc.'\n  return a", "async"),
        ("x = 1", "no public function"),
        ("import no_such_module", "line 1"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(1)", "cannot be imported"),
    ],
)
def test_a_file_that_is_no_good_one_is_refused_with_the_reason(tmp_path: Path, text: str, said: str):
    with pytest.raises(UsageError) as refused:
        toolbox(tools_file(tmp_path, text))
    assert said in str(refused.value)


# --- the server on this machine -----------------------------------------------------------------------------------


def test_the_command_line_of_a_server_tells_how_it_serves(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    words = ["python", "-m", "lmdeploy", "serve", "api_server", str(tmp_path), "--backend", "pytorch"]
    told = of_command(1, [*words, "--quant-policy=4", "--cache-max-entry-count", "0.4"], Path("/"))
    assert told is not None
    assert (told.folder, told.engine, told.kv_bits, told.ratio) == (tmp_path, "pytorch", 4, 0.4)
    cpu = of_command(1, [*words, "--device", "cpu"], Path("/"))
    assert cpu is not None
    assert (cpu.engine, cpu.kv_bits, cpu.ratio) == ("cpu", 16, 0.8)
    assert of_command(1, ["lmdeploy", "serve", "api_server", "org/name"], tmp_path).folder is None
    assert of_command(1, ["ssh", "-L", "23333:gpu:23333"], Path("/")) is None


METRICS = """# HELP lmdeploy:gpu_cache_usage_perc GPU KV-cache usage.
lmdeploy:num_requests_running{engine="0",model_name="m"} 2.0
lmdeploy:num_requests_running{engine="1",model_name="m"} 1.0
lmdeploy:num_requests_waiting{engine="0",model_name="m"} 0.0
lmdeploy:gpu_cache_usage_perc{engine="0",model_name="m"} 0.25
lmdeploy:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="m"} 5.0
"""


def test_metrics_are_read_as_lmdeploy_writes_them():
    assert metrics_of(METRICS) == Metrics(kv_used=0.25, running=3, waiting=0)
    assert metrics_of("<html>nothing</html>") == Metrics()


def test_a_reading_is_kept_for_all_who_ask_at_once_and_trouble_is_no_exception(monkeypatch):
    looked, now = [], [0.0]

    def look(where: Endpoint) -> Metrics:
        looked.append(where)
        raise RuntimeError("driver")

    monkeypatch.setattr(panel_module, "_metrics", look)
    watch = Watch(Endpoint(URL), clock=lambda: now[0])
    assert [watch.status().up for _ in range(3)] == [False] * 3
    assert len(looked) == 1
    now[0] = 2.0
    watch.status()
    assert len(looked) == 2


def test_on_a_gpu_the_panel_shows_the_ceiling_that_lab3_predicts(tmp_path: Path, monkeypatch, embedded_model: Path):
    reading = Reading("NVIDIA H100", "GPU-1", 34607, 81559, 34500, 100, "NVML v2")
    monkeypatch.setattr(panel_module, "_metrics", lambda where: Metrics(0.5, 1, 0))
    monkeypatch.setattr(panel_module, "read", lambda *_, **__: reading)
    monkeypatch.setattr(panel_module, "kv_tokens", lambda *_: 10_000)
    command = ["lmdeploy", "serve", "api_server", str(embedded_model), "--cache-max-entry-count", "0.4"]
    monkeypatch.setattr(panel_module, "local_server", lambda url: of_command(7, command, Path("/")))
    status = Watch(Endpoint(URL)).status()
    foretold = predict(
        total_mib=81559, ratio=0.4, kv_bits=16, engine="turbomind", model=embedded_model, foreign_mib=100
    ).used
    assert status.ceiling == foretold
    panel = render.panel({"server": status}, "en")
    for said in ("34,607 of 81,559 MiB", f"{foretold.high:,.0f}", "10,000 tokens", "50.0%", "1 running"):
        assert said in panel
    assert "34,607 / 81,559 MiB" in render.panel({"server": status}, "zh")


@pytest.mark.parametrize("place", ["elsewhere", "hidden"])
def test_memory_of_a_server_that_cannot_be_seen_is_told_so(place: str):
    assert word(place, "en") in render.panel({"server": Status(up=True, place=place)}, "en")


def test_a_range_is_shown_as_one():
    status = Status(up=True, place="here", engine="pytorch", ceiling=Range(100.0, 2000.0))
    assert "100 – 2,000 MiB" in render.panel({"server": status}, "en")


# --- what is shown ------------------------------------------------------------------------------------------------


def test_a_call_is_shown_as_code_while_it_runs_and_with_its_result():
    from markdown_it import MarkdownIt

    hostile = '{"a": "```\\n<script>x</script>\\n# h"}'
    for call in (
        RawCall("1", "add", hostile),
        Call("1", "add", hostile, None, "not_json", error="```<b>"),
        Call("1", "`add`", '{"a": 1}', {"a": 1}, "ok", result="x\n````\n<b>"),
    ):
        shown = MarkdownIt().render(render.call_card(call, "en"))
        assert re.fullmatch(r"<pre><code[^>]*>[^<]*</code></pre>\n", shown), shown
    assert "→ 8" in render.call_card(Call("1", "add", '{"a": 3, "b": 5}', {}, "ok", result=8), "en")


def test_a_turn_tells_how_it_ended():
    def notes(**how) -> str:
        talk = Conversation()
        talk.turns = [Turn(said="hi", parts=how.pop("parts", ["text"]), done=True, **how)]
        return render.messages(talk, "en")[-1]["content"]

    assert notes() == "text"
    assert "stopped" in notes(stopped=True)
    assert "Max tokens" in notes(finish_reason="length")
    assert "answered nothing" in notes(parts=[""])
    assert "6 rounds" in notes(too_many_rounds=True)
    assert notes(fault=fault_of(InfraError("boom"), URL)).startswith("⚠")


def test_figures_that_are_not_known_are_dashes():
    assert render.figures(Figures(), "en").count("–") == 3
    assert "9.81 tokens/s" in render.figures(Figures(0.5, 9.812, 1234), "en")
    assert "1,234" in render.figures(Figures(0.5, 9.812, 1234), "zh")


# --- proxies ------------------------------------------------------------------------------------------------------


def test_this_machine_is_added_to_what_needs_no_proxy():
    environ = {"NO_PROXY": "example.org,localhost"}
    reach_local(environ)
    assert environ["no_proxy"] == environ["NO_PROXY"] == "example.org,localhost,127.0.0.1,::1"


def test_while_gradio_starts_there_is_no_proxy_that_it_could_trip_over(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with unproxied(keep_http=False):
        assert not {"ALL_PROXY", "https_proxy"} & set(os.environ)
    with unproxied(keep_http=True):
        assert "https_proxy" in os.environ
        assert "ALL_PROXY" not in os.environ
    assert os.environ["ALL_PROXY"] == "socks5://127.0.0.1:9"


# --- a server of ours that dies -----------------------------------------------------------------------------------


class Mortal:
    """A server as Keeper sees it."""

    def __init__(self) -> None:
        self.alive, self.starts = True, 0
        self.fails = False

    def running(self) -> bool:
        return self.alive

    def check_running(self) -> None:
        raise InfraError("the server died while it was in use")

    def stop(self, *, keep_log: bool) -> None:
        pass

    def start(self) -> None:
        if self.fails:
            raise InfraError("no memory")
        self.alive, self.starts = True, self.starts + 1


def test_a_server_that_died_is_started_again_but_not_for_ever():
    server, said, now = Mortal(), [], [0.0]
    keeper = Keeper(server, lambda text, **_: said.append(text), clock=lambda: now[0])
    keeper.look()
    assert (server.starts, said) == (0, [])
    server.alive = False
    keeper.look()
    assert server.starts == 1
    now[0] += LIVED_S
    server.alive = False
    keeper.look()
    assert server.starts == 2
    server.alive = False
    keeper.look()
    keeper.look()
    assert server.starts == 2
    assert [text for text in said if "not started any more" in text] == said[-1:]


def test_a_server_that_cannot_be_started_again_is_told_once():
    server, said = Mortal(), []
    server.alive, server.fails = False, True
    keeper = Keeper(server, lambda text, **_: said.append(text), clock=lambda: 0.0)
    keeper.look()
    keeper.look()
    assert said[-1] == "no memory"
    assert said.count("no memory") == 1
