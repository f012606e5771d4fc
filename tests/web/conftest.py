"""The page as users have it: the real `lab3 web` in a process of its own, and a real browser before it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.browser import CHROMIUM, Browser, browser

START_S = 300.0  # two cores may be busy with other tests


@dataclass
class Web:
    """A running `lab3 web`: what it printed, and what it says on standard error."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]
    log: Path

    @property
    def url(self) -> str:
        return self.facts["url"]

    def family(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]


@contextmanager
def running(log: Path, *arguments: str | Path, **environ: str) -> Iterator[Web]:
    """`lab3 web ARGUMENTS --json` on a free port, ended with the block as Ctrl-C ends it."""
    command = [sys.executable, "-m", "lab3", "web", *map(str, arguments), "--json", "--port", "0"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environ}
        )
    try:
        yield Web(process, _printed(process, log), log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(60)


def _printed(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The one JSON object that it prints when it serves."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            return json.loads(text)
    raise AssertionError(f"it ended before it served: {text}\n{log.read_text()}")


def eventually(true: Callable[[], Any], *, timeout_s: float = 60.0, what: str = "") -> Any:
    """What `true` gives as soon as it is something; the condition is asked again and again, not waited for blindly."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"never came true: {what or true}")


class Page:
    """A user's tab with the page in it, in the words of those who use it."""

    def __init__(self, tab: Browser, url: str) -> None:
        self.tab, self.url = tab, url

    def open(self, path: str = "") -> Page:
        self.tab.open(self.url + path)
        self.tab.wait("!!document.querySelector('#chat-message textarea')", timeout_s=60)
        self.tab.wait("!!document.querySelector('#panel .lab3-server')", timeout_s=60)  # then nothing moves any more
        return self

    def language(self, name: str) -> None:
        number = {"en": 1, "zh": 2}[name]
        self.tab.click(f"#language label:nth-of-type({number})")
        shown = {"en": "Chat", "zh": "对话"}[name]
        self.tab.wait(f"document.querySelector('button[role=tab]').textContent.includes('{shown}')", timeout_s=30)

    def go(self, place: str) -> None:
        number = {"chat": 1, "tools": 2, "compare": 3}[place]
        self.tab.click(f"button[role=tab]:nth-of-type({number})")
        self.tab.wait(f"!!document.querySelector('#{place}-message, #{place}-off')?.offsetParent", timeout_s=30)

    def say(self, text: str, place: str = "chat") -> None:
        """Written where the cursor is, in the place of what stood there, and sent with Enter."""
        box = f"document.querySelector('#{place}-message textarea')"
        eventually(lambda: self._clicked(f"#{place}-message textarea", box), what="the cursor is in the message")
        self.tab.value("document.activeElement.select()")
        self.tab.write(text)
        self.tab.wait(f"{box}.value === {json.dumps(text)}")
        self.tab.press("Enter")

    def _clicked(self, selector: str, box: str) -> bool:
        """Whether the click put the cursor there: a page that is being drawn can move under the mouse."""
        self.tab.click(selector)
        return bool(self.tab.value(f"document.activeElement === {box}"))

    def answers(self, place: str = "chat") -> list[str]:
        """The model's messages, as they are seen."""
        found = f"[...document.querySelectorAll('#{place} [data-testid=bot]')].map((each) => each.innerText.trim())"
        return [each for each in self.tab.value(found) if each]

    def questions(self, place: str = "chat") -> list[str]:
        return self.tab.value(
            f"[...document.querySelectorAll('#{place} [data-testid=user]')].map((e) => e.innerText.trim())"
        )

    def begun(self, place: str = "chat") -> None:
        self.tab.wait(f"!document.querySelector('#{place}-stop').disabled", timeout_s=60)

    def idle(self, place: str = "chat", *, timeout_s: float = 120) -> None:
        """Until nothing is being answered."""
        done = f"!document.querySelector('#{place}-send').disabled && document.querySelector('#{place}-stop').disabled"
        self.tab.wait(done, timeout_s=timeout_s)

    def asked(self, text: str, place: str = "chat") -> list[str]:
        """Say it, and wait for the answers' end."""
        before = len(self.questions(place))
        self.say(text, place)
        self.tab.wait(f"document.querySelectorAll('#{place} [data-testid=user]').length > {before}", timeout_s=60)
        self.idle(place)
        return self.settled(place)

    def settled(self, place: str = "chat") -> list[str]:
        """The answers when they no longer change: the page frees its buttons before it has drawn the last words."""
        before, now = [], self.answers(place)
        end = time.monotonic() + 20
        while (not now or now != before) and time.monotonic() < end:
            time.sleep(0.2)
            before, now = now, self.answers(place)
        return now

    def set_number(self, name: str, value: float) -> None:
        """One of the settings' sliders, by its field."""
        if not self.tab.value(f"!!document.querySelector('#{name}')?.offsetParent"):
            self.tab.click("#settings > button")
            self.tab.wait(f"!!document.querySelector('#{name}')?.offsetParent")
        self.tab.click(f"#{name} input[type=number]")
        self.tab.value("document.activeElement.select()")
        self.tab.write(str(value))
        self.tab.press("Tab")


@pytest.fixture(scope="module")
def shots(pytestconfig: pytest.Config) -> Path:
    """Where screenshots are kept."""
    return Path(pytestconfig.getoption("lab3_out") or "lab3-suite").absolute() / "web"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab
