"""Headless Chromium by its debugging protocol, which needs no driver: pages are opened, keys pressed, facts asked."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_KEYS = {"ArrowDown": 40, "ArrowUp": 38, "ArrowRight": 39, "Enter": 13, "Escape": 27, "Tab": 9}

_STILL = """(async () => {
  let before, now;
  do {
    before = now;
    FOUND.scrollIntoView({block: "center", behavior: "instant"});
    const place = FOUND.getBoundingClientRect();
    now = [place.x + place.width / 2, place.y + place.height / 2];
    await new Promise((later) => setTimeout(later, 20));
  } while (String(before) !== String(now));
  return now;
})()"""


class Browser:
    """One tab."""

    def __init__(self, socket: Any, port: str = "") -> None:
        self._socket, self._port, self._number = socket, port, 0
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

    def press(self, *keys: str, shift: bool = False) -> None:
        held = {"modifiers": 8} if shift else {}
        for key in keys:
            code = _KEYS.get(key, ord(key.upper()[0]))
            text = {} if key in _KEYS and key != "Enter" else {"text": "\r" if key == "Enter" else key}
            self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text, **held)
            self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code, **held)

    def write(self, text: str) -> None:
        """Into whatever has the focus, all at once, in any script."""
        self.ask("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the first such element that is shown, once it does not move any more: what
        covers it gets the click."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})].find((each) => each.offsetParent)"
        self.wait(f"!!{found}")
        at = self.value(_STILL.replace("FOUND", found))
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)

    def viewport(self, width: int, height: int, *, phone: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def prefers_dark(self, dark: bool) -> None:
        wish = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[wish])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """What is seen; with `whole` all of the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        told = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    @contextmanager
    def another(self) -> Iterator[Browser]:
        """Another tab of the same browser, closed with the context."""
        with urlopen(Request(f"http://127.0.0.1:{self._port}/json/new?about:blank", method="PUT")) as answer:
            page = json.load(answer)
        with _tab(page, self._port) as tab:
            yield tab
            tab.ask("Page.close")

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
    command = [CHROMIUM or "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-dev-shm-usage", "--window-size=1400,900", "--remote-debugging-port=0"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    (profile / "DevToolsActivePort").unlink(missing_ok=True)
    here = os.environ | {"TMPDIR": str(profile), "HOME": str(profile)}  # Chromium leaves folders in both
    process = subprocess.Popen(
        [*command, "about:blank"], env=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        port = _port(profile / "DevToolsActivePort", process)
        with urlopen(f"http://127.0.0.1:{port}/json") as answer:
            page = next(each for each in json.load(answer) if each["type"] == "page")
        with _tab(page, port) as tab:
            yield tab
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _tab(page: dict[str, Any], port: str) -> Iterator[Browser]:
    from websocket import create_connection

    socket = create_connection(page["webSocketDebuggerUrl"], suppress_origin=True, timeout=30)
    try:
        yield Browser(socket, port)
    finally:
        socket.close()


def _port(file: Path, process: subprocess.Popen[bytes], timeout_s: float = 30) -> str:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        if file.is_file() and (lines := file.read_text().splitlines()):
            return lines[0]
        time.sleep(0.05)
    raise TimeoutError("the browser did not start")
