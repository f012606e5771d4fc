"""Headless Chromium by its debugging protocol, which needs no driver: pages are opened, keys pressed, facts asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_KEYS = {"ArrowDown": 40, "ArrowUp": 38, "ArrowRight": 39, "Enter": 13, "Escape": 27}


class Browser:
    """One tab."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            told = json.loads(self._socket.recv())
            if told.get("id") == self._number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']}")
                return told["result"]
            self.events.append(told)

    def open(self, url: str) -> None:
        self.events.clear()
        self.ask("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        told = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in told:
            raise RuntimeError(str(told["exceptionDetails"]))
        return told["result"].get("value")

    def wait(self, expression: str, *, timeout_s: float = 20) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self.value(expression):
                return
            time.sleep(0.05)
        raise TimeoutError(f"never came true: {expression}")

    def press(self, *keys: str) -> None:
        for key in keys:
            code = _KEYS.get(key, ord(key.upper()[0]))
            text = {} if key in _KEYS and key != "Enter" else {"text": "\r" if key == "Enter" else key}
            self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
            self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def text(self, selector: str) -> str:
        return self.value(f"document.querySelector({json.dumps(selector)}).textContent")

    @property
    def problems(self) -> list[str]:
        """Errors of scripts, and what the page's policy kept from happening."""
        found = [each["params"] for each in self.events]
        logged = [each["entry"]["text"] for each in found if each.get("entry", {}).get("level") == "error"]
        return logged + [str(each["exceptionDetails"]) for each in found if "exceptionDetails" in each]

    @property
    def requested(self) -> list[str]:
        """What it asked the network for, but data."""
        asked = [each["params"] for each in self.events if each["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in asked if not each["request"]["url"].startswith(("data:", "blob:"))]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser of its own, ended with the context."""
    from websocket import create_connection

    command = [CHROMIUM or "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-dev-shm-usage", "--window-size=1400,900", "--remote-debugging-port=0"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    (profile / "DevToolsActivePort").unlink(missing_ok=True)
    here = os.environ | {"TMPDIR": str(profile)}  # Chromium leaves folders where temporary files go
    process = subprocess.Popen(
        [*command, "about:blank"], env=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        port = _port(profile / "DevToolsActivePort", process)
        with urlopen(f"http://127.0.0.1:{port}/json") as answer:
            page = next(each for each in json.load(answer) if each["type"] == "page")
        socket = create_connection(page["webSocketDebuggerUrl"], suppress_origin=True, timeout=30)
        try:
            yield Browser(socket)
        finally:
            socket.close()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(file: Path, process: subprocess.Popen[bytes], timeout_s: float = 30) -> str:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        if file.is_file() and (lines := file.read_text().splitlines()):
            return lines[0]
        time.sleep(0.05)
    raise TimeoutError("the browser did not start")
